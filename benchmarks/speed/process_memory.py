"""Resident memory of this process, and the peak since it was last reset. Linux: /proc/self/status and clear_refs."""

import ctypes
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)


def parse_status(text: str, field: str) -> int:
    """Bytes of a field such as `VmRSS` in the text of /proc/PID/status. Raises ValueError where it is missing."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024  # "  1234 kB"
    raise ValueError(f"/proc/self/status has no {field}")


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return parse_status(STATUS.read_text(), "VmRSS")


def peak_bytes() -> int:
    """The most that this process held since `reset_peak`."""
    return parse_status(STATUS.read_text(), "VmHWM")


def reset_peak() -> None:
    """Gives what was freed back to the system and starts the peak anew."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
