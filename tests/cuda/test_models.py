"""Tiny quantized models with every op replaced by its CUDA kernel: prefill and steps say what the CPU's kernels say."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from quamba import ops
from quamba.decoder import Decoder
from quamba.ops.schemas import SCHEMAS
from tests.nn.steps import quantized, relative_error
from tests.scheme_variants import TABLES, calibrates
from tests.tiny_falcon_mamba import tiny_falcon_mamba

SEVERAL_CHUNKS = 70  # tokens, for the CUDA scans


class NoCpuKernels(TorchDispatchMode):
    """An op that reaches a CPU kernel of ours within it is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace != "quamba", func
        return func(*args, **kwargs or {})


@pytest.fixture(params=["mamba", "falcon_mamba", "mamba2"])
def family(request) -> str:
    return request.param


@pytest.fixture
def build(tiny_mamba, tiny_mamba2, family):
    """A function that builds the family's tiny model in a variant, embedding and head included."""
    builder = {"mamba": tiny_mamba, "falcon_mamba": tiny_falcon_mamba, "mamba2": tiny_mamba2}[family]
    return lambda variant, tables="both": quantized(builder(), variant, **TABLES[tables])


def decoded(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """The logits behind the prompt and behind each later token of ids [B, L]: [B, 1 + L - prompt, V]."""
    decoder = Decoder(model)
    logits = [decoder.prefill(ids[:, :prompt]), *(decoder.step(ids[:, at]) for at in range(prompt, ids.shape[1]))]
    return torch.stack(logits, dim=1)


def with_cuda_kernels(call):
    with pytest.MonkeyPatch.context() as patch:
        for name in SCHEMAS:
            patch.setattr(ops, name, getattr(torch.ops.quamba_emulated, name))
        with NoCpuKernels():
            return call()


def assert_same_logits(model, ids: torch.Tensor, prompt: int, variant: str) -> None:
    """Up to sums in another order; int8 values may tip over, which moves logits by some steps of a quantizer."""
    expected = decoded(model, ids, prompt)
    actual = with_cuda_kernels(lambda: decoded(model, ids, prompt))
    assert relative_error(actual, expected) < (2e-2 if calibrates(variant.removesuffix(" int8 states")) else 1e-4)


@pytest.mark.parametrize("variant", ["w8a8", "w4a8", "w4a16", "w8a16", "w8a8 dynamic", "w4a8 dynamic"])
def test_logits_are_those_of_the_cpus_kernels(build, tokens, variant):
    assert_same_logits(build(variant), tokens, 9, variant)


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_a_prompt_of_several_chunks(build, variant):
    ids = torch.randint(0, 60, (1, SEVERAL_CHUNKS + 2))
    assert_same_logits(build(variant, "4 and 8"), ids, SEVERAL_CHUNKS, variant)


@pytest.mark.parametrize("variant", ["w8a8 int8 states", "w4a8 dynamic int8 states"])
def test_int8_states(tiny_mamba2, tokens, variant):
    assert_same_logits(quantized(tiny_mamba2(), variant, **TABLES["both"]), tokens, 9, variant)


@torch.inference_mode()
def test_a_float_model_on_our_float_ops(tiny_ssm, tokens):
    """What calibration runs."""
    model = tiny_ssm()
    Decoder(model)  # its mixers are ours from here on
    torch.testing.assert_close(
        with_cuda_kernels(lambda: model(tokens).logits), model(tokens).logits, rtol=1e-4, atol=1e-4
    )
