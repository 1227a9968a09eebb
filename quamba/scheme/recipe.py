"""What a quantized model consists of, as data, and what the arguments of `quamba.quantize` mean for one."""

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass

from ..errors import QuambaError
from .formats import (
    FLOAT,
    STATE_BITS,
    WEIGHTS,
    Scheme,
    TensorSpec,
    fitting_scheme,
    get_scheme,
    scheme_from_dict,
    weight_spec,
)


@dataclass(frozen=True)
class QuantizationRecipe:
    """Everything that decides which modules a quantized model has: enough to build one without its tensors.

    `scheme` is that of the blocks and, for its activations, of the head; `layers` that of each block where they differ.
    Raises QuambaError for bits that no table has, and for one table of two formats.
    """

    scheme: Scheme
    embedding_bits: int | None = None  # None: float
    lm_head_bits: int | None = None
    tied_head: bool = False  # one quantized table serves embedding and head
    rotate_residual: bool = False
    multipliers: tuple[str, ...] = ()  # linear layers, by their name in a block, whose input is scaled (AWQ)
    lm_head_chunks: int = 0  # of the head's rows, where each has input scales of its own
    layers: tuple[Scheme, ...] = ()  # of every decoder layer, where they differ
    reordered: bool = False  # whether heads and channels of Mamba2 stand in another order, in groups with a scale each
    state_bits: int = 32  # of Mamba2's cached SSM states: 8 (int8 with static scales) or 32 (float)

    def __post_init__(self):
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # JSON has lists
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.state_bits not in STATE_BITS:
            raise QuambaError(f"SSM states have {' or '.join(map(str, STATE_BITS))} bits, not {self.state_bits!r}")
        if self.state_bits == 8 and any(scheme.act.is_float for scheme in self.block_schemes):
            raise QuambaError("SSM states of 8 bits need 8-bit activations in every layer: leave state_bits at 32")
        for name in ("embedding_bits", "lm_head_bits"):
            if (bits := getattr(self, name)) is not None and (type(bits) is not int or bits not in WEIGHTS):
                raise QuambaError(f"{name} are 3, 4 or 8, not {bits!r}")
        if self.tied_head and (self.embedding_bits is None or self.embedding_bits != self.lm_head_bits):
            raise QuambaError(
                f"a table cannot serve an embedding of {self.embedding_bits} and a head of {self.lm_head_bits} bits"
            )

    @property
    def block_schemes(self) -> tuple[Scheme, ...]:
        """The schemes that some decoder layer has, each once."""
        return tuple(dict.fromkeys(self.layers)) or (self.scheme,)

    @property
    def head_act(self) -> TensorSpec:
        """The format of the head's input: `scheme`'s where the head is quantized."""
        return FLOAT if self.lm_head_bits is None else self.scheme.act

    @property
    def integer_acts(self) -> tuple[TensorSpec, ...]:
        """The formats of the activations that are integers, of the decoder layers and of the head, each once."""
        acts = dict.fromkeys([*(scheme.act for scheme in self.block_schemes), self.head_act])
        return tuple(act for act in acts if not act.is_float)

    @property
    def quantizes_activations(self) -> bool:
        """Return whether some are integers."""
        return bool(self.integer_acts)

    @property
    def name(self) -> str:
        """The name in logs and tables: `w4a8`, or `w4a8+w8a8` of layers that differ."""
        return "+".join(sorted({scheme.name for scheme in self.block_schemes}))

    def layer_scheme(self, layer_idx: int) -> Scheme:
        """Return the scheme of a decoder layer."""
        return self.layers[layer_idx] if self.layers else self.scheme

    def table(self, bits: int) -> TensorSpec:
        """The format of an embedding or head of that many bits; 4-bit ones have the groups of the scheme's weights."""
        return self.scheme.weight if bits == self.scheme.weight.bits else weight_spec(bits)

    def describe(self, mamba_layers: Sequence[bool] = ()) -> str:
        """Describe the recipe for the terminal: `weights uint4 per group of 128, activations int8 per tensor, head int8
        per channel`.

        `mamba_layers`: whether each decoder layer has a Mamba block, whose activations alone are quantized; none: all.
        """
        parts = [f"weights {self.scheme.weight.describe()}", f"activations {_where(self.scheme.act, mamba_layers)}"]
        if self.layers:
            have_block = mamba_layers or [True] * len(self.layers)
            of_scheme = {
                s: [block for own, block in zip(self.layers, have_block, strict=True) if own == s]
                for s in self.block_schemes
            }
            parts = [
                f"{len(blocks)} of {len(self.layers)} layers {s.name} (weights {s.weight.describe()}, activations "
                f"{_where(s.act, blocks)})"
                for s, blocks in of_scheme.items()
            ]
        tables = {"embedding": self.embedding_bits, "head": self.lm_head_bits}
        if self.tied_head:
            tables = {"one table for embedding and head": self.embedding_bits}
        parts += [f"{name} {self.table(bits).describe()}" for name, bits in tables.items() if bits is not None]
        parts += ["rotated residual"] if self.rotate_residual else []
        parts += ["grouped heads"] if self.reordered else []
        parts += ["int8 SSM states"] if self.state_bits == 8 else []
        return ", ".join(parts)

    def to_dict(self) -> dict:
        """Plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "QuantizationRecipe":
        """The recipe of a checkpoint; a field that it was written before has its default.

        Raises QuambaError on a scheme or a field that this version does not know, and without a scheme.
        """
        known = cls.__dataclass_fields__
        if unknown := sorted(set(fields) - set(known)):
            raise QuambaError(
                f"quantization_config has {unknown[0]!r}, which this version does not know: install a newer quamba"
            )
        if missing := [name for name, field in known.items() if field.default is MISSING and name not in fields]:
            raise QuambaError(f"quantization_config has no {missing[0]!r}")
        fields = {name: field.default for name, field in known.items() if field.default is not MISSING} | fields
        if not isinstance(fields["layers"], list | tuple):
            raise QuambaError(
                f"quantization_config has {fields['layers']!r} for the schemes of layers, which is no list"
            )
        names = fields["multipliers"]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise QuambaError(f"quantization_config has {str(names)[:80]!r} for multipliers, which is no list of names")
        for name, kind in (
            ("tied_head", bool),
            ("rotate_residual", bool),
            ("reordered", bool),
            ("lm_head_chunks", int),
        ):
            if type(fields[name]) is not kind or fields[name] < 0:
                raise QuambaError(f"quantization_config has {str(fields[name])[:80]!r} for {name}")
        layers = tuple(scheme_from_dict(scheme) for scheme in fields["layers"])
        return cls(**{**fields, "scheme": scheme_from_dict(fields["scheme"]), "layers": layers})


def _where(act: TensorSpec, have_block: Sequence[bool]) -> str:
    """The format of activations of layers some of which may have no Mamba block, and with it none but float ones."""
    if act.is_float or all(have_block):
        return act.describe()
    if not any(have_block):
        return f"{FLOAT.describe()}: no Mamba block"
    blocks = have_block.count(True)
    name = f"{blocks} Mamba block{'s' if blocks > 1 else ''}"
    return f"{act.describe()} in {name}, {FLOAT.describe()} in the other layers"


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
    state_bits: int = 32,
    reordered: bool = False,
    layer_schemes: Sequence[str] = (),
) -> QuantizationRecipe:
    """Return what the arguments of `quamba.quantize` mean for a model; `tied`: its embedding and head are one tensor.

    `layer_schemes`: the name of each decoder layer's scheme, none where all have `scheme`; then `group_size` and
    `dynamic` hold for those, and for the head, that have a use for them.
    Raises QuambaError for values that there are not, and for arguments that would do nothing.
    """
    block, layers = _schemes(scheme, layer_schemes, group_size, dynamic)
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
    if quantize_embedding and embedding_bits is None:
        embedding_bits = block.weight.bits
    if quantize_lm_head and lm_head_bits is None:
        lm_head_bits = block.weight.bits
    one_table = quantize_embedding and embedding_bits == lm_head_bits
    return QuantizationRecipe(
        scheme=block,
        embedding_bits=embedding_bits,
        lm_head_bits=lm_head_bits,
        tied_head=tied and one_table and not untie and not rotate_residual,  # a rotation tells the two apart
        rotate_residual=rotate_residual,
        state_bits=state_bits,
        reordered=reordered,
        layers=layers,
    )


def _schemes(
    name: str, layer_names: Sequence[str], group_size: int | None, dynamic: bool
) -> tuple[Scheme, tuple[Scheme, ...]]:
    """Return the scheme of the blocks and the head, and those of layers that differ. Raises QuambaError as
    `create_recipe`."""
    if isinstance(layer_names, str):
        raise QuambaError(f"the schemes of layers are a list of names, one a layer, not {layer_names!r}")
    if not layer_names:
        return get_scheme(name, group_size, dynamic), ()
    layers = tuple(fitting_scheme(layer, group_size, dynamic) for layer in layer_names)
    if group_size is not None and all(layer.weight.group_size is None for layer in layers):
        raise QuambaError(f"group_size {group_size} needs layers of 4 or 3-bit weights: all have a scale per channel")
    if dynamic and all(layer.act.is_float for layer in layers):
        raise QuambaError("dynamic scales are those of 8-bit activations: every layer leaves activations float")
    return fitting_scheme(name, group_size, dynamic), layers
