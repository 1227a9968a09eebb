"""What is quantized to what, as data: a scheme is a row of a table, never a class of its own."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .errors import QuambaError

GROUP_SIZES = (32, 64, 128, 256)
DEFAULT_GROUP_SIZE = 128


@dataclass(frozen=True)
class TensorSpec:
    """Number format of one kind of tensor: integers of `bits`, or floats where the granularity is "none"."""

    bits: int
    symmetric: bool = True
    granularity: str = "per_tensor"  # per_tensor | per_token | per_channel | per_group | none
    group_size: int | None = None  # of per_group: neighbours in the last dimension that share a scale and a zero point

    def describe(self) -> str:
        """For a module's `repr`: `int8 per channel`, `uint4 per group of 128`, `float`."""
        if self.granularity == "none":
            return "float"
        kind = f"{'int' if self.symmetric else 'uint'}{self.bits} {self.granularity.replace('_', ' ')}"
        return kind if self.group_size is None else f"{kind} of {self.group_size}"


# the format of a weight by its bits, and of an activation by its bits and by whether its scales are dynamic
WEIGHTS = {
    8: TensorSpec(8, granularity="per_channel"),
    4: TensorSpec(4, symmetric=False, granularity="per_group", group_size=DEFAULT_GROUP_SIZE),
    3: TensorSpec(3, symmetric=False, granularity="per_group", group_size=DEFAULT_GROUP_SIZE),  # stored as 4 bits
}
FLOAT = TensorSpec(16, granularity="none")
STATIC, DYNAMIC = TensorSpec(8), TensorSpec(8, granularity="per_token")
ACTIVATIONS = {(8, False): STATIC, (8, True): DYNAMIC, (16, False): FLOAT}


def weight_spec(bits: int, group_size: int | None = None) -> TensorSpec:
    """The format of weights of 8, 4 or 3 bits. Raises QuambaError for other bits and for groups that there are not."""
    if type(bits) is not int or bits not in WEIGHTS:
        raise QuambaError(f"weights have 3, 4 or 8 bits, not {bits!r}")
    if group_size is None:
        return WEIGHTS[bits]
    if WEIGHTS[bits].granularity != "per_group":
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
        return FLOAT if self.act == FLOAT else WEIGHTS[8]


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
        for group_size in GROUP_SIZES if scheme.weight.granularity == "per_group" else (None,):
            for bits, dynamic in ACTIVATIONS:
                if bits == scheme.act.bits:
                    yield get_scheme(name, group_size, dynamic)


def scheme_from_dict(fields: dict) -> Scheme:
    """The scheme that a checkpoint's config describes. Raises QuambaError where no kernel here runs it."""
    for scheme in variants():
        if asdict(scheme) == fields:
            return scheme
    raise QuambaError(f"this checkpoint's scheme {fields!r} is not one this version runs ({', '.join(SCHEMES)})")


@dataclass(frozen=True)
class QuantizationRecipe:
    """Everything that decides which modules a quantized model has: enough to build one without its tensors.

    Raises QuambaError for bits that no table has, and for one table of two formats.
    """

    scheme: Scheme
    embedding_bits: int | None = None  # None: float
    lm_head_bits: int | None = None
    tied_head: bool = False  # one quantized table serves embedding and head
    rotate_residual: bool = False
    multipliers: tuple[str, ...] = ()  # linear layers, by their name in a block, whose input has a vector (AWQ)
    lm_head_chunks: int = 0  # of the head's rows, where the input has a vector for each

    def __post_init__(self):
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON has lists
        for bits in (self.embedding_bits, self.lm_head_bits):
            if bits is not None:
                weight_spec(bits)
        if self.tied_head and (self.embedding_bits is None or self.embedding_bits != self.lm_head_bits):
            raise QuambaError(
                f"a table cannot serve an embedding of {self.embedding_bits} and a head of {self.lm_head_bits} bits"
            )

    def table(self, bits: int) -> TensorSpec:
        """The format of an embedding or head of that many bits; 4-bit ones have the groups of the scheme's weights."""
        return self.scheme.weight if bits == self.scheme.weight.bits else weight_spec(bits)

    def describe(self) -> str:
        """For the terminal: `weights uint4 per group of 128, activations int8 per tensor, head int8 per channel`."""
        parts = [f"weights {self.scheme.weight.describe()}", f"activations {self.scheme.act.describe()}"]
        tables = {"embedding": self.embedding_bits, "head": self.lm_head_bits}
        if self.tied_head:
            tables = {"one table for embedding and head": self.embedding_bits}
        parts += [f"{name} {self.table(bits).describe()}" for name, bits in tables.items() if bits is not None]
        parts += ["rotated residual"] if self.rotate_residual else []
        return ", ".join(parts)

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


def create_recipe(
    scheme: str,
    *,
    tied: bool,
    group_size: int | None = None,
    dynamic: bool = False,
    quantize_embedding: bool = False,
    quantize_lm_head: bool = False,
    embedding_bits: int | None = None,
    lm_head_bits: int | None = None,
    untie: bool = False,
    rotate_residual: bool = False,
) -> QuantizationRecipe:
    """What the arguments of `quamba.quantize` mean for a model; `tied`: its embedding and head are one tensor.

    Raises QuambaError for values that there are not, and for arguments that would do nothing.
    """
    block = get_scheme(scheme, group_size, dynamic)
    for name, bits, asked in (
        ("embedding", embedding_bits, quantize_embedding),
        ("lm_head", lm_head_bits, quantize_lm_head),
    ):
        if bits is not None and not asked:
            raise QuambaError(f"{name}_bits {bits} does nothing without quantize_{name}: add it, or drop the bits")
    if untie and not (quantize_embedding and quantize_lm_head):
        raise QuambaError(
            "to untie embedding and head does nothing unless both are quantized: add quantize_embedding and "
            "quantize_lm_head, or drop it"
        )
    embedding_bits = (embedding_bits or block.weight.bits) if quantize_embedding else None
    lm_head_bits = (lm_head_bits or block.weight.bits) if quantize_lm_head else None
    one_table = quantize_embedding and embedding_bits == lm_head_bits
    return QuantizationRecipe(
        scheme=block,
        embedding_bits=embedding_bits,
        lm_head_bits=lm_head_bits,
        tied_head=tied and one_table and not untie and not rotate_residual,  # a rotation tells the two apart
        rotate_residual=rotate_residual,
    )
