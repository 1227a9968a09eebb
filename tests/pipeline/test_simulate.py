"""Simulated formats: next to what kernels compute where there are some, and any bits where there are none."""

import pytest
import torch
from torch import nn

import quamba
from quamba.errors import QuambaError
from quamba.pipeline.simulate import method_bits, simulate
from quamba.scheme.formats import FLOAT, TensorSpec
from quamba.scheme.simulation import Simulation, simulation_of
from quamba.weights.grid import Grid
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama

NEAREST = quamba.WeightMethod("rtn")


def windows(seed: int = 5) -> torch.Tensor:
    return torch.randint(0, 60, (8, 24), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    return model(windows(7)).logits


def simulated(model: nn.Module, formats, **options) -> torch.Tensor:
    options = {"weights": NEAREST, "calibration": windows(), "progress": False} | options
    return logits(simulate(model, None, formats, **options))


def quantized(model: nn.Module, scheme: str, **options) -> torch.Tensor:
    options = {"weights": NEAREST, "progress": False} | options
    return logits(quamba.quantize(model, None, scheme, calibration=windows(), **options))


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("weights", [NEAREST, quamba.WeightMethod("gptq")], ids=["rtn", "gptq"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_float_activations_give_what_the_quantized_model_computes(tiny_ssm, bits, weights):
    """But for the order of sums."""
    text = {} if weights is NEAREST else {"weight_text": windows()}
    real = quamba.quantize(tiny_ssm(), None, f"w{bits}a16", weights=weights, progress=False, **text)
    assert off(simulated(tiny_ssm(), f"w{bits}a16", weights=weights, **text), logits(real)) < 1e-4


@pytest.mark.parametrize("options", [{}, {"dynamic": True}], ids=["static", "dynamic"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_integer_activations_are_next_to_the_kernels(tiny_ssm, scheme, options):
    """Float sums in another order put values on another side between two integers: the errors are alike, not the same.

    Errors that have nothing in common would be 1.4 times as far from each other as from the float model.
    """
    formats = Simulation.parse(scheme, per_token=bool(options))
    real, floats = quantized(tiny_ssm(), scheme, **options), logits(tiny_ssm())
    found = simulated(tiny_ssm(), formats)
    assert off(found, real) < 1.2 * off(found, floats)
    assert off(found, floats) == pytest.approx(off(real, floats), rel=0.1)


def test_fewer_bits_lose_more(tiny_ssm):
    floats = logits(tiny_ssm())
    losses = [off(simulated(tiny_ssm(), f"w16a{bits}"), floats) for bits in (16, 8, 6, 4, 2)]
    assert losses[0] < 1e-4
    assert losses == sorted(losses) and losses[-1] > 4 * losses[1]


def test_one_tap_has_a_format_of_its_own(tiny_ssm):
    def loss(taps: dict) -> float:
        return off(simulated(tiny_ssm(), Simulation("mine", FLOAT, FLOAT, taps)), logits(tiny_ssm()))

    coarse, fine = {"x": TensorSpec(3)}, {"x": TensorSpec(8)}
    assert 1e-4 < loss(fine) < loss(coarse)
    assert loss({"out": TensorSpec(3, granularity="per_token")}) != loss({"out": TensorSpec(3)})


def test_a_model_without_mamba_blocks_rounds_the_inputs_of_its_linear_layers_by_token():
    floats = logits(tiny_llama())
    losses = [off(simulated(tiny_llama(), f"w16a{bits}"), floats) for bits in (8, 4)]
    assert 0 < losses[0] < 0.1 < losses[1]
    model = simulate(tiny_llama(), None, "w2a16", weights=NEAREST, progress=False)
    expected = Grid(2, False, 128).nearest(tiny_llama().model.layers[1].mlp.up_proj.weight).dequantized()
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, expected)


def test_a_hybrid_rounds_the_taps_of_its_blocks_and_the_inputs_of_the_rest():
    floats = logits(tiny_bamba())
    assert off(simulated(tiny_bamba(), "w16a8"), floats) < off(simulated(tiny_bamba(), "w16a4"), floats)
    model = simulate(tiny_bamba(), None, "w16a4", calibration=windows(), progress=False)
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert hooked == [name for name in linears if ".mamba." not in name and name != "lm_head"]


def test_a_simulated_model_is_marked(tiny_ssm, tmp_path):
    model = simulate(tiny_ssm(), None, "w4a16", weights=NEAREST, progress=False)
    assert simulation_of(model).name == "w4a16" and simulation_of(tiny_ssm()) is None
    for again in (lambda: simulate(model, None, "w8a16"), lambda: quamba.quantize(model, None)):
        with pytest.raises(QuambaError, match="simulate"):
            again()
    with pytest.raises(QuambaError, match="quantiz"):
        quamba.save(model, None, tmp_path / "model")


@pytest.mark.parametrize(
    ("formats", "options", "message"),
    [
        ("w4a16", {"observer": "mse"}, "no tap has a static scale here"),
        ("w8a8", {"observer": "best"}, "unknown observer 'best'"),
        ("w8a8", {"observer_options": {"mse": {}}, "observer": "all=minmax"}, "options for observer 'mse'"),
        (Simulation("mine", FLOAT, FLOAT, {"w": TensorSpec(4)}), {}, "unknown tap 'w'"),
        ("w4a16", {"weights": NEAREST, "weight_text": windows()}, "weight_text does nothing with the weight method"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_before_anything_changed(tiny_ssm, formats, options, message):
    model = tiny_ssm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(QuambaError, match=message):
        simulate(model, None, formats, calibration=windows(), progress=False, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("bits", "of"), [(16, 8), (8, 8), (7, 4), (5, 4), (4, 4), (3, 3), (2, 3)])
def test_the_weight_method_is_that_of_the_next_fewer_bits(bits, of):
    assert method_bits(Simulation.parse(f"w{bits}a16")) == of
