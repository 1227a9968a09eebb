"""What every observer shares, and the registry that finds one by name."""

import abc
import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import numerics
from ..borders import described_with_line
from ..errors import QuambaError
from ..registry import Registry

SHOWN = 60  # characters of a wrong value in a message


class Observer(abc.ABC):
    """Watches a stream of activations and turns what it saw into the scale that quantizes them.

    To write one: subclass, keep a *small* statistic, and fill in three methods.

        @register_observer("mine")
        class MyObserver(Observer):
            def __init__(self, n_bits=8, clip_ratio=1.0, sym=True, sigmas=6.0):
                super().__init__(n_bits, clip_ratio, sym)
                self.sigmas = sigmas           # keep each argument under its own name: `settings` reads it there
                self.squares = 0.0             # the statistic; never keep the activations themselves

            def _update(self, x):              # x: any shape and float dtype; never empty, NaN or infinite; detached
                self.squares += float(x.float().square().sum(dtype=torch.float64))

            def _merge(self, other):           # same class, same settings; must equal having seen its data
                self.squares += other.squares

            def _parameters(self):             # called only once data has been seen
                peak = self.sigmas * (self.squares / self.count) ** 0.5
                return self.range_parameters(-peak, peak)

    The base class keeps `count` (how many values were seen), `minimum` and `maximum` (both exact) up to date; within
    `_update` and `_merge` they still describe what was seen before.

    n_bits: bits of the integers, 2..16. clip_ratio: a factor on the range that the statistic finds. sym: symmetric
    integers around 0, or unsigned integers with a zero point.
    """

    name: str | None = None  # set by register_observer
    # Whether the scale depends on what each update held, beside all values together. A calibration then makes an update
    # of every window; else of a whole batch, which is faster.
    by_update: bool = True

    def __init__(self, n_bits: int = 8, clip_ratio: float = 1.0, sym: bool = True):
        self.n_bits, self.clip_ratio, self.sym = n_bits, clip_ratio, sym
        if not isinstance(n_bits, int) or not 2 <= n_bits <= 16:
            raise QuambaError(f"{self}: n_bits must be an integer from 2 to 16, got {n_bits!r}")
        if not 0 < clip_ratio < math.inf:
            raise QuambaError(f"{self}: clip_ratio must be positive, got {clip_ratio!r}")
        self.count = 0
        self.minimum, self.maximum = math.inf, -math.inf

    def update(self, x: Tensor) -> None:
        """Takes in activations, in a calibration those of one window: any shape, any float dtype; read as float32.

        Raises QuambaError where `x` is not a float tensor, is empty, or holds NaN or infinity; nothing is then taken.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise QuambaError(f"{self}: update() takes a floating-point tensor, got {getattr(x, 'dtype', type(x))}")
        x = x.detach().float() if x.dtype == torch.float64 else x.detach()
        low, high = finite_extremes(x, str(self))
        self._update(x)
        self.count += x.numel()
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)

    def merge(self, other: "Observer") -> None:
        """Takes in what `other` has seen, as if its updates had followed the ones here; `other` is left as it is.

        Raises QuambaError where the class or the settings differ.
        """
        if type(other) is not type(self):
            raise QuambaError(f"{self}: cannot merge a {type(other).__name__}")
        theirs = other.settings()
        for name, mine in self.settings().items():
            same = torch.equal(mine, theirs[name]) if isinstance(mine, Tensor) else mine == theirs[name]
            if not same:
                raise QuambaError(f"{self}: cannot merge, {name} differs: {mine!r} here, {theirs[name]!r} there")
        if other.count == 0:
            return
        self._merge(other)
        self.count += other.count
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)

    def get_quantization_parameters(self) -> tuple[Tensor, Tensor]:
        """(scale, base), both float32, of one shape: [] per tensor, [groups] or [channels] for the grouped ones.

        base is 0 where symmetric, else the zero point. Raises QuambaError before the first update, and for a class
        whose `_parameters` gives something else.
        """
        if self.count == 0:
            raise QuambaError(f"{self}: has seen no data: call update(x) before get_quantization_parameters()")
        found = self._parameters()
        if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
            raise QuambaError(f"{self}: _parameters() must return (scale, base), two tensors, not {_shown(found)}")
        scale, base = (part.detach().to(torch.float32) for part in found)
        return scale, base

    def settings(self) -> dict:
        """The constructor's arguments by name, read from the attributes of the same names."""
        names = inspect.signature(type(self)).parameters
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise QuambaError(f"{self}: keep the constructor's argument {missing[0]!r} as self.{missing[0]}")
        return {name: getattr(self, name) for name in names}

    def range_parameters(
        self, low: Tensor | float, high: Tensor | float, level: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """(scale, base) that cover [clip_ratio * low, clip_ratio * high]: numbers, or tensors of one shape.

        level: the integer that the larger magnitude maps to where symmetric; the largest one by default.
        """
        low, high = (torch.as_tensor(v, dtype=torch.float64) * self.clip_ratio for v in (low, high))
        if self.sym:
            scale = numerics.symmetric_scale(torch.maximum(-low, high), self.n_bits, level)
            return scale, torch.zeros_like(scale)
        return numerics.asymmetric_parameters(low, high, self.n_bits)

    def __str__(self) -> str:
        own_name = type(self).__dict__.get("name")
        return f"observer {own_name!r} ({type(self).__name__})" if own_name else f"observer {type(self).__name__}"

    @abc.abstractmethod
    def _update(self, x: Tensor) -> None:
        """Folds `x` into the statistic."""

    @abc.abstractmethod
    def _merge(self, other: "Observer") -> None:
        """Folds in the statistic of `other`, which has seen data; this one may not have."""

    @abc.abstractmethod
    def _parameters(self) -> tuple[Tensor, Tensor]:
        """(scale, base) of the statistic; `range_parameters` makes them of a range."""


def _shown(value: object) -> str:
    """Return what a value is, in a few words."""
    text = " ".join(repr(value).split())
    return text if len(text) <= SHOWN else f"a {type(value).__name__}"


def require_usable(scale: Tensor, base: Tensor, what: str) -> None:
    """Raises QuambaError, beginning with `what`, for scales that are not positive and finite, and bases unlike them."""
    if scale.shape != base.shape:
        raise QuambaError(f"{what}: scale and base have the shapes {tuple(scale.shape)} and {tuple(base.shape)}")
    if not bool((torch.isfinite(scale) & (scale > 0) & torch.isfinite(base)).all()):
        raise QuambaError(f"{what}: gave the scale {scale.tolist()} and base {base.tolist()}: no integers have those")


def finite_extremes(x: Tensor, what: str) -> tuple[float, float]:
    """The smallest and the largest value. Raises QuambaError, beginning with `what`, for NaN, infinity or no value."""
    if x.numel() == 0:
        raise QuambaError(f"{what}: got an empty tensor of shape {tuple(x.shape)}")
    low, high = (float(v) for v in torch.aminmax(x))  # both are NaN where any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise QuambaError(f"{what}: the activations hold NaN or infinity (shape {tuple(x.shape)}, {x.dtype})")
    return low, high


_observers: Registry[type[Observer]] = Registry("observer")


def register_observer(name: str) -> Callable[[type[Observer]], type[Observer]]:
    """Class decorator: makes an Observer known as `name`, to `create_observer` and to `--observer`.

    Raises QuambaError where the name is taken by another class. The same class defined again replaces itself.
    """

    def register(cls: type[Observer]) -> type[Observer]:
        if not (isinstance(cls, type) and issubclass(cls, Observer)):
            raise QuambaError(
                f"register_observer({name!r}): {cls!r} is not a subclass of quamba.observers.per_tensor.Observer"
            )
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(cls).parameters.values()):
            raise QuambaError(f"register_observer({name!r}): name every constructor argument, without * and **")
        _observers.add(name, cls)
        cls.name = name
        return cls

    return register


