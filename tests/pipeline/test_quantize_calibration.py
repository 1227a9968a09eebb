"""What a quantization is calibrated on: text, token ids or an earlier result; and the activations that are kept."""

from dataclasses import asdict, replace

import pytest
import torch

import quamba
from quamba import CalibrationText, QuambaError
from quamba.calibration.recording import open_activations
from tests.pipeline.test_quantize import ALL_OPTIONS, WINDOWS, given, logits, quantize, same_state, state

# --- what it is calibrated on ---


def test_text_is_read_with_the_models_tokenizer(tiny_mamba, tiny_tokenizer, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{1 + number * number % 49}" for number in range(400)))
    text = CalibrationText(str(file), data_num=6, seqlen=10, seed=2)
    from_text = quamba.quantize(tiny_mamba(), tiny_tokenizer, calibration=text, progress=False)
    windows = text.windows(tiny_tokenizer)
    from_ids = quamba.quantize(tiny_mamba(), None, calibration=windows, progress=False)
    results = [replace(model.quamba_calibration, seconds=0, text=None) for model in (from_text, from_ids)]
    assert results[0] == results[1]
    assert from_text.quamba_calibration.text == asdict(text)


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=given)
def test_an_earlier_result_gives_the_same_model(tiny_ssm, tokens, options):
    model = quantize(tiny_ssm(), observer="mse", **options)
    result = model.quamba_calibration
    again = quantize(tiny_ssm(), calibration=result, **options)
    assert again.quamba_calibration is result
    assert torch.equal(logits(again, tokens), logits(model, tokens))


def test_an_earlier_result_is_refused_where_it_does_not_fit(tiny_mamba):
    result = quantize(tiny_mamba(), observer="mse").quamba_calibration
    for model, options, message in [
        (tiny_mamba(seed=1), {}, "belongs to another model"),
        (tiny_mamba(), {"rotate_residual": True}, "or to other transforms of it"),
        (tiny_mamba(), {"quantize_lm_head": True}, "no scale for head_in"),
        (tiny_mamba(), {"observer": "percentile"}, "observer 'mse' at tap x, not 'percentile'"),
        (tiny_mamba(), {"observer": "mse", "observer_options": {"mse": {"clip_ratio": 0.9}}}, "observer options"),
    ]:
        with pytest.raises(QuambaError, match=message):
            quantize(model, calibration=result, **options)
    quantize(tiny_mamba(), calibration=result, observer="mse")


def test_without_the_head_a_result_with_its_tap_serves_too(tiny_mamba):
    result = quantize(tiny_mamba(), quantize_lm_head=True).quamba_calibration
    quantize(tiny_mamba(), calibration=result, observer="mse")


def test_float_activations_need_no_calibration(tiny_mamba):
    assert quamba.quantize(tiny_mamba(), None, "w8a16", quantize_lm_head=True).quamba_calibration is None


@pytest.mark.parametrize(
    "argument",
    [
        {"observer": "mse"},
        {"observer_options": {"mse": {"clip_ratio": 0.9}}},
        {"calibration": torch.zeros(1, 2, dtype=torch.int64)},
        {"save_activations": "acts"},
    ],
    ids=lambda argument: next(iter(argument)),
)
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_float_activations_take_no_calibration(tiny_mamba, scheme, argument):
    model = tiny_mamba()
    before = state(model)
    with pytest.raises(QuambaError, match=f"{next(iter(argument))} does nothing with scheme {scheme}: its activations"):
        quamba.quantize(model, None, scheme, **argument)
    assert same_state(before, model)


def test_taps_with_a_scale_per_token_are_not_watched(tiny_mamba, tmp_path):
    result = quantize(
        tiny_mamba(), dynamic=True, quantize_lm_head=True, save_activations=tmp_path / "acts"
    ).quamba_calibration
    static = {"conv_in", "z", "x", "dt_rank", "B", "C"}
    assert set(result.observer) == static
    assert {name.rsplit(".", 1)[-1] for name in result.taps} == static
    assert [tap.name for tap in open_activations(tmp_path / "acts")] == list(result.taps)
    with pytest.raises(QuambaError, match="tap out has no observer where scales are dynamic"):
        quantize(tiny_mamba(), dynamic=True, observer="out=mse")


