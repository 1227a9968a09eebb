"""Where a causal LM keeps its Mamba blocks: in every layer, or, as a hybrid, in some beside attention and MLPs.

A slot holds the mixer of a decoder layer and the norm that it alone reads. Models of Mamba blocks alone have both under
the same names; hybrids are rows of a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from torch import nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .layer_stack import decoder_layers


@dataclass(frozen=True)
class Hybrid:
    """A causal LM some of whose layers have a Mamba block, and linear layers beside it.

    kind: the row of `ARCHITECTURES` whose mixers serve it. mixer, norm: attributes of a decoder layer; in a layer
    without a Mamba block the former is missing or None. names: what a config of that kind calls a size -> what this
    model's config does, where they differ.
    """

    kind: str
    mixer: str
    norm: str
    names: Mapping[str, str] = field(default_factory=dict)


_MAMBA2_NAMES = {
    "num_heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "n_groups": "mamba_n_groups",
    "state_size": "mamba_d_state",
    "conv_kernel": "mamba_d_conv",
    "use_bias": "mamba_proj_bias",
    "use_conv_bias": "mamba_conv_bias",
    "layer_norm_epsilon": "rms_norm_eps",
}
_BAMBA = Hybrid("mamba2", mixer="mamba", norm="input_layernorm", names=_MAMBA2_NAMES)
# by the name of the model's class
HYBRIDS = {"BambaForCausalLM": _BAMBA, "GraniteMoeHybridForCausalLM": _BAMBA}
# by `model_type`, as config.json names it
HYBRID_TYPES = {
    model_type: HYBRIDS[name] for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in HYBRIDS
}


@dataclass
class MambaSlot:
    """The places of a Mamba block in a decoder layer; what is assigned to `mixer` and `norm` goes into the layer."""

    index: int  # of the layer
    layer: nn.Module
    mixer_name: str
    norm_name: str

    @property
    def mixer(self) -> nn.Module:
        """What computes the block."""
        return getattr(self.layer, self.mixer_name)

    @mixer.setter
    def mixer(self, module: nn.Module) -> None:
        setattr(self.layer, self.mixer_name, module)

    @property
    def norm(self) -> nn.Module:
        """What is before it."""
        return getattr(self.layer, self.norm_name)

    @norm.setter
    def norm(self, module: nn.Module) -> None:
        setattr(self.layer, self.norm_name, module)

    def within(self, name: str) -> str | None:
        """The name within the mixer of what has that name within the layer; None where it is not part of the mixer."""
        prefix = f"{self.mixer_name}."
        return name.removeprefix(prefix) if name.startswith(prefix) else None


def hybrid_of(model: nn.Module) -> Hybrid | None:
    """The row of a model's class; None where it is no hybrid that this package knows."""
    return HYBRIDS.get(type(model).__name__)


def mamba_slots(model: nn.Module) -> list[MambaSlot]:
    """Those of a model of Mamba blocks alone, or of a known hybrid, in the order of the layers."""
    hybrid = hybrid_of(model)
    mixer, norm = (hybrid.mixer, hybrid.norm) if hybrid else ("mixer", "norm")
    slots = [MambaSlot(index, layer, mixer, norm) for index, layer in enumerate(decoder_layers(model))]
    return [slot for slot in slots if getattr(slot.layer, mixer, None) is not None]


def mamba_layers(model: nn.Module) -> list[bool]:
    """Whether each decoder layer has a Mamba block, of a model as `mamba_slots` takes it."""
    indices = {slot.index for slot in mamba_slots(model)}
    return [index in indices for index in range(len(decoder_layers(model)))]


def block_config(model: nn.Module) -> PreTrainedConfig | SimpleNamespace:
    """What a model's config says of its Mamba blocks, under the names of a config of their kind."""
    config, hybrid = model.config, hybrid_of(model)
    if hybrid is None:
        return config
    same = ("hidden_size", "hidden_act", "time_step_limit")
    names = dict(zip(same, same, strict=True)) | hybrid.names
    return SimpleNamespace(**{ours: getattr(config, theirs) for ours, theirs in names.items()})
