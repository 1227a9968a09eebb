"""A run's progress on the disk: an interrupted run goes on to the same bits, and no run meets another's files."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quamba.errors import QuambaError
from quamba.pipeline import resume as weight_resume
from quamba.pipeline.resume import ResumeFolder
from quamba.weights.method import WeightMethod
from tests.pipeline.test_layerwise import FLIPS, assert_same, rounded, windows  # noqa: F401  (one is a fixture)

ONE = WeightMethod("gptq", layer_batch_size=1)
HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print(flush=True)
input()
"""


class Interrupted(Exception):
    pass


class Failing(ResumeFolder):
    """Is interrupted once so many layers are finished."""

    finished = 1

    def keep(self, layers, *args):
        super().keep(layers, *args)
        if len(layers) == self.finished:
            raise Interrupted


def interrupt(path, windows, run, method=ONE, finished=1) -> None:  # noqa: F811
    """Leaves the files of a run that finished some layers."""
    with Failing(path) as folder:
        folder.finished = finished
        folder.start(run)
        with pytest.raises(Interrupted):
            rounded(windows, method, folder=folder)


def go_on(path, run) -> ResumeFolder:
    with ResumeFolder(path, resume=True) as folder:
        folder.start(run)
    return folder


@pytest.mark.parametrize("finished", [1, 2])
@pytest.mark.parametrize("sequential", [True, False])
def test_an_interrupted_run_goes_on_to_the_same_bits(windows, tmp_path, finished, sequential):  # noqa: F811
    method = WeightMethod("awq+gptq", "mean", FLIPS, layer_batch_size=1, sequential=sequential)
    expected_model, expected = rounded(windows, method)
    interrupt(tmp_path / "run", windows, {"model": "m"}, method, finished)
    model, result = rounded(windows, method, folder=go_on(tmp_path / "run", {"model": "m"}))
    assert_same(result, expected)
    assert result.reports == expected.reports
    for (name, a), b in zip(model.state_dict().items(), expected_model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_with_other_options_is_not_gone_on_with(tmp_path):
    with ResumeFolder(tmp_path / "run") as folder:
        folder.start({"method": {"n_grid": 20}, "model": "m"})
    with pytest.raises(QuambaError, match="had another method: give the same options"):
        go_on(tmp_path / "run", {"method": {"n_grid": 10}, "model": "m"})
    with pytest.raises(QuambaError, match="nothing to resume"):
        go_on(tmp_path / "none", {})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"model": "m"}', '{"id": "1", "run": 3}'])
def test_a_description_that_is_damaged_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(QuambaError, match=r"run\.json is damaged"):
        go_on(tmp_path, {"model": "m"})


def test_a_damaged_file_is_named(windows, tmp_path):  # noqa: F811
    interrupt(tmp_path, windows, {}, WeightMethod("gptq", layer_batch_size=2), finished=3)
    (file,) = tmp_path.glob("layers-00002*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(QuambaError, match=r"layers-00002\.safetensors is damaged"):
        go_on(tmp_path, {}).restore()


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("hidden.safetensors", "00000", torch.nan, "00000 holds NaN"),
        ("layers-00000.safetensors", "|scale", torch.inf, r"0\|.*\|scale holds infinity"),
        ("layers-00000.safetensors", "|scale", 0.0, r"0\|.*\|scale holds no scale"),
    ],
)
def test_values_that_mean_nothing_are_named(windows, tmp_path, file, key, value, message):  # noqa: F811
    interrupt(tmp_path, windows, {}, finished=2)
    with safe_open(tmp_path / file, "pt") as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    next(tensor for name, tensor in tensors.items() if name.endswith(key)).view(-1)[-1] = value
    save_file(tensors, tmp_path / file, metadata)
    with pytest.raises(QuambaError, match=rf"{file} is damaged: {message}.*start anew without --resume"):
        go_on(tmp_path, {}).restore()


@pytest.mark.parametrize("file", ["layers-00000.safetensors", "hidden.safetensors"])
def test_a_file_of_another_run_of_the_same_options_is_never_mixed_in(windows, tmp_path, file):  # noqa: F811
    for name in ("one", "other"):
        interrupt(tmp_path / name, windows, {"model": "m"}, finished=2)
    shutil.copy(tmp_path / "other" / file, tmp_path / "one" / file)
    with pytest.raises(QuambaError, match=rf"{file} is of another run than run\.json beside it"):
        go_on(tmp_path / "one", {"model": "m"}).restore()


def test_a_second_run_is_refused_while_one_is_at_work_and_not_after(windows, tmp_path):  # noqa: F811
    with ResumeFolder(tmp_path / "run") as folder:
        folder.start({"model": "m"})
        for resume in (False, True):
            with pytest.raises(QuambaError, match=r"another run is at work in .*run: wait until it has ended"):
                ResumeFolder(tmp_path / "run", resume).__enter__()
    go_on(tmp_path / "run", {"model": "m"})


def test_a_killed_run_leaves_no_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(QuambaError, match="another run is at work"):
            ResumeFolder(tmp_path).__enter__()
        other.kill()
        other.wait()
        with ResumeFolder(tmp_path):
            pass


def test_a_folder_that_another_run_took_is_left_to_it(windows, tmp_path, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(weight_resume, "lock_folder", lambda path: path.mkdir(parents=True, exist_ok=True))
    with ResumeFolder(tmp_path / "run") as one, ResumeFolder(tmp_path / "run") as other:
        one.start({"model": "m"})
        other.start({"model": "m"})
        rounded(windows, ONE, folder=one)
        assert "run belongs to another run since" in caplog.text
        expected = rounded(windows, ONE, folder=other)[1]
    assert_same(rounded(windows, ONE, folder=go_on(tmp_path / "run", {"model": "m"}))[1], expected)


def test_starting_anew_over_finished_layers_says_so(windows, tmp_path, caplog):  # noqa: F811
    interrupt(tmp_path / "run", windows, {"model": "m"}, finished=2)
    go_on(tmp_path / "run", {"model": "m"})
    assert not caplog.messages
    with ResumeFolder(tmp_path / "run") as folder:
        (told,) = caplog.messages
        assert told.startswith(f"{folder.path} holds 2 finished layers") and "give --resume" in told
        assert list(folder.path.glob("layers-*"))  # there is time to interrupt it
        folder.start({"model": "m"})
    assert [file.name for file in folder.path.iterdir()] == ["run.json"]


def test_what_a_killed_run_was_writing_goes_too(tmp_path):
    with ResumeFolder(tmp_path / "run") as folder:
        folder.start({})
        for name in (".layers-00004.a1b2c3d4.safetensors", ".hidden.a1b2c3d4.safetensors", ".run.a1b2c3d4.json"):
            (folder.path / name).write_bytes(b"half")
        (folder.path / ".quamba-before-a-reboot" / "new").mkdir(parents=True)
        (folder.path / ".quamba-before-a-reboot" / "new" / "hidden.safetensors").write_bytes(b"half")
        folder.discard()
        assert not folder.path.exists()


def test_a_block_that_did_nothing_leaves_no_folder(tmp_path):
    with ResumeFolder(tmp_path / "a" / "run"):
        pass
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot keep the run's progress in .*file"):
        ResumeFolder(tmp_path / "file").__enter__()
