"""The JSON log: what it says of the machine, and that nothing older is ever lost."""

import json
import os
import re

import pytest
import torch

import quamba
from quamba import ops
from quamba.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.evaluate.log import environment, kernels_run, write_log


def test_the_environment_names_what_figures_depend_on():
    env = environment(7, "cpu")
    assert env["seed"] == 7
    assert env["device"] == "cpu"
    assert env["threads"] == torch.get_num_threads()
    assert env["instruction_set"] == ops.cpu_capability()
    assert env["versions"]["quamba"] == quamba.__version__
    assert env["versions"]["torch"] == torch.__version__
    assert {"python", "transformers", "lm_eval", "safetensors", "numpy"} <= set(env["versions"])
    assert json.loads(json.dumps(env)) == env


def test_a_log_is_one_json_object(tmp_path):
    path = write_log({"ppl": {"stdlib": 17.5}}, tmp_path / "new" / "logs", "model_w8a8")
    assert path == tmp_path / "new" / "logs" / "model_w8a8.json"
    assert json.loads(path.read_text()) == {"ppl": {"stdlib": 17.5}}


def test_older_logs_keep_their_content_under_the_time_they_were_written(tmp_path):
    for run in range(4):
        path = write_log({"run": run}, tmp_path, "model_w8a8")
        os.utime(path, (1_700_000_000, 1_700_000_000))  # all in one second
    assert json.loads(path.read_text()) == {"run": 3}
    older = sorted(set(tmp_path.iterdir()) - {path})
    assert len(older) == 3
    assert all(re.fullmatch(r"model_w8a8\.\d{8}T\d{6}(-\d)?\.json", log.name) for log in older)
    assert sorted(json.loads(log.read_text())["run"] for log in older) == [0, 1, 2]


def test_logs_of_other_names_stay(tmp_path):
    write_log({"run": 0}, tmp_path, "model_fp")
    write_log({"run": 1}, tmp_path, "model_w8a8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_fp.json", "model_w8a8.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot write the log .*file/logs/model_fp\.json"):
        write_log({}, tmp_path / "file" / "logs", "model_fp")


def test_a_number_that_json_lacks_is_null(tmp_path):
    path = write_log({"ppl": {"stdlib": float("inf")}, "other": [float("nan"), 1.5]}, tmp_path, "broken")
    assert json.loads(path.read_text()) == {"ppl": {"stdlib": None}, "other": [None, 1.5]}


def test_the_kernels_are_those_that_the_model_runs(tiny_mamba):
    model = tiny_mamba()
    install_float_mixers(model)
    assert kernels_run(model) == {
        "causal_conv1d": ops.cpu_capability(),
        "embedding": "torch",
        "linear": "torch",
        "selective_scan": ops.cpu_capability(),
    }
