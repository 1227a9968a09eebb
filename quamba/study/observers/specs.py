"""An observer with its constructor's arguments, as the command line names it."""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ...calibration.defaults import create_tap_observer
from ...errors import QuambaError
from ...observers.per_tensor import Observer, observer_names

BASELINE = "minmax"  # max/127: nothing saturates
MAX_BITS = 8  # taps are quantized to int8


@dataclass(frozen=True)
class ObserverSpec:
    """An observer's name and arguments; `label` is the text that it was named with."""

    label: str
    name: str
    options: Mapping = field(default_factory=dict, hash=False)

    def create(self, n_bits: int) -> Observer:
        """A new observer. Raises QuambaError for arguments that it does not take and bits that taps do not have."""
        if n_bits > MAX_BITS:
            raise QuambaError(f"taps are quantized to 2 to {MAX_BITS} bits, not {n_bits}")
        try:
            return create_tap_observer(self.name, n_bits, self.options)
        except QuambaError:
            raise
        except (TypeError, ValueError) as error:  # an argument of another type than the constructor works with
            raise QuambaError(f"observer {self.label!r}: {error}") from error


def parse_spec(text: str) -> ObserverSpec:
    """`NAME` or `NAME:ARGUMENT=VALUE,ARGUMENT=VALUE`: `outlier_aware:normal_ratio=0.9999,normal_level=124`.

    Values are Python literals. Raises QuambaError for unknown observers and for arguments that are none.
    """
    name, _, arguments = text.partition(":")
    if name not in observer_names():
        raise QuambaError(f"unknown observer {name!r}: choose one of {', '.join(observer_names())}")
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if call.args or None in options or len(options) < len(call.keywords):  # `3`, `**{}`, an argument given twice
            raise ValueError
    except (SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise QuambaError(f"observer {text!r}: write NAME or NAME:ARGUMENT=VALUE,... with plain values") from error
    return ObserverSpec(text, name, options)


def parse_specs(texts: Iterable[str], baseline: str, n_bits: int) -> list[ObserverSpec]:
    """The baseline, then the others in their order, each once. Raises QuambaError before anything is measured."""
    specs = {text: parse_spec(text) for text in (baseline, *texts)}
    for spec in specs.values():
        spec.create(n_bits)
    if len(specs) < 2:
        raise QuambaError(f"nothing to compare: {baseline!r} is the baseline, name another observer")
    return list(specs.values())
