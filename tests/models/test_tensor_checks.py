"""Every tensor whose values mean nothing is named, in float models and in quantized ones."""

import math

import pytest
import torch

import quamba
from quamba import QuambaError
from quamba.models.tensor_checks import check_tensors, unfit_tensors
from quamba.weights.method import WeightMethod
from tests.tiny_falcon_mamba import tiny_falcon_mamba
from tests.tiny_hybrids import HYBRIDS
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2

WINDOWS = torch.randint(0, 60, (2, 8), generator=torch.Generator().manual_seed(6))
MODELS = {"falcon": tiny_falcon_mamba, "mamba2": tiny_mamba2, "llama": tiny_llama, **HYBRIDS}
BROKEN = {"NaN": math.nan, "infinity": math.inf, "-infinity": -math.inf}


def quantize(model, scheme: str, **options):
    calibration = WINDOWS if scheme.endswith("a8") else None
    weights = WeightMethod("rtn")
    return quamba.quantize(model, None, scheme, calibration=calibration, weights=weights, progress=False, **options)


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", MODELS)
def test_quantize_names_every_tensor_that_is_not_finite(name, value):
    model = MODELS[name]()
    for parameter_name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter.view(-1)[-1] = BROKEN[value]
        with pytest.raises(QuambaError, match=f"^the model cannot be quantized: {parameter_name} holds {value[-8:]}:"):
            quantize(model, "w8a16")
        parameter.copy_(kept)
    quantize(model, "w8a16")


def test_several_are_counted():
    model = tiny_llama()
    for parameter in model.parameters():
        parameter.view(-1)[0] = math.nan
    count = len(list(model.parameters()))
    with pytest.raises(QuambaError, match=rf"embed_tokens\.weight holds NaN, .* and {count - 4} other tensors are"):
        check_tensors(model, "here", "do this")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_finite_values_of_any_size_and_layout_pass(dtype):
    model = tiny_llama(dtype=dtype)
    model.model.norm.weight.fill_(torch.finfo(dtype).max)  # whose sum is infinite
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.T.contiguous().T, requires_grad=False)
    assert not list(unfit_tensors(model))
    linear.weight[1, 2] = math.inf
    assert list(unfit_tensors(model)) == [("model.layers.0.mlp.up_proj.weight", "infinity")]


def test_a_state_matrix_whose_exponential_is_infinite_is_named():
    model = tiny_mamba2()
    model.backbone.layers[1].mixer.A_log[2] = 89
    assert list(unfit_tensors(model)) == [("backbone.layers.1.mixer.A_log", "89, whose exponential is infinite")]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w3a16"])
@pytest.mark.parametrize("name", ["falcon", "mamba2", "bamba"])
def test_a_quantized_model_names_scales_that_are_none(name, scheme):
    model = quantize(MODELS[name](), scheme, quantize_embedding=True, quantize_lm_head=True)
    assert not list(unfit_tensors(model))
    tensors = {name: t.detach() for name, t in model.state_dict().items() if t.is_floating_point()}
    for broken, tensor in tensors.items():
        kept = tensor.clone()
        for value in (math.nan, math.inf, 0.0, -1.0) if broken.endswith("_scale") else (math.nan, math.inf):
            tensor.view(-1)[-1] = value
            assert [found for found, _ in unfit_tensors(model)] == [broken], value
        tensor.copy_(kept)
    assert len(tensors) > 15


def test_a_quantized_model_names_zero_points_beyond_their_integers_and_growing_states():
    model = quantize(tiny_mamba2(), "w3a8")
    mixer = model.backbone.layers[0].mixer
    mixer.in_proj.weight_zero[0, 0] = 8
    mixer.A[1] = 0.5
    assert dict(unfit_tensors(model)) == {
        "backbone.layers.0.mixer.in_proj.weight_zero": "the zero point 8, beyond 7",
        "backbone.layers.0.mixer.A": "0.5, where only negative values let a state decay",
    }


def test_weights_that_are_tiled_are_read_as_files_hold_them():
    model = quantize(tiny_mamba2(), "w4a8", quantize_lm_head=True)
    model(WINDOWS)
    assert not list(unfit_tensors(model))


def test_tensors_without_data_are_left_out():
    assert not list(unfit_tensors(tiny_llama().to("meta")))
