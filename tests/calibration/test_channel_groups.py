"""Scales by groups of heads and channels (Quamba2): what they are of, what they gain, and that they are reused."""

from dataclasses import replace

import pytest
import torch

import quamba
from quamba import CalibrationResult, QuambaError, numerics
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.channel_groups import ChannelGroups
from quamba.checkpoint import recipe_of
from quamba.observers.per_tensor import create_observer, observer_names
from quamba.weights.method import WeightMethod

RTN = WeightMethod("rtn")
# enough that the extremes of single channels are those of other text too
WINDOWS = torch.randint(0, 60, (32, 48), generator=torch.Generator().manual_seed(5))
GROUPS = ChannelGroups(2, 3)


def quantize(model, calibration=WINDOWS, **options):
    return quamba.quantize(
        model, None, calibration=calibration, progress=False, **{"weights": RTN, "group_heads": GROUPS} | options
    )


@torch.inference_mode()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits.float()


def relative_error(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.inference_mode()
def tapped(model, tap: str, layer: int = 0) -> torch.Tensor:
    """What a tap of a float model gives on the calibration text, [rows, L, channels]."""
    install_float_mixers(model)
    seen = []
    hook = model.backbone.layers[layer].mixer.taps[tap].register_forward_hook(lambda _m, _a, out: seen.append(out))
    model.backbone(WINDOWS)
    hook.remove()
    return torch.cat(seen)


def with_outliers(model):
    """The model with channels of x that are 30 times as large as the others, in every head its own."""
    for layer in model.backbone.layers:
        mixer = layer.mixer
        for head in range(mixer.num_heads):
            channel = head * mixer.head_dim + 3 * head + 1
            mixer.conv1d.weight[channel] *= 30
            mixer.out_proj.weight[:, channel] /= 30
    return model


# --- what the scales are of ---


def test_every_group_has_the_scale_of_its_own_channels(tiny_mamba2):
    """x's groups are those of the order; conv_in has the same, B and C one of each SSD group, the others one."""
    model = quantize(tiny_mamba2(n_groups=2), observer="all=minmax")
    order = model.quamba_calibration.channel_orders()[1]
    mixer = model.backbone.layers[1].mixer
    for tap in ("x", "conv_in"):
        values = tapped(tiny_mamba2(n_groups=2), tap, layer=1)[..., order.permutation()]  # in the model's order
        groups, scale = order.group_id.flatten(), getattr(mixer, f"{tap}_scale")
        assert len(scale.unique()) == order.groups == 2 * 2 * 3
        for group in range(order.groups):
            expected = create_observer("minmax")
            expected.update(values[..., groups == group])
            torch.testing.assert_close(
                scale[groups == group], expected.get_quantization_parameters()[0].expand(int((groups == group).sum()))
            )
    for tap in ("B", "C"):
        values = tapped(tiny_mamba2(n_groups=2), tap, layer=1).unflatten(-1, (2, -1))
        expected = numerics.symmetric_scale(values.abs().amax(dim=(0, 1, 3)))
        torch.testing.assert_close(getattr(mixer, f"{tap}_scale"), expected)
    for tap in ("in", "z", "B_in", "C_in", "out"):
        assert getattr(mixer, f"{tap}_scale").shape == ()


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_B_and_C_have_a_scale_of_each_ssd_group_without_head_groups_too(tiny_mamba2, n_groups):
    model = quantize(tiny_mamba2(n_groups=n_groups), group_heads=None)
    taps, mixer = model.quamba_calibration.taps, model.backbone.layers[0].mixer
    for tap in ("B", "C"):
        assert mixer.B_scale.shape == (n_groups,)
        scale = taps[f"layers.0.{tap}"].scale
        assert isinstance(scale, float) if n_groups == 1 else len(set(scale)) == n_groups
    assert isinstance(taps["layers.0.x"].scale, float)
    assert model.quamba_calibration.orders is None


@pytest.mark.parametrize("observer", [None, *(f"all={name}" for name in observer_names())])
def test_every_observer_works_per_group(tiny_mamba2, tokens, observer):
    expected = logits(tiny_mamba2(), tokens)
    model = quantize(tiny_mamba2(), observer=observer, state_bits=8)
    mixer, result = model.backbone.layers[0].mixer, model.quamba_calibration
    groups = result.channel_orders()[0].groups
    assert len(result.taps["layers.0.state"].scale) == mixer.state_scale.numel()
    for tap in ("x", "conv_in"):
        assert len(result.taps[f"layers.0.{tap}"].scale) == groups
        assert result.observer[tap] == (observer or "").removeprefix("all=") or observer is None
        assert 0 <= result.taps[f"layers.0.{tap}"].saturated_share < 0.2
    assert mixer.state_scale.shape == (4, 16)
    assert relative_error(logits(model, tokens), expected) < (0.3 if observer and "outlier" in observer else 0.06)


def test_an_observers_arguments_reach_every_group(tiny_mamba2):
    tight, loose = (
        quantize(tiny_mamba2(), observer="x=minmax", observer_options={"minmax": {"clip_ratio": ratio}})
        for ratio in (0.5, 1.0)
    )
    torch.testing.assert_close(
        2 * tight.backbone.layers[0].mixer.x_scale, loose.backbone.layers[0].mixer.x_scale, rtol=1e-6, atol=0
    )


# --- the model stays, and outliers cost less ---


@pytest.mark.parametrize(
    "options", [{}, {"rotate_residual": True}, {"quantize_lm_head": True, "dynamic": True}], ids=str
)
@pytest.mark.parametrize("n_groups", [1, 2])
def test_logits_stay_near(tiny_mamba2, tokens, n_groups, options):
    expected = logits(tiny_mamba2(n_groups=n_groups), tokens)
    assert 0 < relative_error(logits(quantize(tiny_mamba2(n_groups=n_groups), **options), tokens), expected) < 0.06


@pytest.mark.parametrize("n_groups", [1, 2])
def test_outlier_channels_cost_less_where_they_have_scales_of_their_own(tiny_mamba2, tokens, n_groups):
    def model():
        return with_outliers(tiny_mamba2(n_groups=n_groups))

    expected = logits(model(), tokens)
    errors = [
        relative_error(logits(quantize(model(), group_heads=groups), tokens), expected)
        for groups in (None, ChannelGroups())
    ]
    assert errors[1] < 0.6 * errors[0]


def test_what_calibration_tells_of_a_group_is_better_too(tiny_mamba2):
    one, grouped = (
        quantize(with_outliers(tiny_mamba2()), observer="all=minmax", group_heads=groups).quamba_calibration.taps
        for groups in (None, ChannelGroups())
    )
    assert grouped["layers.0.x"].sqnr_db > one["layers.0.x"].sqnr_db + 6
    assert grouped["layers.0.x"].max == pytest.approx(one["layers.0.x"].max)  # its channels in another order
    assert grouped["layers.0.x"].max == pytest.approx(127 * max(grouped["layers.0.x"].scale))


def test_every_weight_method_reads_the_model_in_its_new_order(tiny_mamba2, tokens):
    expected = logits(tiny_mamba2(), tokens)
    for method in ("gptq", "awq"):
        model = quantize(tiny_mamba2(), scheme="w4a8", weights=WeightMethod(method), weight_text=WINDOWS)
        assert 0 < relative_error(logits(model, tokens), expected) < 0.3


# --- results that are kept ---


@pytest.mark.parametrize("options", [{}, {"state_bits": 8}, {"state_bits": 8, "group_heads": None}], ids=str)
@pytest.mark.parametrize("n_groups", [1, 2])
def test_an_earlier_result_gives_the_same_model(tiny_mamba2, tokens, tmp_path, n_groups, options):
    model = quantize(tiny_mamba2(n_groups=n_groups), observer="mse", **options)
    file = tmp_path / "calibration.json"
    model.quamba_calibration.save(file)
    result = CalibrationResult.load(file)
    assert result == model.quamba_calibration
    again = quantize(tiny_mamba2(n_groups=n_groups), result, **options)
    assert again.quamba_calibration is result
    own, theirs = model.state_dict(), again.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_a_result_of_other_groups_is_refused(tiny_mamba2):
    result = quantize(tiny_mamba2()).quamba_calibration
    for groups in (None, ChannelGroups(), ChannelGroups(3, 2)):
        with pytest.raises(QuambaError, match="or to other transforms of it"):
            quantize(tiny_mamba2(), result, group_heads=groups)
    with pytest.raises(QuambaError, match=r"no scale for layers\.0\.state, .* or integer states"):
        quantize(tiny_mamba2(), result, state_bits=8)


def test_a_log_has_the_figures_without_the_orders(tiny_mamba2):
    result = quantize(tiny_mamba2()).quamba_calibration
    figures = result.figures()
    assert figures["taps"]["layers.0.x"]["scale"] == result.taps["layers.0.x"].scale
    assert "orders" not in figures and "group_id" not in figures["taps"]["layers.0.x"]
    assert set(result.to_dict()) - set(figures) == {"orders"}
    assert result.orders is not None and result.taps["layers.0.x"].group_id is not None  # it is unchanged


def test_a_saved_model_is_the_same_bit_for_bit(tiny_mamba2, tiny_tokenizer, tokens, tmp_path):
    model = quantize(tiny_mamba2(), state_bits=8)
    assert recipe_of(model).reordered
    assert recipe_of(model).describe().endswith("grouped heads, int8 SSM states")
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert recipe_of(loaded) == recipe_of(model)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_an_interrupted_run_goes_on_with_the_same_order_of_channels_only(tiny_mamba2, tokens, tmp_path):
    options = {"scheme": "w4a8", "weight_text": WINDOWS, "progress_dir": tmp_path / "run"}
    options["weights"] = WeightMethod("gptq", layer_batch_size=1)
    whole = quantize(tiny_mamba2(), **options)
    assert torch.equal(logits(quantize(tiny_mamba2(), resume=True, **options), tokens), logits(whole, tokens))
    for other in ({"group_heads": ChannelGroups()}, {"group_heads": None}, {"calibration": WINDOWS[1:]}):
        with pytest.raises(QuambaError, match="had another model: give the same options"):
            quantize(tiny_mamba2(), resume=True, **options | other)


# --- what is refused ---


@pytest.mark.parametrize("numbers", [(0, 4), (4, -1), (2.0, 4), (True, 4), ("4", 4)], ids=str)
def test_numbers_that_there_are_not_are_refused(numbers):
    with pytest.raises(QuambaError, match="is a whole number from 1 up"):
        ChannelGroups(*numbers)


def test_more_groups_than_there_are_channels_are_as_many_as_channels(tiny_mamba2, tokens):
    model = quantize(tiny_mamba2(), observer="x=minmax", group_heads=ChannelGroups(99, 99))
    x = tapped(tiny_mamba2(), "x").abs().amax(dim=(0, 1))
    order = model.quamba_calibration.channel_orders()[0]
    torch.testing.assert_close(model.backbone.layers[0].mixer.x_scale, numerics.symmetric_scale(x)[order.permutation()])


def test_more_groups_than_there_are_heads_or_channels_are_refused_where_they_are_asked_for(tiny_mamba2):
    model = tiny_mamba2()  # 4 heads in 2 SSD groups, of 16 channels each
    ChannelGroups(2, 16).check(model, ["head_groups", "channel_groups"])
    ChannelGroups(99, 99).check(model)
    ChannelGroups(99, 16).check(model, ["channel_groups"])
    with pytest.raises(QuambaError, match="head_groups 3 is too many: there are 2 heads in an SSD group, so give 2"):
        ChannelGroups(3, 16).check(model, ["head_groups"])
    with pytest.raises(QuambaError, match="channel_groups 17 is too many: there are 16 channels in a head, so give 16"):
        ChannelGroups(2, 17).check(model, ["head_groups", "channel_groups"])


def test_other_models_and_float_activations_have_no_groups(tiny_mamba, tiny_mamba2):
    with pytest.raises(QuambaError, match="group_heads is for Mamba2, whose blocks have heads, not for 'mamba'"):
        quantize(tiny_mamba())
    with pytest.raises(QuambaError, match="group_heads does nothing with scheme w8a16: its activations stay float"):
        quantize(tiny_mamba2(), calibration=None, scheme="w8a16")


def test_the_order_is_that_of_the_calibration_text(tiny_mamba2):
    results = [quantize(tiny_mamba2(), windows).quamba_calibration for windows in (WINDOWS, WINDOWS, WINDOWS.flip(0))]
    first, same, flipped = (replace(result, seconds=0, windows_sha256="") for result in results)
    assert first == same
    assert first.orders == flipped.orders  # maxima do not depend on the order of the windows
