"""Results of a calibration that are kept: read again as they were, refused where they do not fit."""

# ruff: noqa: F811 (tests take imported fixtures by their names)

import json
import math

import pytest
import torch

from quamba.architectures.convert import HEAD_TAP, install_float_mixers, tap_modules
from quamba.calibration import run as calibration
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import (
    CalibrationResult,
    CalibrationText,
    model_fingerprint,
)
from quamba.errors import QuambaError
from quamba.nn.mamba1 import TAPS
from tests.calibration.test_run import model, run, windows  # noqa: F401 (fixtures)

# --- results that are kept ---


def test_a_saved_result_is_read_back_as_it_was(model, windows, tmp_path):
    result = run(model, windows, "all=mse", head=True, text=CalibrationText())
    file = tmp_path / "new" / "calibration.json"
    result.save(file)
    assert CalibrationResult.load(file) == result
    assert json.loads(file.read_text())["format_version"] == calibration.FORMAT_VERSION
    assert [path.name for path in file.parent.iterdir()] == ["calibration.json"]  # nothing temporary is left


def damaged(fields: dict) -> dict:
    """Name -> content of a file that is no calibration result."""
    taps = fields["taps"]

    def with_tap(**changes):
        return json.dumps(fields | {"taps": taps | {"layers.0.x": taps["layers.0.x"] | changes}}).encode()

    def with_scale(scale):
        return with_tap(scale=scale)

    return {
        "empty": b"",
        "truncated": json.dumps(fields).encode()[:-40],
        "no text": b"\xff\xfe\x00",
        "a list": b"[]",
        "another object": b"{}",
        "a field more": json.dumps(fields | {"best": 1}).encode(),
        "a field less": json.dumps({name: value for name, value in fields.items() if name != "tokens"}).encode(),
        "a tap less": json.dumps(fields | {"taps": {"layers.0.x": {}}}).encode(),
        "scale NaN": with_scale(math.nan),
        "scale negative": with_scale(-1.0),
        "scale beyond float32": with_scale(1e300),
        "scale below float32": with_scale(1e-60),
        "a peak of NaN": with_tap(max=math.nan),
        "an infinite ratio": with_tap(sqnr_db=math.inf),
        "scale text": with_scale("1"),
        "no scales": with_scale([]),
        "one of the scales negative": with_scale([1.0, -1.0]),
        "groups of other scales": with_tap(scale=[1.0, 2.0], group_id=[0, 1, 2]),
        "groups that are left out": with_tap(scale=[1.0, 2.0], group_id=[0, 0, 0]),
        "groups that are no rectangle": with_tap(scale=[1.0, 2.0], group_id=[[0, 1], [1]]),
        "groups by name": with_tap(scale=[1.0, 2.0], group_id="best"),
        "groups of objects": with_tap(scale=[1.0], group_id=[{}]),
        "groups of one scale that is no list": with_tap(scale=1.0, group_id=[0]),
        "a text that is a name": json.dumps(fields | {"text": "wikitext2"}).encode(),
        "a text that is a number": json.dumps(fields | {"text": 1}).encode(),
        "no orders": json.dumps(fields | {"orders": [1]}).encode(),
        "an order of no layer": json.dumps(fields | {"orders": {"first": {}}}).encode(),
        "an order that is none": json.dumps(
            fields | {"orders": {"0": {"head_order": [0, 0], "channel_order": [[0], [0]], "group_id": [[0], [1]]}}}
        ).encode(),
    }


DAMAGES = list(damaged({"tokens": 1, "taps": {"layers.0.x": {}}}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_result_is_refused(model, windows, tmp_path, damage):
    file = tmp_path / "calibration.json"
    run(model, windows).save(file)
    file.write_bytes(damaged(json.loads(file.read_text()))[damage])
    with pytest.raises(QuambaError, match=r"calibration\.json is not a calibration result"):
        CalibrationResult.load(file)


def test_a_result_of_another_version_is_refused(model, windows, tmp_path):
    file = tmp_path / "calibration.json"
    run(model, windows).save(file)
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(QuambaError, match="written by another version of quamba"):
        CalibrationResult.load(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QuambaError, match=r"nowhere\.json is not a calibration result"):
        CalibrationResult.load(tmp_path / "nowhere.json")


def test_a_place_that_cannot_be_written_is_named(model, windows, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot write .*calibration"):
        run(model, windows).save(tmp_path / "file" / "calibration.json")


def test_a_result_fits_its_own_model_only(model, windows, tiny_mamba):
    result, taps = run(model, windows, "mse"), set(tap_modules(model, head=False))
    result.check_fits(model_fingerprint(model), taps, 8)
    with pytest.raises(QuambaError, match="belongs to another model"):
        result.check_fits(model_fingerprint(tiny_mamba(seed=1)), taps, 8)
    with pytest.raises(QuambaError, match=r"no scale for head_in"):
        result.check_fits(model_fingerprint(model), taps | {HEAD_TAP}, 8)
    with pytest.raises(QuambaError, match="for 8 bits, the scheme has 4"):
        result.check_fits(model_fingerprint(model), taps, 4)


def test_a_result_fits_its_own_observers_only(model, windows):
    options = {"mse": {"percentile_alpha": 0.9}}
    result, taps = run(model, windows, "mse", options=options), set(tap_modules(model, head=False))
    fingerprint = model_fingerprint(model)
    result.check_fits(fingerprint, taps, 8, parse_observers("mse", head=False, taps=TAPS), options)
    with pytest.raises(QuambaError, match="observer 'mse' at tap x, not 'percentile'"):
        result.check_fits(fingerprint, taps, 8, parse_observers("percentile", head=False, taps=TAPS), options)
    with pytest.raises(QuambaError, match="observer options"):
        result.check_fits(fingerprint, taps, 8, parse_observers("mse", head=False, taps=TAPS), {})


def test_the_fingerprint_is_that_of_the_values(tiny_mamba):
    """Equal for equal weights, on transformers' mixers or ours and in any dtype that holds them; not for others."""
    model, same, other = tiny_mamba(), tiny_mamba(), tiny_mamba()
    install_float_mixers(same)
    other.backbone.layers[1].mixer.D[0] += 1e-3
    assert model_fingerprint(model) == model_fingerprint(same) != model_fingerprint(other)
    half = model.to(torch.bfloat16)
    assert model_fingerprint(half) == model_fingerprint(half.float())
