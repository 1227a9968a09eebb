"""Rounding a model layer by layer: what the statistics are of, what stays equal, and going on after an interruption."""

import copy

import pytest
import torch

import quamba
from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.pipeline.layerwise import round_weights
from quamba.scheme.formats import weight_spec
from quamba.weights.grid import Grid
from quamba.weights.method import WeightMethod, effective_weight
from quamba.weights.rounding import FlipOptions
from tests.tiny_llama import tiny_llama

SPEC = weight_spec(4, 32)
FLIPS = FlipOptions(outlier_percent=0.05, max_flip_percent=0.2)
METHODS = {
    "gptq": WeightMethod("gptq"),
    "awq": WeightMethod("awq"),
    "awq, flips": WeightMethod("awq", "mean", FLIPS),
    "awq+gptq, hessian": WeightMethod("awq+gptq", "hessian", FLIPS, clip=True),
}


@pytest.fixture
def windows():
    return torch.randint(0, 60, (10, 24), generator=torch.Generator().manual_seed(3))


def rounded(windows, method, build=tiny_llama, folder=None, batch_size=4, **options):
    model = build()
    result = round_weights(
        model, windows, SPEC, method, float_activations=True, batch_size=batch_size, folder=folder, progress=False
    )
    return model, result


def assert_same(one, other) -> None:
    assert len(one.layers) == len(other.layers)
    for a, b in zip(one.layers, other.layers, strict=True):
        assert set(a) == set(b)
        for name in a:
            for part in ("integers", "scale", "zero", "input_scales"):
                x, y = getattr(a[name], part), getattr(b[name], part)
                assert (x is None and y is None) or torch.equal(x, y), (name, part)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_linear_layer_gets_integers_and_the_weight_they_stand_for(windows, method):
    model, result = rounded(windows, method)
    for layer, integers in zip(model.model.layers, result.layers, strict=True):
        linears = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        assert set(integers) == linears
        for name in linears:
            assert torch.equal(layer.get_submodule(name).weight, effective_weight(integers[name], 32))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_is_the_same_every_time(windows, method):
    assert_same(rounded(windows, method)[1], rounded(windows, method)[1])


def test_linear_layers_that_share_an_input_share_a_vector(windows):
    layer = rounded(windows, METHODS["awq"])[1].layers[0]
    q, k, v = (layer[f"self_attn.{name}_proj"].input_scales for name in "qkv")
    assert q is not None and torch.equal(q, k) and torch.equal(k, v)


def test_an_output_error_is_less_than_that_of_rounding_to_nearest(windows):
    for name in ("gptq", "awq", "awq+gptq, hessian"):
        reports = rounded(windows, METHODS[name])[1].reports.values()
        ratios = [report["error"] / report["nearest_error"] for report in reports]
        assert sum(ratios) / len(ratios) < 1, name


def test_flips_of_nothing_change_nothing(windows):
    """Heuristic rounding off is the standard path, bit for bit."""
    off = rounded(windows, WeightMethod("awq"))[1]
    no_flips = rounded(windows, WeightMethod("awq", "mean", FlipOptions(max_flip_percent=0.0)))[1]
    assert_same(off, no_flips)


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_on_the_float_model_the_size_of_a_batch_of_layers_changes_nothing(windows, size):
    one = WeightMethod("awq+gptq", sequential=False)
    assert_same(
        rounded(windows, one)[1], rounded(windows, WeightMethod("awq+gptq", sequential=False, layer_batch_size=size))[1]
    )


def test_in_sequence_a_layer_reads_what_the_quantized_ones_before_it_give(windows):
    """The first layer's integers are those of the float model, the second's are not."""
    float_model = rounded(windows, WeightMethod("gptq", sequential=False))[1]
    result = rounded(windows, WeightMethod("gptq", layer_batch_size=1))[1]
    assert torch.equal(result.layers[0]["mlp.down_proj"].integers, float_model.layers[0]["mlp.down_proj"].integers)
    assert not torch.equal(result.layers[1]["mlp.down_proj"].integers, float_model.layers[1]["mlp.down_proj"].integers)


def test_a_mamba_is_rounded_at_its_taps(tiny_mamba, windows):
    def build():
        model = tiny_mamba()
        install_float_mixers(model)
        return model

    model, result = rounded(windows, METHODS["awq"], build)
    assert set(result.layers[0]) == {f"mixer.{name}_proj" for name in ("in", "x", "dt", "out")}
    assert result.scaled_inputs == ("mixer.in_proj", "mixer.x_proj", "mixer.dt_proj", "mixer.out_proj")
    nearest = Grid.of(SPEC).nearest(tiny_mamba().backbone.layers[0].mixer.in_proj.weight)
    assert not torch.equal(model.backbone.layers[0].mixer.in_proj.weight, nearest.dequantized())


def test_a_mamba2_is_rounded_at_its_taps(tiny_mamba2, windows):
    def build():
        model = tiny_mamba2()
        install_float_mixers(model)
        return model

    model, result = rounded(windows, METHODS["awq"], build)
    assert set(result.layers[0]) == {"mixer.in_proj", "mixer.out_proj"}
    assert result.scaled_inputs == ("mixer.in_proj", "mixer.out_proj")
    assert torch.equal(
        model.backbone.layers[0].mixer.in_proj.weight, effective_weight(result.layers[0]["mixer.in_proj"], 32)
    )


def test_an_input_that_is_no_number_is_named(windows):
    def build():
        model = tiny_llama()
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
        return model

    with pytest.raises(QuambaError, match=r"layers\.1\.mlp\.down_proj: the input of a layer holds NaN"):
        rounded(windows, METHODS["awq"], build)


def test_a_bias_does_not_move_alpha(windows):
    """It is the same in both outputs: here of the first layer, whose input it does not change."""
    plain, biased = tiny_llama(), tiny_llama(attention_bias=True)
    biased.load_state_dict(plain.state_dict(), strict=False)
    reports = [
        rounded(windows, METHODS["awq"], lambda model=model: copy.deepcopy(model))[1].reports
        for model in (plain, biased)
    ]
    name = "layers.0.self_attn.q_proj+k_proj+v_proj"
    assert reports[0][name]["alpha"] == reports[1][name]["alpha"]
    assert reports[0][name]["error"] == reports[1][name]["error"]


def test_a_plug_in_brings_a_rounding_rule(windows):
    quamba.load_plugin("examples/my_rounding.py")
    reports = rounded(windows, WeightMethod("rtn", "one_flip"))[1].reports.values()
    flips = [found for report in reports for found in report["flips"].values()]
    assert all(found["flips"] > 0 and found["per_row"]["100"] == 1 for found in flips)
