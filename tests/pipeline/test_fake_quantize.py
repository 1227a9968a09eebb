"""Single taps quantized in a float model: exactly as the kernels would see them, and only within the block."""

import copy

import pytest
import torch

import quamba
from quamba import numerics
from quamba.architectures.convert import HEAD_TAP, install_float_mixers, tap_modules
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate, model_fingerprint
from quamba.errors import QuambaError
from quamba.nn.mamba2 import TAPS
from quamba.pipeline.fake_quantize import fake_quantized
from quamba.pipeline.transform import transform


@pytest.fixture
def model(tiny_mamba):
    """A tiny float model on our mixers."""
    model = tiny_mamba()
    install_float_mixers(model)
    return model


@torch.inference_mode()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits


def tapped(model, tokens) -> dict[str, torch.Tensor]:
    """Tap name -> what the rest of the model is given there."""
    values, modules = {}, tap_modules(model, head=True)
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: values.update({name: out.clone()}))
        for name, module in modules.items()
    ]
    logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return values


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["layers.1.x", "layers.1.out", HEAD_TAP])
def test_the_tap_gives_what_its_integers_stand_for_and_the_taps_before_it_are_untouched(model, tokens, name, bits):
    before, scale = tapped(model, tokens), torch.tensor(0.07)
    with fake_quantized(model, {name: scale}, bits) as same:
        assert same is model
        after = tapped(model, tokens)
    x = before[name]
    assert torch.equal(after[name], numerics.dequantize(numerics.quantize(x, scale, bits=bits), scale))
    assert not torch.equal(after[name], x)
    names = list(before)  # in the order in which the model computes them
    for earlier in names[: names.index(name)]:
        assert torch.equal(after[earlier], before[earlier]), earlier


def test_a_bfloat16_model_stays_one(tiny_mamba, tokens):
    model = tiny_mamba().to(torch.bfloat16)
    install_float_mixers(model)
    with fake_quantized(model, {"layers.0.in": torch.tensor(0.1)}):
        found = tapped(model, tokens)["layers.0.in"]
    assert found.dtype == torch.bfloat16
    steps = found.float() / 0.1
    torch.testing.assert_close(steps, steps.round(), rtol=0.01, atol=0)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_model_is_as_before_however_the_block_ends(model, tokens, error):
    expected = logits(model, tokens)
    scales = {name: torch.tensor(0.5) for name in tap_modules(model, head=True)}
    try:
        with fake_quantized(model, scales):
            assert hooks_of(model) == len(scales)
            assert not torch.equal(logits(model, tokens), expected)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert hooks_of(model) == 0
    assert torch.equal(logits(model, tokens), expected)


def test_no_tap_changes_nothing(model, tokens):
    expected = logits(model, tokens)
    with fake_quantized(model, {}):
        assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("name", ["layers.2.x", "layers.0.y", "x"])
def test_a_tap_that_the_model_lacks_is_named(model, name):
    scales = {"layers.0.x": torch.tensor(1.0), name: torch.tensor(1.0)}
    with pytest.raises(QuambaError, match=f"^the model has no tap {name}$"), fake_quantized(model, scales):
        raise AssertionError("the block ran")
    assert hooks_of(model) == 0


def test_all_taps_together_change_the_logits_about_as_much_as_the_int8_model_does(tiny_mamba, tokens):
    """The int8 model rounds its weights too: as many bits, so the same order."""
    windows = torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(5))
    model = tiny_mamba()
    expected = logits(model, tokens)
    quantized = quamba.quantize(copy.deepcopy(model), None, calibration=windows, observer="minmax", progress=False)
    install_float_mixers(model)
    fingerprint = model_fingerprint(model)
    transform(model, rotate_residual=False)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-5)
    result = calibrate(model, windows, parse_observers("minmax", head=False), fingerprint=fingerprint, progress=False)
    with fake_quantized(model, result.scales()):
        fake = logits(model, tokens)
    distance = float((fake - expected).norm())
    assert 0.3 < distance / float((logits(quantized, tokens) - expected).norm()) < 1.2


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_scales_of_groups_are_of_their_channels(tiny_mamba2, tokens, n_groups):
    """Those of B and C of Mamba2 as a calibration finds them, one for each SSD group, and one for each channel of x."""
    model = tiny_mamba2(n_groups=n_groups)
    install_float_mixers(model)
    observers = parse_observers("all=minmax", head=False, taps=TAPS)
    result = calibrate(model, tokens, observers, fingerprint="", progress=False)
    before, scales = tapped(model, tokens), {}
    for tap in ("B", "C"):
        scales[f"layers.0.{tap}"] = result.scales()[f"layers.0.{tap}"]
    scales["layers.1.x"] = torch.linspace(0.01, 0.1, model.config.num_heads * model.config.head_dim)
    for name, scale in scales.items():
        with fake_quantized(model, {name: scale}):
            after = tapped(model, tokens)[name]
        steps = scale.reshape(-1, 1)  # [groups, 1]
        x = before[name].unflatten(-1, (len(steps), -1))  # [B, L, groups, channels of a group]
        expected = numerics.dequantize(numerics.quantize(x, steps), steps).flatten(-2)
        assert torch.equal(after, expected)
        assert scale.numel() in (n_groups, 64)


def test_scales_that_do_not_split_the_channels_are_named(model, tokens):
    scales = {"layers.1.x": torch.full((7,), 0.1)}
    message = r"^tap layers\.1\.x has 64 channels, which do not split into its 7 scales$"
    with pytest.raises(QuambaError, match=message), fake_quantized(model, scales):
        logits(model, tokens)
    assert hooks_of(model) == 0
