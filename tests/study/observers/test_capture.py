"""Capturing a float model's activations: the taps and layers asked for, as calibration sees them."""

import pytest
import torch

from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import HEAD_TAP, install_float_mixers, tap_modules
from quamba.calibration.recording import open_activations
from quamba.calibration.run import CalibrationText
from quamba.errors import QuambaError
from quamba.nn.mamba1 import TAPS
from quamba.observers.histogram import SignedHistogram
from quamba.pipeline.transform import transform
from quamba.study.observers.capture import capture, check_taps


@pytest.fixture
def text(tmp_path) -> CalibrationText:
    """6 sequences of 10 words that the tiny tokenizer knows, read 4 at a time."""
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{1 + number * number % 49}" for number in range(400)))
    return CalibrationText(str(file), data_num=6, seqlen=10, seed=1, batch_size=4)


@torch.inference_mode()
def tapped(model, windows, batch_size: int) -> dict[str, list[torch.Tensor]]:
    """Tap name -> its value in each batch, recorded by hand."""
    values = {name: [] for name in tap_modules(model, head=True)}
    for name, module in tap_modules(model, head=True).items():
        module.register_forward_hook(lambda _m, _a, out, name=name: values[name].append(out.clone()))
    for batch in windows.split(batch_size):
        model.backbone(batch)
    return values


@pytest.mark.parametrize("rotate", [False, True])
def test_what_is_captured_is_what_calibration_sees(tiny_ssm, tiny_tokenizer, text, tmp_path, rotate):
    """The activations of the transformed model, the first batch of them whole and all of them in the histogram."""
    captured, by_hand = tiny_ssm(), tiny_ssm()
    capture(captured, tiny_tokenizer, text, tmp_path / "acts", rotate_residual=rotate, progress=False)
    install_float_mixers(by_hand)
    transform(by_hand, rotate)
    expected = tapped(by_hand, text.windows(tiny_tokenizer), text.batch_size)
    found = {tap.name: tap for tap in open_activations(tmp_path / "acts")}
    taps = Anatomy.of(captured).architecture.taps
    assert list(found) == [f"layers.{layer}.{tap}" for layer in (0, 1) for tap in taps]  # without the head's input
    for name, tap in found.items():
        first, second = expected[name]
        assert torch.equal(tap.values, first), name
        histogram = SignedHistogram()
        for batch in (first, second):
            histogram.update(batch)
        assert tap.histogram.count == histogram.count
        assert torch.equal(tap.histogram.positive.counts, histogram.positive.counts), name


@pytest.mark.parametrize(
    ("taps", "layers", "names"),
    [
        (["x", "out"], None, ["layers.0.x", "layers.0.out", "layers.1.x", "layers.1.out"]),
        (["B"], [1], ["layers.1.B"]),
        (None, [0], [f"layers.0.{tap}" for tap in TAPS]),
        ([HEAD_TAP], None, [HEAD_TAP]),
        (["x", HEAD_TAP], None, ["layers.0.x", "layers.1.x", HEAD_TAP]),
    ],
    ids=str,
)
def test_only_what_is_asked_for_is_kept(tiny_mamba, tiny_tokenizer, text, tmp_path, taps, layers, names):
    capture(tiny_mamba(), tiny_tokenizer, text, tmp_path / "acts", taps, layers, progress=False)
    assert [tap.name for tap in open_activations(tmp_path / "acts")] == names


def test_the_model_keeps_no_hooks_and_its_name_is_written(tiny_mamba, tiny_tokenizer, text, tmp_path):
    model = tiny_mamba()
    model.config.name_or_path = "somewhere/mamba-small"
    capture(model, tiny_tokenizer, text, tmp_path / "acts", ["x"], progress=False)
    assert not any(module._forward_hooks for module in model.modules())
    assert open_activations(tmp_path / "acts").model == "mamba-small"


@pytest.mark.parametrize(
    ("taps", "layers", "message"),
    [
        (["x", "y"], None, "unknown tap 'y': choose of in, conv_in, z, x, dt_rank, B, C, out, head_in"),
        (["B_in"], None, "this model has no tap 'B_in': choose of in, conv_in, z, x, dt_rank, B, C, out, head_in"),
        (None, [0, 2], "there is no layer 2: the model has layers 0 to 1"),
        (["x"], [-1], "there is no layer -1: the model has layers 0 to 1"),
        ([HEAD_TAP], [0], "tap head_in belongs to no layer: drop the layers, or the tap"),
        (["x", HEAD_TAP], [0], "tap head_in belongs to no layer"),
    ],
    ids=str,
)
def test_what_a_model_does_not_have_is_refused_before_it_is_changed(
    tiny_mamba, tiny_tokenizer, text, tmp_path, taps, layers, message
):
    model = tiny_mamba()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(QuambaError) as error:
        capture(model, tiny_tokenizer, text, tmp_path / "acts", taps, layers, progress=False)
    assert str(error.value).startswith(message)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "acts").exists()


def test_all_taps_and_layers_need_no_check():
    check_taps(None, None, 2)
    check_taps([*TAPS, HEAD_TAP], None, 2)
    check_taps(list(TAPS), [0, 1], 2)


def test_activations_are_never_mixed_with_earlier_ones(tiny_mamba, tiny_tokenizer, text, tmp_path):
    capture(tiny_mamba(), tiny_tokenizer, text, tmp_path / "acts", ["x"], [0], progress=False)
    with pytest.raises(QuambaError, match="acts holds activations already"):
        capture(tiny_mamba(), tiny_tokenizer, text, tmp_path / "acts", ["x"], [1], progress=False)


def test_a_broken_model_leaves_nothing_behind(tiny_mamba, tiny_tokenizer, text, tmp_path):
    model = tiny_mamba()
    model.backbone.layers[0].norm.weight.fill_(3e38)  # finite: what it multiplies is not
    with pytest.raises(QuambaError, match=r"^tap layers\.0\.conv_in: .* NaN or infinity"):
        capture(model, tiny_tokenizer, text, tmp_path / "acts", progress=False)
    assert list((tmp_path / "acts").iterdir()) == []
