"""The threads of a step: who waits for long sleeps, and where one is late the next steps take fewer."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("step_threads.cpp")
compiler = shutil.which("c++")


@pytest.mark.skipif(compiler is None, reason="needs a C++ compiler")
def test_a_crew_does_without_a_thread_that_is_late_and_a_barrier_lets_nobody_through(tmp_path):
    program = tmp_path / "step_threads"
    subprocess.run([compiler, "-std=c++20", "-O1", "-pthread", SOURCE, "-o", program], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0] == "44444"  # nobody is late
    assert lines[1] == "4" + "3" * 8 + "4" + "3" * 14  # one less; one more after 8 steps; then not before 16
    assert "4" * 4 in lines[2] and "4" not in lines[2][:1]  # nobody is late any more
    assert lines[3].startswith("4321")
    assert lines[4] == "1"  # never less than one
    assert int(lines[5]) < 500  # 15 threads are back, each after few steps but the first one
    assert lines[6] == "all slept"
