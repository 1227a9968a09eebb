"""Number formats and schemes as data: a scheme is a row of a table, never a class of its own."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from ..errors import QuambaError

GROUP_SIZES = (32, 64, 128, 256)
DEFAULT_GROUP_SIZE = 128


@dataclass(frozen=True)
class TensorSpec:
    """Number format of one kind of tensor: integers of `bits`, or floats where the granularity is "none"."""

    bits: int
    symmetric: bool = True
    granularity: str = "per_tensor"  # per_tensor | per_token | per_channel | per_group | none
    group_size: int | None = None  # of per_group: neighbours in the last dimension that share a scale and a zero point

    @property
    def is_float(self) -> bool:
        """Return whether values stay floats."""
        return self.granularity == "none"

    @property
    def is_per_token(self) -> bool:
        """Return whether an activation has a scale for every token, found as it comes."""
        return self.granularity == "per_token"

    @property
    def is_static(self) -> bool:
        """Return whether an activation has scales that calibration finds."""
        return self.granularity == "per_tensor"

    @property
    def is_grouped(self) -> bool:
        """Return whether neighbours in a row of a weight share a scale."""
        return self.granularity == "per_group"

    def describe(self) -> str:
        """Describe the format for a module's `repr`: `int8 per channel`, `uint4 per group of 128`, `float`."""
        if self.is_float:
            return "float"
        kind = f"{'int' if self.symmetric else 'uint'}{self.bits} {self.granularity.replace('_', ' ')}"
        return kind if self.group_size is None else f"{kind} of {self.group_size}"


# the format of a weight by its bits, and of an activation by its bits and by whether its scales are dynamic
WEIGHTS = {
    8: TensorSpec(8, granularity="per_channel"),
    4: TensorSpec(4, symmetric=False, granularity="per_group", group_size=DEFAULT_GROUP_SIZE),
    3: TensorSpec(3, symmetric=False, granularity="per_group", group_size=DEFAULT_GROUP_SIZE),  # stored as 4 bits
}
FLOAT_STATE_BITS = 32
STATE_BITS = (8, FLOAT_STATE_BITS)  # of a cached SSM state: int8 with static scales, or float32
FLOAT = TensorSpec(16, granularity="none")
STATIC, DYNAMIC = TensorSpec(8), TensorSpec(8, granularity="per_token")
ACTIVATIONS = {(8, False): STATIC, (8, True): DYNAMIC, (16, False): FLOAT}


def weight_spec(bits: int, group_size: int | None = None) -> TensorSpec:
    """The format of weights of 8, 4 or 3 bits. Raises QuambaError for other bits and for groups that there are not."""
    if type(bits) is not int or bits not in WEIGHTS:
        raise QuambaError(f"weights have 3, 4 or 8 bits, not {bits!r}")
    if group_size is None:
        return WEIGHTS[bits]
    if not WEIGHTS[bits].is_grouped:
        raise QuambaError(f"group_size {group_size} needs 4 or 3-bit weights: {bits}-bit ones have a scale per channel")
    if type(group_size) is not int or group_size not in GROUP_SIZES:
        raise QuambaError(f"group_size {group_size!r} has no kernels: choose of {', '.join(map(str, GROUP_SIZES))}")
    return TensorSpec(bits, symmetric=False, granularity="per_group", group_size=group_size)


@dataclass(frozen=True)
class Scheme:
    """Formats of the weights and of the activations of a quantized block.

    An activation "per_token" has dynamic scales at the inputs of in_proj, out_proj and lm_head, static ones elsewhere.
    """

    name: str
    weight: TensorSpec
    act: TensorSpec

    @property
    def conv_weight(self) -> TensorSpec:
        """The convolution's weights, K a channel: int8 with quantized activations, else float, whatever the others."""
        return FLOAT if self.act.is_float else WEIGHTS[8]


SCHEMES = {
    name: Scheme(name, weight=WEIGHTS[w_bits], act=ACTIVATIONS[a_bits, False])
    for name, w_bits, a_bits in ((f"w{w_bits}a{a_bits}", w_bits, a_bits) for a_bits in (8, 16) for w_bits in WEIGHTS)
}


def get_scheme(name: str, group_size: int | None = None, dynamic: bool = False) -> Scheme:
    """The scheme of that name; `group_size` of 4 and 3-bit weights (None: 128), `dynamic`: activation scales per token.

    Raises QuambaError naming the known ones, and for a group size or dynamic scales where they mean nothing.
    """
    if name not in SCHEMES:
        raise QuambaError(f"unknown scheme {name!r}: choose one of {', '.join(SCHEMES)}")
    scheme = SCHEMES[name]
    act = ACTIVATIONS.get((scheme.act.bits, dynamic))
    if act is None:
        raise QuambaError(f"dynamic scales are those of 8-bit activations: scheme {name} leaves activations float")
    return Scheme(name, weight_spec(scheme.weight.bits, group_size), act)


def variants() -> Iterator[Scheme]:
    """Every scheme that this version runs, with every group size and kind of activation scales."""
    for name, scheme in SCHEMES.items():
        for group_size in GROUP_SIZES if scheme.weight.is_grouped else (None,):
            for bits, dynamic in ACTIVATIONS:
                if bits == scheme.act.bits:
                    yield get_scheme(name, group_size, dynamic)


def scheme_from_dict(fields: dict) -> Scheme:
    """The scheme that a checkpoint's config describes. Raises QuambaError where no kernel here runs it."""
    for scheme in variants():
        if asdict(scheme) == fields:
            return scheme
    raise QuambaError(
        f"this checkpoint's scheme {str(fields)[:300]} is not one this version runs ({', '.join(SCHEMES)})"
    )


def fitting_scheme(name: str, group_size: int | None, dynamic: bool) -> Scheme:
    """The scheme of that name with what it has a use for: a group size below 8 bits, scales per token of integers.

    Raises QuambaError for a scheme and a group size that there are not.
    """
    plain = get_scheme(name)
    grouped = plain.weight.is_grouped
    return get_scheme(name, group_size if grouped else None, dynamic and not plain.act.is_float)
