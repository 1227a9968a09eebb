"""Which linear layers the weight path quantizes, in groups that share an input: one AWQ vector, one set of statistics.

The mixers of this package are known; in any other decoder layer every nn.Linear is found, and those that are called
with the same tensor share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import QuambaError
from .layer_stack import decoder_layers, pre_hooks
from .nn.mamba1 import Mamba1Mixer

# class of the model -> norm -> the linear layers that together are all that reads it: their vector goes into its weight
_LLAMA = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
NORM_READERS = dict.fromkeys(("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"), _LLAMA)


@dataclass(frozen=True)
class Site:
    """Linear layers of a decoder layer that read one activation; names are within the layer.

    `watched`: the module whose output (`of_output`) or whose input is that activation. `norm`: the norm that nothing
    else reads, None where the vector cannot go into one. `scalable`: whether there may be a vector at all.
    """

    linears: tuple[str, ...]
    watched: str
    of_output: bool
    norm: str | None = None
    scalable: bool = True

    @property
    def name(self) -> str:
        """For messages: `mlp.gate_proj+up_proj`."""
        first, *others = self.linears
        return "+".join([first, *(name.rsplit(".", 1)[-1] for name in others)])


def mamba1_sites(float_activations: bool) -> list[Site]:
    """Those of a block with this package's mixer.

    The int8 inputs of x_proj and dt_proj have one static scale each, which serves the scan too: they take no vector.
    """
    return [
        Site(("mixer.in_proj",), "mixer.taps.in", of_output=True),
        Site(("mixer.x_proj",), "mixer.taps.x", of_output=True, scalable=float_activations),
        Site(("mixer.dt_proj",), "mixer.taps.dt_rank", of_output=True, scalable=float_activations),
        Site(("mixer.out_proj",), "mixer.taps.out", of_output=True),
    ]


def find_sites(model: PreTrainedModel, probe: Tensor, float_activations: bool) -> list[list[Site]]:
    """The sites of every decoder layer. probe: int64 [L], run through the model once where they have to be found.

    Raises QuambaError for a layer without linear layers, and for a linear layer that the probe does not reach.
    """
    layers = decoder_layers(model)
    if all(isinstance(getattr(layer, "mixer", None), Mamba1Mixer) for layer in layers):
        return [mamba1_sites(float_activations) for _ in layers]
    readers = NORM_READERS.get(type(model).__name__, {})
    inputs = _linear_inputs(model, layers, probe)
    return [_sites_of(layer, index, inputs, readers) for index, layer in enumerate(layers)]


def _linear_inputs(model: PreTrainedModel, layers: nn.ModuleList, probe: Tensor) -> dict[nn.Module, Tensor]:
    """Linear layer -> the tensor that it was called with; kept alive, so that identity tells tensors apart."""
    inputs: dict[nn.Module, Tensor] = {}

    def record(linear: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs[linear] = args[0] if args else kwargs["input"]

    linears = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]
    with pre_hooks(linears, record), torch.no_grad():
        model.base_model(probe[None], use_cache=False)
    return inputs


def _sites_of(layer: nn.Module, index: int, inputs: dict[nn.Module, Tensor], readers: dict) -> list[Site]:
    groups: list[tuple[Tensor, list[str]]] = []
    for name, module in layer.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if module not in inputs:
            raise QuambaError(
                f"layers.{index}.{name} was not reached by the calibration text: experts are not supported"
            )
        group = next((names for tensor, names in groups if tensor is inputs[module]), None)
        if group is None:
            groups.append((inputs[module], group := []))
        group.append(name)
    if not groups:
        raise QuambaError(f"layer {index}, a {type(layer).__name__}, has no linear layers to quantize")
    norms = {frozenset(names): norm for norm, names in readers.items()}
    return [Site(tuple(names), names[0], of_output=False, norm=norms.get(frozenset(names))) for _, names in groups]


def linear_of(layer: nn.Module, name: str) -> nn.Linear:
    """The linear layer of that name within a decoder layer."""
    return layer.get_submodule(name)


@contextmanager
def watching(layer: nn.Module, sites: list[Site], update) -> Iterator[None]:
    """Calls update(site, activation [..., I]) whenever the layer runs; the hooks go when the block is left."""
    handles = []

    def watch(site: Site) -> None:
        module = layer.get_submodule(site.watched)
        if site.of_output:
            handles.append(module.register_forward_hook(lambda _m, _args, out: update(site, out)))
        else:
            handles.append(module.register_forward_pre_hook(lambda _m, args: update(site, args[0])))

    try:
        for site in sites:
            watch(site)
        yield
    finally:
        for handle in handles:
            handle.remove()
