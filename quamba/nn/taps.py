"""Taps: the activations of a block that are quantized. A float mixer has an Identity at each, for calibration to watch.

Every mixer lists its own, `TAPS`, in the order in which it computes them.
"""

from collections.abc import Sequence

from ..scheme.formats import TensorSpec

# those that may have a scale per token instead of a static one: nothing but linear layers reads them
PER_TOKEN_TAPS = ("in", "out")
# Mamba2's SSM states, where they are kept as integers: no activation, and watched only then
STATE_TAP = "state"


def static_taps(taps: Sequence[str], act: TensorSpec) -> tuple[str, ...]:
    """Return those of a block's taps that have a static scale, from calibration, where its activations are in that
    format."""
    if act.is_float:
        return ()
    return tuple(tap for tap in taps if act.is_static or tap not in PER_TOKEN_TAPS)


def tap_name(layer: int | None, tap: str) -> str:
    """`layers.3.x`, or the tap's own name where it belongs to no layer: `head_in`."""
    return tap if layer is None else f"layers.{layer}.{tap}"


def split_tap_name(name: str) -> tuple[int | None, str]:
    """`layers.3.x` -> (3, "x"); `head_in` -> (None, "head_in")."""
    *prefix, tap = name.split(".")
    return (int(prefix[-1]) if prefix else None), tap
