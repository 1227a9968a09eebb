"""Which observer watches which tap: the defaults, and how a user names others."""

from collections.abc import Mapping, Sequence

from ..architectures.convert import HEAD_TAP
from ..architectures.table import BLOCK_TAPS
from ..errors import QuambaError
from ..nn.taps import PER_TOKEN_TAPS, STATE_TAP
from ..observers.per_tensor import Observer, create_observer, observer_names, try_observer

EVERY_TAP = (*BLOCK_TAPS, STATE_TAP, HEAD_TAP)
DYNAMIC_TAPS = (*PER_TOKEN_TAPS, HEAD_TAP)
# The observer of every tap that the user names none for. Where another than min-max stands it lowers the error of the
# tap by 14 % or more and does not raise the perplexity (of Mamba; docs/observer-study.md has the figures). Mamba2's
# B_in and C_in are inputs of the convolution as conv_in is.
DEFAULT_OBSERVERS = {
    "in": "percentile",
    "conv_in": "percentile",
    "z": "percentile",
    "x": "mse",
    "dt_rank": "minmax",
    "B": "minmax",
    "C": "minmax",
    "out": "mse",
    "B_in": "percentile",
    "C_in": "percentile",
    STATE_TAP: "minmax",
    HEAD_TAP: "minmax",
}
OBSERVED_TAP = "x"  # the tap that a bare observer name speaks of: the one with outliers (Quamba, section 4)


def check_tap(tap: str, known: Sequence[str] = EVERY_TAP) -> None:
    """Raises QuambaError for a tap that is not among those `known`."""
    if tap not in known:
        what = "this model has no tap" if tap in EVERY_TAP else "unknown tap"
        raise QuambaError(f"{what} {tap!r}: choose of {', '.join(known)}")


def parse_observers(
    spec: str | Mapping[str, str] | None,
    head: bool = True,
    dynamic: bool = False,
    taps: Sequence[str] = BLOCK_TAPS,
) -> dict[str, str]:
    """Tap -> observer name. `mse` speaks of tap x; `all=mse` of every tap; `x=mse,out=percentile` of those named.

    A tap's own name goes before `all`, wherever it stands; taps that are not named keep DEFAULT_OBSERVERS, all of them
    where `spec` is None. `head`: whether the head is quantized, so that tap head_in may be named; `dynamic`: whether
    the taps that can have a scale per token do, so that they need no observer; `taps`: those of the model's blocks,
    those of all known blocks as long as there is no model. Raises QuambaError on a tap that is not among them or an
    unknown observer, on a tap that is named twice, and on one that has no observer.
    """
    taps = (*taps, HEAD_TAP)
    if spec is None:
        pairs = []
    elif isinstance(spec, str):
        pairs = [part.split("=", 1) if "=" in part else [OBSERVED_TAP, part] for part in spec.split(",")]
    elif isinstance(spec, Mapping):
        pairs = list(spec.items())
    else:
        raise QuambaError(f"observer must be a name or a mapping of taps to names, not {spec!r}")
    named = [tap for tap, _ in pairs]
    for tap, name in pairs:
        check_tap(tap, (*taps, "all"))
        if name not in observer_names():
            raise QuambaError(f"unknown observer {name!r}: choose one of {', '.join(observer_names())}")
        if tap == HEAD_TAP and not head:
            raise QuambaError(f"tap {HEAD_TAP} has an observer only where the head is quantized: --quantize_lm_head")
        if dynamic and tap in DYNAMIC_TAPS:
            raise QuambaError(
                f"tap {tap} has no observer where scales are dynamic, every token has a scale of its own: drop "
                f"{tap}={name}, or the dynamic scales"
            )
    if twice := [tap for tap in named if named.count(tap) > 1]:
        raise QuambaError(f"tap {twice[0]!r} is given more than one observer in {spec!r}: name one")
    own = dict(pairs)
    defaults = DEFAULT_OBSERVERS
    if "all" in own:
        defaults = dict.fromkeys(taps, own.pop("all")) | {STATE_TAP: DEFAULT_OBSERVERS[STATE_TAP]}
    if own.get(STATE_TAP, DEFAULT_OBSERVERS[STATE_TAP]) != DEFAULT_OBSERVERS[STATE_TAP]:
        raise QuambaError(
            f"tap {STATE_TAP} has a scale for every channel, for which {DEFAULT_OBSERVERS[STATE_TAP]} alone is small "
            f"enough: drop {STATE_TAP}={own[STATE_TAP]}"
        )
    unwatched = {*(DYNAMIC_TAPS if dynamic else ()), *(() if head else (HEAD_TAP,))}
    return {tap: own.get(tap, defaults[tap]) for tap in taps if tap not in unwatched}


def create_tap_observer(name: str, n_bits: int, options: Mapping) -> Observer:
    """An observer for a tap. Raises QuambaError for arguments that it does not take, or that taps do not allow."""
    if "n_bits" in options:
        raise QuambaError(f"observer {name!r}: n_bits follows from the scheme, it is no option here")
    observer = create_observer(name, n_bits=n_bits, **options)
    if not observer.sym:
        raise QuambaError(f"observer {name!r}: taps are quantized symmetrically, sym=False has no kernels")
    return observer


def check_observer_options(observers: Mapping[str, str], options: Mapping[str, Mapping], n_bits: int = 8) -> None:
    """Raises QuambaError for arguments of an observer that no tap uses, and for those that an observer refuses."""
    used = sorted(set(observers.values()))
    if unused := sorted(set(options) - set(used)):
        raise QuambaError(f"options for observer {unused[0]!r}, which no tap uses: the taps use {', '.join(used)}")
    for name in used:
        create_tap_observer(name, n_bits, options.get(name, {}))
        try_observer(name, n_bits=n_bits, **options.get(name, {}))
