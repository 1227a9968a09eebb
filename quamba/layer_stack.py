"""The decoder layers of any causal LM, run one after the other outside of its own forward pass.

Dims: B windows of a batch, L tokens, H hidden.
"""

from collections.abc import Callable
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .errors import QuambaError

FINAL_NORMS = ("norm_f", "norm", "final_layernorm", "final_layer_norm", "ln_f")


class _Reached(Exception):
    """Ends a forward pass at the first layer, whose input is what was wanted."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of a model's decoder layers. Raises QuambaError where its backbone has no such list."""
    count = model.config.num_hidden_layers
    lists = [m for m in model.base_model.children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise QuambaError(
            f"{type(model).__name__} cannot be quantized: its backbone has {len(lists)} lists of {count} layers, "
            "where one is expected"
        )
    return lists[0]


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last layer and the head. Raises QuambaError where it has none of the usual names."""
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(model.base_model, name, None), nn.Module):
            return norm
    raise QuambaError(f"the head of {type(model).__name__} cannot be quantized: no final norm {', '.join(FINAL_NORMS)}")


def hidden_of(output: Tensor | tuple) -> Tensor:
    """The hidden states [B, L, H] among what a decoder layer returns."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def pre_hooks(modules: list[nn.Module], hook: Callable):
    """Forward pre-hooks with keyword arguments on modules, removed however the block is left."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LayerStack:
    """A model's layers and how the model calls them.

    `probe`, int64 [L], is run through the whole model once: what each layer is called with besides the hidden states
    (positions, masks) is the same for every window of that length, and broadcasts over B.
    """

    def __init__(self, model: PreTrainedModel, probe: Tensor):
        self.model, self.layers = model, decoder_layers(model)
        self.calls: dict[nn.Module, dict] = {}

        def record(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            self.calls[layer] = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            if len(args) > 1:
                raise QuambaError(
                    f"{type(layer).__name__} takes more than its hidden states by position: not supported"
                )

        with pre_hooks(list(self.layers), record), torch.no_grad():
            model.base_model(probe[None], use_cache=False)

    @torch.no_grad()
    def embed(self, windows: Tensor) -> Tensor:
        """int64 [B, L] -> the input of the first layer [B, L, H]."""
        found: list[Tensor] = []

        def stop(_layer: nn.Module, args: tuple, kwargs: dict) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        with pre_hooks([self.layers[0]], stop), suppress(_Reached):
            self.model.base_model(windows, use_cache=False)
        return found[0]

    @torch.no_grad()
    def run(self, index: int, hidden: Tensor) -> Tensor:
        """Layer `index` on hidden states [B, L, H]."""
        layer = self.layers[index]
        return hidden_of(layer(hidden, **self.calls[layer]))
