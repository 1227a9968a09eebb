"""The busy neighbour's benchmark, run with a tiny model: its processes, their environment, its table."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import busy

SIZES = {"hidden": 32, "layers": 1, "calibrated_layers": 1, "windows": 1, "seqlen": 8, "seconds": 0.01, "rounds": 1}
TINY = [f"--{name}={value}" for name, value in (SIZES | {"threads": 1}).items()]


def test_it_prints_a_line_for_each_way_to_wait(monkeypatch, capfd):
    core = min(os.sched_getaffinity(0))
    monkeypatch.setattr(sys, "argv", ["busy.py", *TINY, "--waits", "package", "--cores", str(core)])
    busy.main()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capfd.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[2:]] == [["package", "1"]]
    assert all(len(line) == len(lines[0]) == 8 for line in lines)


@pytest.mark.parametrize(
    "options, refusal",
    [
        (["--waits", "slowly"], "'slowly' is neither package nor passive nor a number"),
        (["--cores", "4096"], "4096 is none of"),
        (["--rounds", "0"], "begin at 1"),
    ],
)
def test_what_it_cannot_measure_is_refused_before_anything_starts(options, refusal, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["busy.py", *options])
    with pytest.raises(SystemExit):
        busy.main()
    assert refusal in capsys.readouterr().err


def test_neighbours_loop_on_their_core_until_they_are_no_longer_needed():
    core = min(os.sched_getaffinity(0))
    with busy.busy(2, [core]) as processes:
        assert [os.sched_getaffinity(process.pid) for process in processes] == [{core}] * 2
        deadline = time.monotonic() + 20
        while any(cpu_ticks(process.pid) < 2 for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert all(process.returncode is not None for process in processes)


def cpu_ticks(pid: int) -> int:
    """What the process has had of the processors, in user mode."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])


def test_ratios_are_of_one_round():
    times = {}
    for wait, factor in {"a": 1, "b": 2}.items():
        for condition, cost in {busy.QUIET: 1, busy.BESIDE: 3}.items():
            for job in busy.JOBS:
                times[wait, 2, job, condition] = [factor * cost * base for base in (0.01, 0.5, 0.02)]
    last = busy.table(times, ["a", "b"], [2]).splitlines()[-1]
    cells = [cell.strip() for cell in last.strip("|").split("|")]
    assert cells == ["b", "2", "25 (2.00x)", "8 (2.00x)", "3.00x", "0.04 (2.00x)", "0.12 (2.00x)", "3.00x"]
