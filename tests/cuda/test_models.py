"""Tiny models by CUDA kernels: prefill and steps say what the CPU says, and quantizing gives the same model."""

from copy import deepcopy

import pytest
import torch

from quamba.generation.decoder import Decoder
from quamba.weights.method import WeightMethod
from tests.nn.steps import quantized, relative_error
from tests.scheme_variants import TABLES, calibrates
from tests.tiny_falcon_mamba import tiny_falcon_mamba

from .platforms import cuda_kernels

SEVERAL_CHUNKS = 70  # tokens, for the CUDA scans


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


def assert_same_logits(model, ids: torch.Tensor, prompt: int, variant: str, device: str) -> None:
    """Up to sums in another order; int8 values may tip over, which moves logits by some steps of a quantizer."""
    there = deepcopy(model).to(device)
    expected = decoded(model, ids, prompt)
    with cuda_kernels(device):
        actual = decoded(there, ids.to(device), prompt).cpu()
    assert relative_error(actual, expected) < (2e-2 if calibrates(variant.removesuffix(" int8 states")) else 1e-4)


@pytest.mark.parametrize("variant", ["w8a8", "w4a8", "w4a16", "w8a16", "w8a8 dynamic", "w4a8 dynamic"])
def test_logits_are_those_of_the_cpus_kernels(build, tokens, variant, device):
    assert_same_logits(build(variant), tokens, 9, variant, device)


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_a_prompt_of_several_chunks(build, variant, device):
    ids = torch.randint(0, 60, (1, SEVERAL_CHUNKS + 2))
    assert_same_logits(build(variant, "4 and 8"), ids, SEVERAL_CHUNKS, variant, device)


@pytest.mark.parametrize("variant", ["w8a8 int8 states", "w4a8 dynamic int8 states"])
def test_int8_states(tiny_mamba2, tokens, variant, device):
    assert_same_logits(quantized(tiny_mamba2(), variant, **TABLES["both"]), tokens, 9, variant, device)


@torch.inference_mode()
def test_a_float_model_on_our_float_ops(tiny_ssm, tokens, device):
    """What calibration runs."""
    model = tiny_ssm()
    Decoder(model)  # its mixers are ours from here on
    there = deepcopy(model).to(device)
    with cuda_kernels(device):
        actual = there(tokens.to(device)).logits.cpu()
    torch.testing.assert_close(actual, model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "method"), [("w8a8", "rtn"), ("w4a8", "awq+gptq"), ("w8a8 dynamic", "gptq")])
def test_quantized_on_the_device_it_is_the_cpus_model(tiny_ssm, tokens, variant, method, device):
    """Calibration, transforms and rounding: scales up to the order of sums, so that few integers differ by one."""
    options = {"weights": WeightMethod(method), **TABLES["both"]}
    expected = quantized(tiny_ssm(), variant, **options)
    with cuda_kernels(device):
        actual = quantized(tiny_ssm().to(device), variant, **options)
    assert {tensor.device.type for tensor in actual.state_dict().values()} == {device}
    for name, tensor in actual.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.cpu(), expected.state_dict()[name], rtol=1e-3, atol=1e-6, msg=name)
    assert relative_error(decoded(actual.cpu(), tokens, 9), decoded(expected, tokens, 9)) < 2e-2
