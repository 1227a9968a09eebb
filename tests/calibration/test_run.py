"""Calibration: which observer watches which tap, what the taps' scales are made of, and results that are reused."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from quamba import numerics
from quamba.architectures.convert import HEAD_TAP, install_float_mixers, tap_modules
from quamba.calibration import watch
from quamba.calibration.defaults import DEFAULT_OBSERVERS, parse_observers
from quamba.calibration.recording import ActivationRecorder, open_activations
from quamba.calibration.run import (
    CalibrationResult,
    CalibrationText,
    calibrate,
    check_windows,
    default_text,
    model_fingerprint,
)
from quamba.calibration.watch import Calibrator
from quamba.errors import QuambaError
from quamba.nn.mamba1 import TAPS
from quamba.observers.per_tensor import Observer, create_observer, observer_names, register_observer
from quamba.text.data import EMBEDDED_MODELS, embedded_model_dir

NAMES = ["minmax", "percentile", "outlier_aware", "outlier_aware_adaptive", "mse"]


@pytest.fixture
def model(tiny_mamba):
    """A tiny float model on our mixers: what calibration runs on."""
    model = tiny_mamba()
    install_float_mixers(model)
    return model


@pytest.fixture
def windows() -> torch.Tensor:
    """Token ids [6, 16]."""
    return torch.randint(0, 60, (6, 16), generator=torch.Generator().manual_seed(2))


def run(model, windows, observers="minmax", **options) -> CalibrationResult:
    arguments = {"fingerprint": model_fingerprint(model), "batch_size": 4, "progress": False}
    return calibrate(model, windows, parse_observers(observers), **arguments | options)


@torch.inference_mode()
def tapped(model, windows, batch_size=4, head=False) -> dict[str, list[torch.Tensor]]:
    """Tap name -> its value in each batch, recorded by hand."""
    values = {name: [] for name in tap_modules(model, head)}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: values[name].append(out.clone()))
        for name, module in tap_modules(model, head).items()
    ]
    for batch in windows.split(batch_size):
        model.backbone(batch)
    for hook in hooks:
        hook.remove()
    return values


# --- which text ---


def test_an_embedded_model_has_a_quick_default_and_any_other_the_usual_one(tiny_mamba):
    model = tiny_mamba()
    assert default_text(model) == CalibrationText("pile", 512, 512)
    model.config.name_or_path = str(embedded_model_dir("mamba-tiny"))
    tiny = EMBEDDED_MODELS["mamba-tiny"]
    assert asdict(default_text(model)) == {
        "dataset": "stdlib",
        "data_num": tiny.calib_data_num,
        "seqlen": tiny.calib_seqlen,
        "seed": 0,
        "batch_size": tiny.batch_size,
        "data_dir": None,
        "sampling": "windows",
    }
    model.config.name_or_path = "somewhere/else/mamba-tiny"  # the name alone makes no embedded model
    assert default_text(model) == CalibrationText()


def test_a_text_gives_the_same_windows_for_the_same_seed(tmp_path, tiny_tokenizer):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{1 + number * number % 49}" for number in range(400)))
    text = CalibrationText(str(file), data_num=5, seqlen=7, seed=3)
    assert text.windows(tiny_tokenizer).shape == (5, 7)
    assert torch.equal(text.windows(tiny_tokenizer), text.windows(tiny_tokenizer))
    assert not torch.equal(text.windows(tiny_tokenizer), replace(text, seed=4).windows(tiny_tokenizer))
    assert text.describe() == f"5 sequences of 7 tokens of {file}, seed 3"


def test_a_file_that_has_changed_is_read_again(tmp_path, tiny_tokenizer):
    file = tmp_path / "text.txt"
    text = CalibrationText(str(file), data_num=2, seqlen=7)
    file.write_text("w1 w2 w3 " * 40)
    before = text.windows(tiny_tokenizer)
    file.write_text("w4 w5 w6 w7 " * 40)
    assert not torch.equal(text.windows(tiny_tokenizer), before)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (torch.zeros(2, 3), "int64 [count, seqlen], got torch.float32 [2, 3]"),
        (torch.zeros(3, dtype=torch.int64), "got torch.int64 [3]"),
        (torch.zeros(0, 3, dtype=torch.int64), "got torch.int64 [0, 3]"),
        (torch.tensor([[1, 96]]), "token id 96, the model's vocabulary has 96"),
        (torch.tensor([[1, -1]]), "token id -1, the model's vocabulary has 96"),
    ],
    ids=str,
)
def test_what_is_no_token_ids_is_refused(windows, message):
    with pytest.raises(QuambaError) as error:
        check_windows(windows, 96)
    assert message in str(error.value)


# --- the taps ---


def hooks_of(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_hooks_are_gone_after_the_block(model, windows):
    with Calibrator(model, DEFAULT_OBSERVERS, n_bits=8, head=True, options={}) as calibrator:
        assert hooks_of(model) == len(calibrator._modules) == 2 * len(TAPS) + 1
        model.backbone(windows)
    assert hooks_of(model) == 0
    assert set(calibrator.results()) == set(tap_modules(model, head=True))


def test_the_hooks_are_gone_after_an_error(model):
    with pytest.raises(KeyboardInterrupt), Calibrator(model, DEFAULT_OBSERVERS, n_bits=8, head=True, options={}):
        raise KeyboardInterrupt
    assert hooks_of(model) == 0


def test_a_tap_that_is_not_a_number_is_named(model, windows):
    model.backbone.layers[1].mixer.x_proj.weight[0, 0] = math.nan  # the first row makes dt
    with pytest.raises(QuambaError, match=r"^tap layers\.1\.dt_rank: .* NaN or infinity"):
        run(model, windows)
    assert hooks_of(model) == 0


def test_no_logits_are_computed(model, windows):
    def refuse(*_):
        raise AssertionError("the head ran")

    model.lm_head.register_forward_pre_hook(refuse)
    run(model, windows, head=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_scale_is_that_of_an_observer_fed_by_hand(model, windows, name):
    values = tapped(model, windows, head=True)
    result = run(model, windows, f"all={name}", head=True)
    assert set(result.taps) == set(values) == {f"layers.{i}.{tap}" for i in (0, 1) for tap in TAPS} | {HEAD_TAP}
    for tap, batches in values.items():
        observer = create_observer(name, n_bits=8)
        for window in torch.cat(batches).split(1):
            observer.update(window)
        assert result.taps[tap].scale == float(observer.get_quantization_parameters()[0]), tap
        assert result.taps[tap].max == max(float(batch.abs().max()) for batch in batches), tap
        assert result.taps[tap].observer == name
        assert result.scales()[tap] == observer.get_quantization_parameters()[0]


def test_a_recorder_is_given_what_the_observers_are(model, windows, tmp_path):
    """The first batch of the taps that it wants, and every batch in its histograms; the result is the same."""
    values = tapped(model, windows, head=True)
    recorder = ActivationRecorder(tmp_path, "tiny", taps=["x", HEAD_TAP])
    result = run(model, windows, "all=mse", head=True, recorder=recorder)
    found = {tap.name: tap for tap in open_activations(tmp_path)}
    assert list(found) == ["layers.0.x", "layers.1.x", HEAD_TAP]
    for name, tap in found.items():
        assert torch.equal(tap.values, values[name][0]), name
        assert tap.histogram.count == sum(batch.numel() for batch in values[name])
        assert tap.histogram.magnitudes().quantile(1.0) == pytest.approx(result.taps[name].max)
    assert replace(result, seconds=0) == replace(run(model, windows, "all=mse", head=True), seconds=0)


def test_a_recorder_keeps_nothing_of_a_calibration_that_fails(model, windows, tmp_path):
    @register_observer("odd")
    class Odd(Observer):
        _update = _merge = lambda self, x: None

        def _parameters(self):  # asked for only when all batches were seen
            return torch.tensor(0.0), torch.tensor(0.0)

    with pytest.raises(QuambaError, match="observer 'odd' gave the scale 0"):
        run(model, windows, "odd", recorder=ActivationRecorder(tmp_path, "tiny"))
    assert list(tmp_path.iterdir()) == []
    assert hooks_of(model) == 0


def test_options_reach_the_observer_that_they_name(model, windows):
    options = {"percentile": {"percentile_alpha": 0.5}}
    narrow, wide = (run(model, windows, "all=minmax,x=percentile", options=o) for o in (options, {}))
    assert narrow.taps["layers.0.x"].scale < wide.taps["layers.0.x"].scale
    assert narrow.taps["layers.0.z"] == wide.taps["layers.0.z"]  # min-max
    assert narrow.observer_options == options


@pytest.mark.parametrize("name", NAMES)
def test_saturation_and_sqnr_are_those_of_the_quantized_values(model, windows, name):
    values = tapped(model, windows)
    for tap, found in run(model, windows, f"all={name}").taps.items():
        x = torch.cat(values[tap]).double()
        q = numerics.quantize(x, found.scale)
        noise = (x - numerics.dequantize(q, found.scale).double()).square().sum()
        assert found.sqnr_db == pytest.approx(float(10 * torch.log10(x.square().sum() / noise)), abs=0.05), tap
        saturated = ((x > 127.5 * found.scale) | (x < -128.5 * found.scale)).double().mean()
        assert found.saturated_share == pytest.approx(float(saturated), abs=0.5 / x.numel()), tap


def test_every_channel_is_in_the_sample_that_saturation_is_measured_on(model, monkeypatch):
    """A stride of 16 through 64 channels would see four of them, and miss the outlier channel."""
    monkeypatch.setattr(watch, "DIAGNOSTIC_SAMPLE", 64 * 64)
    model.backbone.layers[0].mixer.conv1d.weight[5] *= 1000
    windows = torch.randint(0, 60, (4, 256), generator=torch.Generator().manual_seed(2))  # x: 2**16 values
    options = {"outlier_aware": {"normal_ratio": 0.9}}
    result = run(model, windows, "outlier_aware", options=options)
    x = torch.cat(tapped(model, windows)["layers.0.x"])
    tap = result.taps["layers.0.x"]
    only_outliers = (x[..., 5] > 1000 * tap.scale).float().mean() / 64  # the share of x that no other channel reaches
    assert tap.saturated_share > 0.9 * only_outliers > 0.001


def test_a_tap_without_values_but_zero_loses_nothing(model, windows):
    model.backbone.layers[0].mixer.x_proj.weight[:] = 0
    tap = run(model, windows).taps["layers.0.B"]
    assert tap.max == tap.saturated_share == 0
    assert tap.scale > 0
    assert tap.sqnr_db is None


def test_the_result_tells_what_was_run(model, windows):
    text = CalibrationText("mine.txt", 6, 16, seed=7)
    result = run(model, windows, "all=minmax,x=mse", text=text)
    assert result.tokens == 96
    assert result.text == asdict(text)
    assert result.observer == {tap: "mse" if tap == "x" else "minmax" for tap in TAPS}
    assert len(result.windows_sha256) == 64
    assert result.windows_sha256 != run(model, windows + 1).windows_sha256
    assert result.seconds > 0
    assert result.describe() == "reusing an earlier result on 96 tokens of mine.txt"


def test_the_same_windows_give_the_same_result(model, windows):
    first, second = (replace(run(model, windows, "all=mse"), seconds=0) for _ in range(2))
    assert first == second


def test_extremes_do_not_depend_on_the_batch_size(model, windows):
    small, large = (run(model, windows, "all=minmax", batch_size=size).scales() for size in (1, 6))
    for tap, scale in small.items():
        torch.testing.assert_close(scale, large[tap])


@pytest.mark.parametrize(
    ("scale", "message"), [([1.0, 2.0], "2 scales"), (math.nan, "the scale nan"), (0.0, "the scale 0")]
)
def test_a_plug_in_that_gives_no_scale_is_named(model, windows, scale, message):
    @register_observer("odd")
    class Odd(Observer):
        def _update(self, x):
            pass

        def _merge(self, other):
            pass

        def _parameters(self):
            return torch.tensor(scale), torch.tensor(0.0)

    with pytest.raises(QuambaError, match=rf"observer 'odd' gave {message}.* tap layers\.0\.x"):
        run(model, windows, "odd")


def test_these_are_the_names():
    assert observer_names() == NAMES