def test_a_static_result_serves_dynamic_scales_and_other_weights_but_not_the_reverse(tiny_mamba, tokens):
    static, dynamic = quantize(tiny_mamba()).quamba_calibration, {"scheme": "w4a8", "dynamic": True}
    fresh = quantize(tiny_mamba(), **dynamic)
    assert torch.equal(logits(quantize(tiny_mamba(), static, **dynamic), tokens), logits(fresh, tokens))
    with pytest.raises(QuambaError, match=r"no scale for layers\.0\.in, .* made for dynamic scales"):
        quantize(tiny_mamba(), fresh.quamba_calibration, scheme="w4a8")


# --- activations that are kept ---


def test_the_activations_that_calibration_saw_may_be_kept(tiny_ssm, tokens, tmp_path):
    """Their extremes over all batches are those of the calibration; the model is the same as without."""
    model = tiny_ssm()
    model.config.name_or_path = "models/mamba-small"
    quantize(model, observer="all=minmax", quantize_lm_head=True, save_activations=tmp_path / "acts")
    result = model.quamba_calibration
    saved = open_activations(tmp_path / "acts")
    assert saved.model == "mamba-small"
    assert [tap.name for tap in saved] == list(result.taps)
    assert "head_in" in result.taps
    for tap in saved:
        assert tap.values.shape[:2] == WINDOWS.shape
        assert tap.values.dtype == torch.float32
        assert tap.histogram.count == tap.values.numel()  # one batch is all there is
        assert max(tap.histogram.positive.peak, tap.histogram.negative.peak) == result.taps[tap.name].max
        assert float(tap.values.abs().max()) == result.taps[tap.name].max
    without = quantize(tiny_ssm(), observer="all=minmax", quantize_lm_head=True)
    assert torch.equal(logits(without, tokens), logits(model, tokens))


def test_the_first_batch_is_kept_and_all_are_counted(tiny_mamba, tmp_path):
    windows = torch.randint(0, 60, (20, 5), generator=torch.Generator().manual_seed(5))
    quantize(tiny_mamba(), windows, save_activations=str(tmp_path / "acts"))
    batch_size = CalibrationText().batch_size
    assert batch_size < 20
    for tap in open_activations(tmp_path / "acts"):
        assert tap.values.shape[:2] == (batch_size, 5)
        assert tap.histogram.count == 20 * 5 * tap.values.shape[-1]


def test_a_reused_calibration_has_no_activations(tiny_mamba, tmp_path):
    result = quantize(tiny_mamba()).quamba_calibration
    model = tiny_mamba()
    before = state(model)
    with pytest.raises(QuambaError, match="save_activations needs a calibration run, and an earlier result is reused"):
        quantize(model, result, save_activations=tmp_path / "acts")
    assert not (tmp_path / "acts").exists()
    assert same_state(before, model)


def test_activations_are_never_mixed_with_earlier_ones(tiny_mamba, tmp_path):
    quantize(tiny_mamba(), save_activations=tmp_path)
    model = tiny_mamba()
    before = state(model)
    with pytest.raises(QuambaError, match=rf"{tmp_path} holds activations already"):
        quantize(model, save_activations=tmp_path)
    assert same_state(before, model)


def test_a_broken_model_leaves_no_activations(tiny_mamba, tmp_path):
    model = tiny_mamba()
    model.backbone.layers[0].norm.weight.fill_(3e38)  # finite: what it multiplies is not
    with pytest.raises(QuambaError, match=r"layers\.0 gives NaN or infinity on the calibration text"):
        quantize(model, save_activations=tmp_path)
    assert list(tmp_path.iterdir()) == []
