"""Formats of a simulation: any number of bits, whether or not kernels run them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import QuambaError
from .formats import DEFAULT_GROUP_SIZE, FLOAT, TensorSpec

BITS = (*range(2, 9), FLOAT.bits)  # 16: float
_NAME = re.compile(r"w(\d+)a(\d+)")
_KEYS = {"weights": {"bits", "group_size"}, "activations": {"bits", "per_token"}, "tap": {"bits", "per_token"}}


def weight_format(bits: int, group_size: int | None = None) -> TensorSpec:
    """Return the format of weights of 2 to 8 bits, or of float ones (16): as those of `formats` where these have bits.

    Without a group size 8 bits are symmetric with a scale per channel, fewer asymmetric in groups of 128. Raises
    QuambaError for other bits and group sizes.
    """
    if bits == FLOAT.bits:
        if group_size is not None:
            raise QuambaError(f"group_size {group_size} does nothing for float weights: drop it")
        return FLOAT
    _check_bits("weights", bits)
    if group_size is None and bits == 8:
        return TensorSpec(8, granularity="per_channel")
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise QuambaError(f"a group of weights has at least one column, not {group_size!r}")
    return TensorSpec(bits, symmetric=False, granularity="per_group", group_size=group_size or DEFAULT_GROUP_SIZE)


def activation_format(bits: int, per_token: bool = False) -> TensorSpec:
    """Return the format of activations of 2 to 8 bits, or of float ones (16). Raises QuambaError for other bits."""
    if bits == FLOAT.bits:
        if per_token:
            raise QuambaError("scales per token are those of integers: activations of 16 bits are float")
        return FLOAT
    _check_bits("activations", bits)
    return TensorSpec(bits, granularity="per_token" if per_token else "per_tensor")


def _check_bits(what: str, bits: int) -> None:
    if type(bits) is not int or bits not in BITS:
        raise QuambaError(f"{what} of {bits!r} bits cannot be simulated: choose 2 to 8, or 16 (float)")


@dataclass(frozen=True)
class Simulation:
    """Formats of the linear layers' weights and of the activations, and of the taps that have one of their own."""

    name: str
    weight: TensorSpec
    act: TensorSpec
    taps: Mapping[str, TensorSpec] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, group_size: int | None = None, per_token: bool = False) -> "Simulation":
        """Return what `w4a4`, or the name of a JSON file, means; the other two hold for names.

        The file: {"weights": {"bits": 4, "group_size": 64}, "activations": {"bits": 4, "per_token": false}, "taps":
        {"x": {"bits": 8}}}, all but the first optional. Raises QuambaError for what is neither.
        """
        if match := _NAME.fullmatch(text.lower()):
            w_bits, a_bits = (int(bits) for bits in match.groups())
            return cls(text.lower(), weight_format(w_bits, group_size), activation_format(a_bits, per_token))
        if not text.endswith(".json"):
            raise QuambaError(f"{text!r} names no formats: write w4a4, or the name of a .json file")
        if group_size is not None or per_token:
            raise QuambaError(f"group sizes and scales per token stand in {text}: drop the option")
        try:
            fields = json.loads(Path(text).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise QuambaError(f"cannot read {text}: {error}") from error
        try:
            return cls._of(Path(text).stem, fields)
        except QuambaError as error:
            raise QuambaError(f"{text}: {error}") from error

    @classmethod
    def _of(cls, name: str, fields: object) -> "Simulation":
        """The formats that a file's object describes."""
        _check_keys("the file", fields, {"weights", "activations", "taps"})
        if "weights" not in fields:
            raise QuambaError("there are no 'weights'")
        for key in ("weights", "activations"):
            _check_keys(repr(key), fields.get(key, {"bits": FLOAT.bits}), _KEYS[key], "bits")
        taps = fields.get("taps", {})
        _check_keys("'taps'", taps, None)
        for tap, format_ in taps.items():
            _check_keys(f"tap {tap!r}", format_, _KEYS["tap"], "bits")
        return cls(
            name,
            weight_format(**fields["weights"]),
            activation_format(**fields.get("activations", {"bits": FLOAT.bits})),
            {tap: activation_format(**format_) for tap, format_ in taps.items()},
        )

    def act_of(self, tap: str) -> TensorSpec:
        """Return the format of a tap."""
        return self.taps.get(tap, self.act)

    @property
    def quantizes_activations(self) -> bool:
        """Return whether some activations are integers."""
        return not (self.act.is_float and all(spec.is_float for spec in self.taps.values()))

    @property
    def title(self) -> str:
        """The name in tables and logs, which says that it is a simulation."""
        return f"simulated-{self.name}"

    def describe(self) -> str:
        """Describe the formats for the terminal: `weights uint4 per group of 128, activations int4 per tensor, x int8
        per tensor`."""
        parts = [f"weights {self.weight.describe()}", f"activations {self.act.describe()}"]
        return ", ".join(parts + [f"{tap} {spec.describe()}" for tap, spec in self.taps.items()])

    def to_dict(self) -> dict:
        """Return plain data for a log."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Simulation":
        """Return what `to_dict` gave."""
        taps = {tap: TensorSpec(**spec) for tap, spec in fields["taps"].items()}
        return cls(fields["name"], TensorSpec(**fields["weight"]), TensorSpec(**fields["act"]), taps)


def _check_keys(what: str, fields: object, known: set[str] | None, needed: str | None = None) -> None:
    """Raises QuambaError unless `fields` is an object of the known keys."""
    if not isinstance(fields, dict):
        raise QuambaError(f"{what} is {str(fields)[:60]!r}, where an object is expected")
    if known is not None and (odd := sorted(set(fields) - known)):
        raise QuambaError(f"{what} has {odd[0]!r}: known are {', '.join(sorted(known))}")
    if needed and needed not in fields:
        raise QuambaError(f"{what} has no {needed!r}")


def simulation_of(model: object) -> Simulation | None:
    """Return the formats that a model simulates, None of one that does not."""
    return getattr(model, "quamba_simulation", None)
