"""The command that the README opens with, on little data, for every embedded model."""

import pytest
import torch

import main
from quamba.architectures.table import ARCHITECTURES
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.text.data import EMBEDDED_MODELS
from tests.test_main import place, process_state, read_log  # noqa: F401 (fixtures)


@pytest.fixture(scope="module", params=EMBEDDED_MODELS)
def demo(request, tmp_path_factory):
    """One run of the command that the README opens with, on little data: (model, folder, exit status)."""
    folder = tmp_path_factory.mktemp("demo")
    out = ["--log_dir", str(folder / "logs"), "--pretrained_dir", str(folder / "models")]
    return request.param, folder, main.main([request.param, "--quantize", "--use_outlier_aware", "--testing", *out])


def test_the_demonstration_measures_quantizes_and_logs(demo):
    name, folder, status = demo
    assert status == 0
    log = read_log(f"{name}_w8a8", folder / "logs")
    assert log["args"]["use_outlier_aware"] is True
    assert log["args"]["model"] == log["model"] == name
    assert log["scheme"] == "w8a8"
    assert log["env"]["seed"] == 0
    assert log["env"]["instruction_set"]
    assert log["env"]["versions"]["torch"] == torch.__version__
    assert all(len(digest) == 64 for digest in log["assets_sha256"].values())
    for side in (log, log["float"]):
        assert set(side["ppl"]) == {"stdlib"}
        assert 5 < side["ppl"]["stdlib"] < 50
        assert 0 <= side["lm_eval"]["stdlib_cloze"]["acc,none"] <= 1
        assert set(side["size"]) == {"disk_bytes", "memory_bytes"}
    assert log["ppl"]["stdlib"] / log["float"]["ppl"]["stdlib"] < 1.1
    assert log["size"]["memory_bytes"] < log["float"]["size"]["memory_bytes"] / 2
    assert log["ppl_tokens"] == {"stdlib": 8 * 511}
    calibration = log["calibration"]
    taps = ARCHITECTURES["mamba" if name == "mamba-tiny" else "mamba2"].taps
    assert calibration["observer"] == {tap: DEFAULT_OBSERVERS[tap] for tap in taps} | {"x": "outlier_aware"}
    assert calibration["tokens"] == 8 * 256
    assert calibration["seconds"] > 0
    assert calibration["text"]["dataset"] == "stdlib"
    assert all({"scale", "max", "saturated_share", "sqnr_db"} <= set(tap) for tap in calibration["taps"].values())


def test_the_saved_model_is_measured_as_before_it_was_saved(demo, tmp_path):
    name, folder, _ = demo
    before = read_log(f"{name}_w8a8", folder / "logs")
    assert before["saved"] == str(folder / "models" / f"{name}-w8a8")
    assert main.main([before["saved"], "--testing"]) == 0
    after = read_log(f"{name}_w8a8")  # the same name: it is that model
    assert after["ppl"] == before["ppl"]
    assert after["lm_eval"] == before["lm_eval"]
    assert after["size"] == before["size"]
    assert after["recipe"] == before["recipe"]
    assert "calibration" not in after and "float" not in after


def test_a_saved_model_is_found_by_name_in_pretrained_dir(demo):
    name, folder, _ = demo
    options = ["--pretrained_dir", str(folder / "models"), "--ppl_dataset", "stdlib", "--testing"]
    assert main.main([f"{name}-w8a8", *options]) == 0
    assert read_log(f"{name}_w8a8")["ppl"] == read_log(f"{name}_w8a8", folder / "logs")["ppl"]
