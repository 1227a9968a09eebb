"""What the tests of the fused steps share: tiny quantized models, their states, and their blocks one by one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from quamba import ops
from quamba.architectures.anatomy import Anatomy
from quamba.nn.step import Step
from quamba.ops import reference
from tests.scheme_variants import VARIANTS, calibrates, quantize_variant

INT8_STATES = [f"{variant} int8 states" for variant in VARIANTS if calibrates(variant)]  # of Mamba2


def quantized(model: PreTrainedModel, variant: str, **options) -> PreTrainedModel:
    """The model in a variant, which may say `int8 states` too."""
    if variant in INT8_STATES:
        variant, options = variant.removesuffix(" int8 states"), {"state_bits": 8} | options
    return quantize_variant(model, variant, **({"observer": "all=minmax"} if calibrates(variant) else {}) | options)


def step_of(model: PreTrainedModel) -> Step | None:
    """The step through all blocks, and through the head where it is quantized."""
    return Anatomy.of(model).architecture.step(mixers(model), model.backbone.norm_f, model.lm_head)


def mixers(model: PreTrainedModel) -> list:
    return [layer.mixer for layer in model.backbone.layers]


@torch.inference_mode()
def prefilled(model: PreTrainedModel, tokens: torch.Tensor) -> DynamicCache:
    """A cache that has read the tokens."""
    cache = DynamicCache(config=model.config)
    model(tokens, cache_params=cache, use_cache=True)
    return cache


def states(cache: DynamicCache) -> tuple[list, list]:
    """The convolution's states of all layers, and those of the recurrence."""
    return [layer.conv_states[0] for layer in cache.layers], [layer.recurrent_states[0] for layer in cache.layers]


@torch.inference_mode()
def blocks_one_by_one(model: PreTrainedModel, hidden: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    for layer in model.backbone.layers:
        hidden = layer(hidden[:, None], cache_params=cache)[:, 0]  # [B, H]
    return hidden


@torch.inference_mode()
def assert_steps_are_the_blocks(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Bit for bit, states included; three tokens, so that a wrong state shows."""
    separate, fused, step = prefilled(model, tokens), prefilled(model, tokens), step_of(model)
    for _ in range(3):
        hidden = torch.randn(len(tokens), model.config.hidden_size)
        expected = blocks_one_by_one(model, hidden, separate)
        step(hidden, *states(fused))
        assert torch.equal(hidden, expected)
    for actual, expected in zip(states(fused), states(separate), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@contextmanager
def by_reference() -> Iterator[None]:
    """Steps within the block are those of the references."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mamba1_step", "mamba2_step"):
            patch.setattr(ops, name, getattr(reference, name))
        yield


def tolerance(variant: str) -> float:
    """Of a relative difference to the reference: an int8 value between two integers may fall to either."""
    return 1e-4 if variant.endswith("a16") else 2e-2


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())
