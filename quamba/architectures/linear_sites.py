"""Which linear layers the weight path quantizes, in groups that share an input: AWQ's input scales, and statistics.

Those of this package's mixers are known; of all others every nn.Linear of a decoder layer is found, and those that are
called with the same tensor share it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import QuambaError
from ..models.layer_stack import pre_hooks, run_to_head
from ..models.mamba_slot import MambaSlot
from ..nn.mixer import FloatMixer
from ..nn.taps import PER_TOKEN_TAPS
from .anatomy import Anatomy
from .base import Architecture
from .table import norm_readers


@dataclass(frozen=True)
class Site:
    """Linear layers of a decoder layer that read one activation; names are within the layer.

    `watched`: the module whose output (`of_output`) or whose input is that activation. `norm`: the norm that nothing
    else reads, None where the input scales cannot go into one. `scalable`: whether there may be input scales at all.
    """

    linears: tuple[str, ...]
    watched: str
    of_output: bool
    norm: str | None = None
    scalable: bool = True

    @property
    def name(self) -> str:
        """Return the name for messages: `mlp.gate_proj+up_proj`."""
        first, *others = self.linears
        return "+".join([first, *(name.rsplit(".", 1)[-1] for name in others)])


def mixer_sites(architecture: Architecture, name: str, float_activations: bool) -> list[Site]:
    """Return the sites of this package's mixer, which has that name within its layer.

    An int8 input with a static scale that serves others than linear layers too (of Mamba's x_proj and dt_proj) takes no
    input scales.
    """
    return [
        Site(
            (f"{name}.{linear}",),
            f"{name}.taps.{tap}",
            of_output=True,
            scalable=float_activations or tap in PER_TOKEN_TAPS,
        )
        for linear, tap in architecture.inputs.items()
    ]


def find_sites(model: PreTrainedModel, probe: Tensor, float_activations: bool) -> list[list[Site]]:
    """The sites of every decoder layer. probe: int64 [L], run through the model once where they have to be found.

    Raises QuambaError for a layer without linear layers, and for a linear layer that the probe does not reach.
    """
    anatomy = Anatomy.of(model)
    layers, slots = anatomy.layers, _own_mixers(anatomy)
    linears = [_linears_beside(layer, slots.get(index)) for index, layer in enumerate(layers)]
    inputs = _linear_inputs(model, [module for layer in linears for module in layer.values()], probe)
    readers = norm_readers(model)
    sites = []
    for index, layer in enumerate(layers):
        found = _sites_of(linears[index], index, inputs, readers)
        if slot := slots.get(index):
            found = mixer_sites(anatomy.architecture, slot.mixer_name, float_activations) + found
        if not found:
            raise QuambaError(f"layer {index}, a {type(layer).__name__}, has no linear layers to quantize")
        sites.append(found)
    return sites


def _own_mixers(anatomy: Anatomy) -> dict[int, MambaSlot]:
    """Layer index -> where a float mixer of this package is."""
    return {slot.index: slot for slot in anatomy.slots if isinstance(slot.mixer, FloatMixer)}


def _linears_beside(layer: nn.Module, slot: MambaSlot | None) -> dict[str, nn.Linear]:
    """The linear layers of a decoder layer by name, without those of its Mamba slot's mixer."""
    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    return {name: linear for name, linear in linears.items() if slot is None or slot.within(name) is None}


@dataclass
class _Input:
    """A tensor that a linear layer was called with: kept alive, so that identity tells tensors apart, and which of its
    values, where it is changed in place."""

    tensor: Tensor
    version: int

    def is_same(self, other: "_Input") -> bool:
        return self.tensor is other.tensor and self.version == other.version


def _linear_inputs(model: PreTrainedModel, linears: list[nn.Linear], probe: Tensor) -> dict[nn.Module, list[_Input]]:
    """Linear layer -> what it was called with, every time."""
    inputs: dict[nn.Module, list[_Input]] = {}
    if not linears:
        return inputs

    def record(linear: nn.Module, args: tuple, kwargs: dict) -> None:
        tensor = _read(args, kwargs)
        inputs.setdefault(linear, []).append(_Input(tensor, 0 if tensor.is_inference() else tensor._version))

    with pre_hooks(linears, record):
        run_to_head(model, probe[None])
    return inputs


def _read(args: tuple, kwargs: dict) -> Tensor:
    """Return what a linear layer was called with, by position or by name."""
    return args[0] if args else kwargs["input"]


def _sites_of(
    linears: dict[str, nn.Linear], index: int, inputs: dict[nn.Module, list[_Input]], readers: dict
) -> list[Site]:
    groups: list[tuple[list[_Input], list[str]]] = []
    for name, module in linears.items():
        if module not in inputs:
            raise QuambaError(
                f"layers.{index}.{name} was not reached by the first window of the calibration text: experts, and "
                "attention to what an encoder gives, are not supported"
            )
        group = next((names for others, names in groups if _all_same(others, inputs[module])), None)
        if group is None:
            groups.append((inputs[module], group := []))
        group.append(name)
    norms = {frozenset(names): norm for norm, names in readers.items()}
    return [Site(tuple(names), names[0], of_output=False, norm=norms.get(frozenset(names))) for _, names in groups]


def _all_same(some: list[_Input], others: list[_Input]) -> bool:
    return len(some) == len(others) and all(a.is_same(b) for a, b in zip(some, others, strict=True))


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
            handles.append(
                module.register_forward_pre_hook(lambda _m, *call: update(site, _read(*call)), with_kwargs=True)
            )

    try:
        for site in sites:
            watch(site)
        yield
    finally:
        for handle in handles:
            handle.remove()
