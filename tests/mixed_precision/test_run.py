"""The search for the scheme of every layer, from the float model to what is chosen."""

import copy

import pytest
import torch

import quamba
from quamba import QuambaError
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.channel_groups import ChannelGroups
from quamba.calibration.defaults import parse_observers
from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.run import MixedPrecisionSearch, search_schemes
from quamba.mixed_precision.sensitivity import sum_of_divergences
from quamba.mixed_precision.sizes import layer_sizes
from quamba.nn.mamba1 import TAPS as MAMBA1_TAPS
from quamba.nn.mamba2 import TAPS as MAMBA2_TAPS
from quamba.scheme.formats import get_scheme
from quamba.weights.method import WeightMethod
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(0, 60, (6, 16), generator=torch.Generator().manual_seed(5))
DEEP = {"num_hidden_layers": 4, "hidden_size": 64}


def search(model, budget: str = "7bits", schemes=("w4a8", "w8a8"), **options):
    taps = MAMBA1_TAPS if model.config.model_type == "mamba" else MAMBA2_TAPS
    observers = parse_observers(None, head=False, dynamic=options.get("dynamic", False), taps=taps)
    return search_schemes(
        model, WINDOWS, MixedPrecisionSearch(Budget.parse(budget), schemes, **options), observers, progress=False
    )


@pytest.mark.parametrize("bits", ["5.5", "6.5", "7.5"])
def test_the_layers_that_gain_most_stay_large(tiny_ssm, bits):
    found = search(tiny_ssm(**DEEP), bits)
    gains = [four - eight for four, eight in zip(*(found.losses[name] for name in ("w4a8", "w8a8")), strict=True)]
    large = {index for index, name in enumerate(found.assignment.schemes) if name == "w8a8"}
    assert large == set(sorted(range(4), key=lambda index: -gains[index])[: len(large)])
    assert 0 < len(large) < 4
    assert 8 * found.assignment.size <= float(bits) * found.weight_count


def test_a_loss_is_that_of_a_model_with_one_quantized_layer(tiny_ssm):
    """The same scales and integers as a quantization to nearest of that layer, on the same text."""
    found = search(tiny_ssm())
    floats = tiny_ssm()
    for layer, name in ((0, "w4a8"), (1, "w8a8")):
        quantized = quamba.quantize(
            tiny_ssm(), None, name, calibration=WINDOWS, weights=WeightMethod("rtn"), progress=False
        )
        single = copy.deepcopy(floats)
        install_float_mixers(single)
        single.backbone.layers[layer] = quantized.backbone.layers[layer]
        with torch.inference_mode():
            divergence = sum_of_divergences(floats(WINDOWS).logits, single(WINDOWS).logits) / WINDOWS.numel()
        assert found.losses[name][layer] == pytest.approx(divergence, rel=1e-2)


def test_sizes_are_those_of_the_float_layers(tiny_ssm):
    found = search(tiny_ssm())
    expected = layer_sizes(tiny_ssm().backbone.layers, {name: get_scheme(name) for name in ("w4a8", "w8a8")})
    assert (found.sizes, found.weight_count) == expected
    assert found.figures()["budget"] == "7bits"
    assert found.figures()["losses"] == {name: list(layers) for name, layers in found.losses.items()}


@pytest.mark.parametrize(
    "options", [{"dynamic": True}, {"rotate_residual": True}, {"group_size": 32}, {"dynamic": True, "group_size": 64}]
)
def test_the_rest_of_the_recipe_takes_part(tiny_ssm, options):
    plain, found = search(tiny_ssm(**DEEP), "8.5bits"), search(tiny_ssm(**DEEP), "8.5bits", **options)
    assert found.losses["w4a8"] != plain.losses["w4a8"]
    assert (found.sizes["w4a8"] > plain.sizes["w4a8"]) == ("group_size" in options)


def test_groups_of_heads_take_part(tiny_mamba, tiny_mamba2):
    plain, found = search(tiny_mamba2(**DEEP)), search(tiny_mamba2(**DEEP), group_heads=ChannelGroups(2, 2))
    assert found.losses["w8a8"] != plain.losses["w8a8"]
    with pytest.raises(QuambaError, match="group_heads is for Mamba2"):
        search(tiny_mamba(), group_heads=ChannelGroups())


def test_float_activations_need_no_observers(tiny_ssm):
    model = tiny_ssm(**DEEP)
    found = search_schemes(
        model, WINDOWS, MixedPrecisionSearch(Budget.parse("6"), ("w4a16", "w8a16")), observers={}, progress=False
    )
    assert set(found.assignment.schemes) == {"w4a16", "w8a16"}


def test_kinds_of_activations_may_be_mixed(tiny_ssm):
    """The budget counts weights alone: of two schemes of one size the better one is taken."""
    found = search(tiny_ssm(), "10bits", ("w8a8", "w8a16", "w4a8"))
    assert found.assignment.schemes == ("w8a16", "w8a16")


def test_the_same_search_finds_the_same(tiny_ssm):
    assert search(tiny_ssm()).figures() == search(tiny_ssm()).figures()


@pytest.mark.parametrize(
    ("build", "schemes", "budget", "message"),
    [
        (lambda tiny: tiny(), ("w4a8",), "5", "a search needs two schemes to choose from, got w4a8"),
        (lambda tiny: tiny(), ("w4a8", "w4a8"), "5", "a search needs two schemes"),
        (lambda tiny: tiny(), (), "5", "got none"),
        (lambda tiny: tiny(), ("w4a8", "best"), "5", "unknown scheme 'best'"),
        (lambda tiny: tiny(), ("w4a8", "w8a8"), "3", "the budget 3 is too small"),
        (lambda _: tiny_llama(), ("w4a16", "w8a16"), "5", "measures the blocks of Mamba models, not of 'llama'"),
    ],
)
def test_what_cannot_be_searched_is_told_before_the_slow_part(tiny_ssm, monkeypatch, build, schemes, budget, message):
    monkeypatch.setattr("quamba.mixed_precision.run.calibrate", None)
    with pytest.raises(QuambaError, match=message):
        search(build(tiny_ssm), budget, schemes)


def test_tensors_that_are_not_finite_are_named_and_a_shared_config_stays(tiny_ssm):
    model = tiny_ssm(tie_word_embeddings=True)
    model.backbone.layers[1].mixer.D[0] = torch.nan
    with pytest.raises(QuambaError, match=r"backbone\.layers\.1\.mixer\.D holds NaN"):
        search(model)
    model = tiny_ssm(tie_word_embeddings=True).train()
    config = model.config
    search(model, rotate_residual=True)
    assert config.tie_word_embeddings and not model.config.tie_word_embeddings and model.training
