"""What the figures were measured on: processor, instruction sets, versions, date. No host name, no path."""

import datetime
import os
import subprocess
from pathlib import Path

from .rows import MACHINE
from .worker import ROOT

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def parse_cpuinfo(text: str) -> tuple[str, list[str]]:
    """(model name, the instruction sets that matter here) of the first processor in /proc/cpuinfo."""
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return fields.get("model name", "unknown"), [name for name in INSTRUCTION_SETS if name in flags]


def available_bytes() -> int:
    """Memory that new processes can have without swapping."""
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo has no MemAvailable")


def commit() -> str:
    """The commit of the working tree, `-dirty` with changes; `unknown` without git."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def machine_row(threads: int, floors: dict, versions: dict[str, str], commit: str) -> dict:
    """The one row about the machine; `floors` as `floors.measure` gives them, `commit` as it was before the run."""
    cpu, instruction_sets = parse_cpuinfo(CPUINFO.read_text())
    return {
        "system": MACHINE,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_sets": instruction_sets,
        "read_bytes_s": floors["read_bytes_s"],
        "operations_s": floors["operations_s"],
        "versions": versions,
        "commit": commit,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
