"""What is quantized to what, as data: a scheme is a row of a table, never a class of its own."""

from dataclasses import asdict, dataclass

from .errors import QuambaError


@dataclass(frozen=True)
class TensorSpec:
    """Number format of one kind of tensor."""

    bits: int
    symmetric: bool = True
    granularity: str = "per_tensor"  # per_tensor | per_channel


@dataclass(frozen=True)
class Scheme:
    """Formats of the weights and of the activations of a quantized block."""

    name: str
    weight: TensorSpec
    act: TensorSpec


SCHEMES = {
    scheme.name: scheme
    for scheme in (Scheme("w8a8", weight=TensorSpec(8, granularity="per_channel"), act=TensorSpec(8)),)
}


def get_scheme(name: str) -> Scheme:
    """The scheme of that name. Raises QuambaError naming the known ones."""
    if name not in SCHEMES:
        raise QuambaError(f"unknown scheme {name!r}: choose one of {', '.join(SCHEMES)}")
    return SCHEMES[name]


def scheme_from_dict(fields: dict) -> Scheme:
    """The scheme that a checkpoint's config describes. Raises QuambaError where no kernel here runs it."""
    for scheme in SCHEMES.values():
        if asdict(scheme) == fields:
            return scheme
    raise QuambaError(f"this checkpoint's scheme {fields!r} is not one this version runs ({', '.join(SCHEMES)})")


@dataclass(frozen=True)
class QuantizationRecipe:
    """Everything that decides which modules a quantized model has: enough to build one without its tensors."""

    scheme: Scheme
    quantize_embedding: bool = False
    quantize_lm_head: bool = False
    tied_head: bool = False  # one int8 table serves embedding and head
    rotate_residual: bool = False

    def to_dict(self) -> dict:
        """Plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "QuantizationRecipe":
        """The recipe of a checkpoint. Raises QuambaError on a scheme or a field that this version does not know."""
        names = set(cls.__dataclass_fields__)
        if set(fields) != names:
            odd = sorted(set(fields) ^ names)
            raise QuambaError(f"quantization_config does not fit this version: missing or unknown fields {odd}")
        return cls(**{**fields, "scheme": scheme_from_dict(fields["scheme"])})
