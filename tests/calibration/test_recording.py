"""Activations on disk: what a recorder writes is read again bit for bit, and what is no such folder is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quamba.calibration import recording
from quamba.calibration.recording import (
    ActivationRecorder,
    TapActivations,
    check_recordable,
    open_activations,
    synthetic_activations,
)
from quamba.errors import QuambaError
from quamba.nn.taps import split_tap_name, tap_name
from quamba.observers.histogram import SignedHistogram

DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}  # -> type of the bits


def batches(seed: int, count: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Batches [2, 5, 8] of ever other magnitude, with zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = [10.0**i * torch.randn(2, 5, 8, generator=generator) for i in range(count)]
    for x in values:
        x[0, 0, :2] = torch.tensor([0.0, -0.0])
    return [x.to(dtype) for x in values]


def record(directory: Path, stream: dict[str, list[torch.Tensor]], model: str = "tiny", **filters) -> Path:
    """Gives a recorder what it wants of the stream, as calibration does: batch by batch, tap by tap."""
    with ActivationRecorder(directory, model, **filters) as recorder:
        for i in range(max(map(len, stream.values()))):
            for name, values in stream.items():
                if recorder.wants(name):
                    recorder.update(name, values[i])
    return directory


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(DTYPES[x.dtype])


def everything_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


STREAM = {name: batches(seed) for seed, name in enumerate(["layers.0.x", "layers.0.out", "layers.2.x", "head_in"])}


# --- what is written is read again ---


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_the_first_batch_and_the_histogram_of_all_come_back_bit_for_bit(tmp_path, dtype):
    stream = {name: batches(seed, dtype=dtype) for seed, name in enumerate(STREAM)}
    found = {tap.name: tap for tap in open_activations(record(tmp_path, stream))}
    assert set(found) == set(stream)
    for name, values in stream.items():
        tap = found[name]
        assert tap.values.dtype == dtype
        assert torch.equal(bits(tap.values), bits(values[0])), name
        assert tap.outliers is None
        expected = SignedHistogram()
        for x in values:
            expected.update(x)
        assert tap.histogram.count == expected.count == 3 * values[0].numel()
        for side in ("positive", "negative"):
            mine, other = getattr(tap.histogram, side), getattr(expected, side)
            assert torch.equal(mine.counts, other.counts), name
            assert torch.equal(mine.sums.view(torch.int64), other.sums.view(torch.int64)), name
            assert (mine.mantissa_bits, mine.octave, mine.peak) == (other.mantissa_bits, other.octave, other.peak)


def test_a_histogram_that_was_read_goes_on_counting(tmp_path):
    (tap,) = open_activations(record(tmp_path, {"layers.0.x": batches(0)}))
    tap.histogram.update(torch.tensor([1e6, -3.0]))
    assert tap.histogram.count == 3 * 80 + 2
    assert tap.histogram.distribution().quantile(1.0) == pytest.approx(1e6, rel=1e-3)


def test_values_are_as_they_were_when_they_were_given(tmp_path):
    """A model may write into its activations afterwards; a view is written as what it shows."""
    buffer = torch.arange(24.0).view(4, 6)
    with ActivationRecorder(tmp_path, "tiny") as recorder:
        recorder.update("layers.0.x", buffer.t())
        recorder.update("layers.0.z", buffer[:, :2])
        buffer.zero_()
    x, z = open_activations(tmp_path)
    assert torch.equal(x.values, torch.arange(24.0).view(4, 6).t())
    assert torch.equal(z.values, torch.arange(24.0).view(4, 6)[:, :2])


def test_there_is_a_file_for_each_layer_one_for_the_head_and_nothing_else(tmp_path):
    record(tmp_path / "new" / "acts", STREAM)
    assert everything_in(tmp_path / "new" / "acts") == [
        "head.safetensors",
        "layer_000.safetensors",
        "layer_002.safetensors",
    ]


def test_the_metadata_says_what_is_in_a_file(tmp_path):
    stream = {"layers.7.x": batches(0, dtype=torch.bfloat16), "layers.7.B": [x[..., :3] for x in batches(1)]}
    with safe_open(record(tmp_path, stream) / "layer_007.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["format"] == recording.FORMAT
    assert metadata["model"] == "tiny"
    assert json.loads(metadata["layer"]) == 7
    taps = json.loads(metadata["taps"])
    assert list(taps) == ["x", "B"]
    assert (taps["x"]["shape"], taps["x"]["dtype"]) == ([2, 5, 8], "bfloat16")
    assert (taps["B"]["shape"], taps["B"]["dtype"]) == ([2, 5, 3], "float32")
    assert taps["x"]["histogram"]["count"] == 3 * 80
    parts = [f"{side}.{array}" for side in ("positive", "negative") for array in ("counts", "sums")]
    assert names == {name for tap in taps for name in (tap, *(f"{tap}.{part}" for part in parts))}


def test_what_was_read_knows_its_names(tmp_path):
    saved = open_activations(record(tmp_path, STREAM, model="mamba-tiny"))
    assert saved.model == "mamba-tiny"
    assert len(saved) == len(list(saved)) == len(list(saved)) == 4  # a second time too
    assert [(tap.layer, tap.tap) for tap in saved] == [(0, "x"), (0, "out"), (2, "x"), (None, "head_in")]
    assert [tap.name for tap in saved] == list(STREAM)
    assert [split_tap_name(tap.name) for tap in saved] == [(tap.layer, tap.tap) for tap in saved]
    assert [tap_name(*split_tap_name(name)) for name in STREAM] == list(STREAM)


def test_layers_come_in_the_order_of_their_numbers(tmp_path):
    numbers = [101, 2, 100, 10, 0, 99]
    record(tmp_path, {f"layers.{number}.x": batches(number, 1) for number in numbers})
    assert [tap.layer for tap in open_activations(tmp_path)] == sorted(numbers)
    assert [tap.layer for tap in open_activations(tmp_path, layers=[100, 2])] == [2, 100]


# --- only some taps and layers ---


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, list(STREAM)),
        ({"taps": ["x"]}, ["layers.0.x", "layers.2.x"]),
        ({"layers": [0]}, ["layers.0.x", "layers.0.out"]),
        ({"taps": ["out", "x"], "layers": [0, 2]}, ["layers.0.x", "layers.0.out", "layers.2.x"]),
        ({"taps": ["head_in"]}, ["head_in"]),
        ({"taps": ["x", "head_in"]}, ["layers.0.x", "layers.2.x", "head_in"]),
    ],
    ids=str,
)
def test_taps_and_layers_may_be_chosen_when_recording_and_when_reading(tmp_path, filters, names):
    assert [tap.name for tap in open_activations(record(tmp_path / "some", STREAM, **filters))] == names
    assert [tap.name for tap in open_activations(record(tmp_path / "all", STREAM), **filters)] == names


# --- a block that ends badly ---


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_left_by_an_error_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), ActivationRecorder(tmp_path, "tiny") as recorder:
        recorder.update("layers.0.x", batches(0)[0])
        raise error
    assert everything_in(tmp_path) == []
    record(tmp_path, STREAM)  # and the folder may be used again


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_names_its_tap(tmp_path, bad):
    x = batches(0)[0]
    x[1, 2, 3] = bad
    with (
        pytest.raises(QuambaError, match=r"^tap layers\.4\.dt_rank: .* NaN or infinity"),
        ActivationRecorder(tmp_path, "tiny") as recorder,
    ):
        recorder.update("layers.4.x", batches(0)[0])
        recorder.update("layers.4.dt_rank", x)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("no space left"), SafetensorError("no space left"), KeyboardInterrupt()])
def test_a_layer_that_cannot_be_written_takes_the_others_with_it(tmp_path, monkeypatch, error):
    def save(tensors, path, metadata=None):
        if metadata and json.loads(metadata["layer"]) == 2:
            raise error
        save_file(tensors, path, metadata)

    monkeypatch.setattr(recording, "save_file", save)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else QuambaError
    with pytest.raises(expected) as told:
        record(tmp_path, STREAM)
    assert everything_in(tmp_path) == []
    if expected is QuambaError:
        assert str(told.value) == f"cannot write {tmp_path / 'layer_002.safetensors'}: no space left"


def test_a_first_batch_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def save(*_):
        raise SafetensorError("no space left")

    monkeypatch.setattr(recording, "save_file", save)
    with pytest.raises(QuambaError, match=f"^cannot write to {tmp_path}: no space left"):
        record(tmp_path, STREAM)


# --- folders that cannot be recorded to ---


@pytest.mark.parametrize("name", ["head_in", "layers.3.x"])
def test_activations_are_never_mixed_with_earlier_ones(tmp_path, name):
    record(tmp_path, {name: batches(0)})
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for attempt in (check_recordable, lambda folder: ActivationRecorder(folder, "tiny")):
        with pytest.raises(QuambaError, match=rf"^{tmp_path} holds activations already \({file.name}\): name another"):
            attempt(tmp_path)
    assert file.read_bytes() == content


def test_other_files_may_be_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_file({"x": torch.ones(2)}, tmp_path / "model.safetensors")
    assert len(open_activations(record(tmp_path, STREAM))) == 4
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=f"^cannot write to {tmp_path / place}"):
        ActivationRecorder(tmp_path / place, "tiny")


# --- synthetic values ---


def test_synthetic_values_are_10000_normal_ones_and_100_outliers_of_either_sign():
    tap = synthetic_activations(seed=0, spread=0.25)
    assert isinstance(tap, TapActivations)
    assert (tap.name, tap.layer, tap.histogram) == ("synthetic", None, None)
    outliers, normal = tap.values[tap.outliers], tap.values[~tap.outliers]
    assert (normal.numel(), outliers.numel()) == (10_000, 100)
    assert float(normal.std()) == pytest.approx(0.25, rel=0.03)
    assert float(normal.mean()) == pytest.approx(0, abs=0.01)
    assert 5 <= outliers.abs().min() < 5.5
    assert 9.5 < outliers.abs().max() <= 10
    assert 30 < int((outliers > 0).sum()) < 70


def test_synthetic_values_have_the_spread_of_tap_x_unless_another_is_asked_for():
    tap = synthetic_activations(0)
    assert float(tap.values[~tap.outliers].std()) == pytest.approx(recording.SYNTHETIC_SPREAD, rel=0.03)
    wide = synthetic_activations(0, spread=2 * recording.SYNTHETIC_SPREAD)
    torch.testing.assert_close(wide.values[~wide.outliers], 2 * tap.values[~tap.outliers])
    assert torch.equal(wide.values[wide.outliers], tap.values[tap.outliers])


def test_the_seed_decides_the_synthetic_values():
    state = torch.get_rng_state()
    assert torch.equal(synthetic_activations(1).values, synthetic_activations(1).values)
    assert not torch.equal(synthetic_activations(1).values, synthetic_activations(2).values)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are touched


def test_one_run_at_a_time_records_in_a_folder_and_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".parts-killed").mkdir()
    first, second = ActivationRecorder(tmp_path, "tiny"), ActivationRecorder(tmp_path, "tiny")
    with first:
        first.update("layers.0.x", batches(0)[0])
        with pytest.raises(QuambaError, match="another run writes its activations to"):
            second.__enter__()
    with pytest.raises(QuambaError, match="holds activations already"):
        second.__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["layer_000.safetensors"]
