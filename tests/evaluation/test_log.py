"""The JSON log: what it says of the machine, and that nothing older is ever lost."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import quamba
from quamba import ops
from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.evaluation.log import environment, is_current_log, items_path, kernels_run, write_log


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


ITEMS = {"ppl": {"stdlib": {"nll": [2.5, float("inf")], "tokens": [9, 4]}}, "lm_eval": {}}


def test_values_per_item_lie_beside_the_log(tmp_path):
    path = write_log({"run": 0}, tmp_path, "mamba-2.8b_w8a8", ITEMS)
    assert items_path(path) == tmp_path / "mamba-2.8b_w8a8.items.json"
    assert items_path(path).read_text() == '{"ppl":{"stdlib":{"nll":[2.5,null],"tokens":[9,4]}},"lm_eval":{}}\n'


def test_older_values_move_with_their_log(tmp_path):
    for run in range(3):
        path = write_log({"run": run}, tmp_path, "model_w8a8", {"run": run} if run != 1 else None)
        os.utime(path, (1_700_000_000, 1_700_000_000))  # all in one second
    for log in (path for path in tmp_path.iterdir() if not path.name.endswith(".items.json")):
        run = json.loads(log.read_text())["run"]
        assert items_path(log).exists() == (run != 1)  # run 1 had none
        assert run == 1 or json.loads(items_path(log).read_text()) == {"run": run}
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("items", [None, {"run": 1}])
def test_values_that_an_interrupted_run_left_are_never_taken_for_those_of_the_next(tmp_path, items):
    (tmp_path / "model_w8a8.items.json").write_text('{"run":0}')
    path = write_log({"run": 1}, tmp_path, "model_w8a8", items)
    assert items_path(path).exists() == (items is not None)
    left = next(path for path in tmp_path.iterdir() if re.fullmatch(r"model_w8a8\.\d{8}T\d{6}\.items\.json", path.name))
    assert left.read_text() == '{"run":0}'


def test_a_move_that_was_interrupted_is_finished_by_the_next_run(tmp_path, monkeypatch):
    write_log({"run": 0}, tmp_path, "model_w8a8", {"run": 0})
    replace = os.replace

    def interrupt(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        write_log({"run": 1}, tmp_path, "model_w8a8", {"run": 1})
    path = write_log({"run": 2}, tmp_path, "model_w8a8", {"run": 2})
    (older,) = [log for log in tmp_path.iterdir() if log != path and not log.name.endswith(".items.json")]
    for log, run in ((path, 2), (older, 0)):
        assert json.loads(log.read_text()) == json.loads(items_path(log).read_text()) == {"run": run}


def test_older_values_are_never_replaced(tmp_path):
    path = write_log({"run": 0}, tmp_path, "model_w8a8", {"run": 0})
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(path.stat().st_mtime))
    (tmp_path / f"model_w8a8.{stamp}.items.json").write_text("others")
    write_log({"run": 1}, tmp_path, "model_w8a8", {"run": 1})
    assert (tmp_path / f"model_w8a8.{stamp}.items.json").read_text() == "others"
    assert json.loads((tmp_path / f"model_w8a8.{stamp}-1.items.json").read_text()) == {"run": 0}


@pytest.mark.parametrize("name", ["model_w8a8.json", "model_w8a8.items.json"])
def test_what_is_no_file_is_not_moved_like_an_older_log(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(QuambaError, match=f"{name} is a pipe: name a file"):
        write_log({}, tmp_path, "model_w8a8", {})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).is_fifo()


def test_a_log_that_is_there_has_its_values(tmp_path, monkeypatch):
    written = []
    module = sys.modules[write_log.__module__]  # `quamba.evaluate` is the function
    monkeypatch.setattr(module, "write_text_atomically", lambda path, text: written.append(path.name))
    write_log({}, tmp_path, "model_w8a8", {})
    assert written == ["model_w8a8.items.json", "model_w8a8.json"]


@pytest.mark.parametrize(
    ("name", "current"),
    [
        ("mamba-2.8b_w8a8.json", True),
        ("mamba-2.8b_w8a8.items.json", False),
        ("mamba-2.8b_w8a8.20260101T000000.json", False),
        ("mamba-2.8b_w8a8.20260101T000000-12.json", False),
        ("mamba-2.8b_w8a8.20260101T000000.items.json", False),
        (".mamba-2.8b_w8a8.abcdef.json", False),
        ("mamba-2.8b_w4a8+w8a8.json", True),
        ("mamba-2.8b.hybrid.json", False),  # the schemes that a search found
        ("mamba-2.8b_w8a8.md", False),
    ],
)
def test_current_logs_are_told_by_their_names(name, current):
    assert is_current_log(Path("logs") / name) is current


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
