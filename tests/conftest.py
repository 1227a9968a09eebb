"""Fixtures that several test files share."""

import os

# before torch is imported: threads that wait give up the core instead of spinning on it, which on a busy machine
# costs tiny ops many times their own time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("QUAMBA_CACHE", "off")  # tests leave the user's cache alone

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from quamba import plugins, registry


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test registers, and which plug-ins it loads, is forgotten after it."""
    before = registry.snapshot()
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))
    yield
    registry.restore(before)


@pytest.fixture
def tiny_mamba() -> Callable[..., MambaForCausalLM]:
    """A function that builds a small random Mamba: every tensor random, so that no term can hide behind a 0 or a 1."""

    def build(seed: int = 0, **options) -> MambaForCausalLM:
        sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3}
        torch.manual_seed(seed)
        model = MambaForCausalLM(MambaConfig(**sizes | options)).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias") and "dt_proj" not in name:
                parameter.normal_(std=0.2)
        return model

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 13] that every tiny model has."""
    return torch.randint(0, 60, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """50 whole-word tokens `<|endoftext|>`, `w1` ... `w49`; the id of a word is its number."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, 50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
