"""argparse types that several commands share."""

import argparse
from collections.abc import Callable


def _number(text: str, kind: Callable[[str], int | float], what: str) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}") from None


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = _number(text, int, "a whole number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def seed(text: str) -> int:
    """An integer that every random generator takes as its seed."""
    value = _number(text, int, "a whole number")
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"must be from 0 to {2**32 - 1}, not {value}")
    return value


def share(text: str) -> float:
    """A number in (0, 1)."""
    value = _number(text, float, "a number")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {value}")
    return value


def names(text: str) -> list[str]:
    """The entries of a list with commas, at least one."""
    values = [name.strip() for name in text.split(",") if name.strip()]
    if not values:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return values