def observer_names() -> list[str]:
    """The names that `create_observer` knows, in the order of registration."""
    return _observers.names()


def create_observer(name: str, /, **kwargs) -> Observer:
    """A new observer of that name. Raises QuambaError on an unknown name or argument, listing the known ones."""
    cls = _observers.get(name)
    accepted = inspect.signature(cls).parameters
    unknown = sorted(set(kwargs) - set(accepted))
    if unknown:
        raise QuambaError(f"observer {name!r} takes no argument {', '.join(unknown)}; it takes {', '.join(accepted)}")
    missing = [key for key, p in accepted.items() if p.default is p.empty and key not in kwargs]
    if missing:
        raise QuambaError(f"observer {name!r} needs the argument {', '.join(missing)}")
    observer = cls(**kwargs)
    if not hasattr(observer, "maximum"):
        raise QuambaError(f"observer {name!r}: its __init__ must call super().__init__(n_bits, clip_ratio, sym)")
    return observer


def try_observer(name: str, /, **kwargs) -> None:
    """Runs an observer that is not this package's own on a few values, as calibration would for hours.

    Raises QuambaError where it cannot be made, updated or merged, or gives no scale.
    """
    if _observers.get(name).__module__.split(".")[0] == __name__.split(".")[0]:
        return
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 4, 8, generator=generator) for _ in range(2))
    try:
        observer, other = (create_observer(name, **kwargs) for _ in range(2))
        observer.update(first)
        other.update(second)
        observer.merge(other)
        scale, base = observer.get_quantization_parameters()
        require_usable(scale, base, str(observer))
        if kwargs and hasattr(observer, "settings"):
            observer.settings()
    except QuambaError:
        raise
    except Exception as error:  # a user's code may raise anything
        raise QuambaError(f"observer {name!r} fails on a trial of 64 values: {described_with_line(error)}") from error
