"""One token through all blocks, composed of the CUDA kernels: the same as the CPU's fused step."""

from copy import deepcopy

import pytest
import torch

from quamba import ops
from quamba.ops.composed import COMPOSED
from tests.nn.steps import INT8_STATES, prefilled, quantized, relative_error, states, step_of, tolerance
from tests.scheme_variants import TABLES, VARIANTS
from tests.tiny_falcon_mamba import tiny_falcon_mamba

from .platforms import cuda_kernels

FAMILIES = ["mamba", "falcon_mamba", "mamba2"]
CASES = [(family, variant) for family in FAMILIES for variant in VARIANTS]
CASES += [("mamba2", variant) for variant in INT8_STATES]


@pytest.fixture
def build(tiny_mamba, tiny_mamba2):
    builders = {"mamba": tiny_mamba, "falcon_mamba": tiny_falcon_mamba, "mamba2": tiny_mamba2}
    return lambda family, **options: builders[family](**options)


@torch.inference_mode()
def assert_steps_agree(model, tokens, variant, device) -> None:
    """Hidden states, or logits where the step has the head, and the states that it leaves; three tokens."""
    cpu = states(prefilled(model, tokens))
    cuda = tuple([state.clone().to(device) for state in of_layers] for of_layers in cpu)
    step, cuda_step = step_of(model), step_of(deepcopy(model).to(device))
    for _ in range(3):
        hidden = torch.randn(len(tokens), model.config.hidden_size)
        copy = hidden.clone().to(device)
        expected = step(hidden, *cpu)
        with cuda_kernels(device):
            actual = cuda_step(copy, *cuda)
        assert relative_error(copy.cpu(), hidden) < tolerance(variant)
        assert (expected is None) == (actual is None)
        assert expected is None or relative_error(actual.cpu(), expected) < tolerance(variant)
    for actual, expected in zip(cuda[0] + cuda[1], cpu[0] + cpu[1], strict=True):
        assert relative_error(actual.cpu(), expected) < tolerance(variant)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_step_is_that_of_the_cpu(build, tokens, family, variant, device):
    limits = {"time_step_limit": (0.2, 0.9)} if family == "mamba2" else {}
    assert_steps_agree(
        quantized(build(family, state_size=16, use_bias=True, **limits), variant), tokens, variant, device
    )


@pytest.mark.parametrize("tables", ["both 8", "both 4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["w8a8", "w4a8 dynamic", "w4a16"])
def test_with_the_head_it_gives_the_cpus_logits(build, tokens, family, variant, tables, device):
    assert_steps_agree(quantized(build(family), variant, **TABLES[tables]), tokens[:1], variant, device)


@pytest.mark.parametrize("name", COMPOSED)
def test_a_gpus_steps_are_composed_of_its_kernels(name):
    if not ops.has_kernel("quantize", "cuda"):
        pytest.skip("built without nvcc")
    assert ops.has_kernel(name, "cuda")
