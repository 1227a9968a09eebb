"""`make sanitize`: what it runs are the instrumented kernels, and what it finds is its exit status."""

import subprocess
import sys

import pytest

from tools import sanitize
from tools.build_cuda import ROOT, BuildError


@pytest.fixture
def commands(monkeypatch):
    """The commands that are run, each with its environment, and the status that the next one returns."""
    ran, statuses = [], []

    def run(command, env=None, **_options):
        ran.append((command, env))
        return subprocess.CompletedProcess(command, statuses.pop(0) if statuses else 0)

    monkeypatch.setattr(sanitize, "build", lambda: None)
    monkeypatch.setattr(sanitize, "environment", lambda: {"QUAMBA_KERNELS": str(sanitize.LIBRARY)})
    monkeypatch.setattr(sanitize, "instruction_sets", lambda env: ["avx512_vnni", "avx2", "portable"])
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["sanitize", "--calls", "7"])
    return ran, statuses


def test_tests_run_with_the_best_instruction_set_and_bad_calls_with_all(commands):
    ran, _ = commands
    assert sanitize.main() == 0
    tests, calls = (command for command, _ in ran)
    assert "not (avx2 or portable)" in tests and "tests/ops" in tests
    assert calls[1:5] == ["-m", "tests.ops.bad_calls", "--calls", "7"]
    assert all(env["QUAMBA_KERNELS"] == str(sanitize.LIBRARY) for _, env in ran)


@pytest.mark.parametrize("statuses", [[1], [0, -6]])
def test_what_a_sanitizer_ends_fails(commands, statuses):
    ran, pending = commands
    pending.extend(statuses)
    assert sanitize.main() != 0
    assert len(ran) == len(statuses)


def test_the_runtime_comes_before_everything_else():
    try:
        env = sanitize.environment()
    except BuildError as error:
        pytest.skip(str(error))
    assert env["LD_PRELOAD"].split(":")[0].split("/")[-1].startswith("libasan.so")
    assert "halt_on_error=1" in env["UBSAN_OPTIONS"] and "detect_leaks=0" in env["ASAN_OPTIONS"]


def test_other_kernels_than_those_beside_the_package_are_loaded(tmp_path):
    """QUAMBA_KERNELS names them; a path that is none is an error that says how to build, never the usual kernels."""
    found = subprocess.run(
        [sys.executable, "-c", "import quamba._C as C; print(C.__file__)"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    copy = tmp_path / "kernels.so"
    copy.symlink_to(found)
    code = "import sys, torch; from quamba import ops; print(ops.cpu_capability(), 'quamba._C' in sys.modules)"
    env = {**sanitize.os.environ, "QUAMBA_KERNELS": str(copy)}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.stdout.split()[-1:] == ["False"], run.stderr
    env["QUAMBA_KERNELS"] = str(tmp_path / "absent.so")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert run.returncode and "make build" in run.stderr.splitlines()[-1] and "absent.so" in run.stderr
