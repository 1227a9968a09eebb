"""Which kernel libraries a build makes: those that are asked for, or of use here. They take minutes."""

import os
import shutil
import subprocess
import sys

import pytest

from tools import build_cuda
from tools.build_cuda import ROOT, libraries


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine with nvcc and without a GPU, where nothing is built and no variable is set."""
    for name in ("QUAMBA_CUDA", "QUAMBA_EMULATED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(build_cuda, "has_gpu", lambda: False)
    monkeypatch.setattr(build_cuda, "PACKAGE", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: f"/cuda/{name}")


def names() -> list[str]:
    return [library.name.removeprefix("quamba.") for library in libraries()]


def test_a_machine_without_a_gpu_builds_no_cuda_kernels():
    assert names() == []


def test_a_gpu_is_reason_enough(monkeypatch):
    monkeypatch.setattr(build_cuda, "has_gpu", lambda: True)
    assert names() == ["_C_cuda"]
    monkeypatch.setenv("QUAMBA_CUDA", "0")
    assert names() == []
    monkeypatch.delenv("QUAMBA_CUDA")
    monkeypatch.setattr(shutil, "which", lambda name: None)  # a driver alone compiles nothing
    assert names() == []


def test_what_is_asked_for_is_built(monkeypatch):
    monkeypatch.setenv("QUAMBA_CUDA", "1")
    assert names() == ["_C_cuda"]
    monkeypatch.setenv("QUAMBA_EMULATED", "1")
    assert names() == ["_C_emulated", "_C_cuda"]


@pytest.mark.parametrize("name", ["_C_cuda", "_C_emulated"])
def test_what_was_built_before_is_kept_up_to_date(name, tmp_path, monkeypatch):
    (tmp_path / f"{name}.cpython-311-x86_64-linux-gnu.so").touch()
    assert names() == [name]
    monkeypatch.setenv("QUAMBA_CUDA" if name == "_C_cuda" else "QUAMBA_EMULATED", "0")
    assert names() == []


def test_a_wrong_switch_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("QUAMBA_EMULATED", "yes")
    with pytest.raises(SystemExit, match=r"QUAMBA_EMULATED must be 0 .* got 'yes'"):
        libraries()


def test_tests_without_the_emulation_say_how_to_build_it():
    """One line in place of a traceback of imports, and no test that passes for want of it."""
    hide = "import sys; sys.modules['quamba._C_emulated'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", hide, "tests/cuda/test_hadamard.py", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ), check=False)
    said = run.stdout + run.stderr
    assert run.returncode not in (0, 5)
    assert "python -m tools.build_cuda --library _C_emulated" in said
    assert "Traceback" not in said
