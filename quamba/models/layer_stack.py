"""The decoder layers of any causal LM, run some at a time within the model's own forward pass.

Dims: B windows of a batch, L tokens, H hidden.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..borders import foreign
from ..errors import QuambaError
from .text_config import text_config

logger = logging.getLogger(__name__)

FINAL_NORMS = ("norm_f", "norm", "final_layernorm", "final_layer_norm", "ln_f")
SAME = 1e-4  # by which what two passes give a layer may differ, relative: float sums on a GPU change their order


class _Reached(Exception):
    """Ends a forward pass at the place whose input or output is what was wanted."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of a model's decoder layers. Raises QuambaError where its text decoder has no such list."""
    config = text_config(model)
    counts = [getattr(config, name, None) for name in ("decoder_layers", "num_hidden_layers")]
    count = next((count for count in counts if count is not None), None)
    lists = []
    for module in (model.get_decoder(), model.base_model):  # the former is the head where that is named `decoder`
        lists = lists or [found for found in _outermost_lists(module) if len(found) == count]
    if len(lists) > 1:  # other lists of that many modules: what the library itself calls layers is meant
        names = set(getattr(model, "_no_split_modules", None) or ())
        lists = [found for found in lists if {type(layer).__name__ for layer in found} <= names] or lists
    if len(lists) != 1:
        raise QuambaError(
            f"{type(model).__name__} cannot be quantized: its backbone has {len(lists)} lists of {count} layers, "
            "where one is expected"
        )
    return lists[0]


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of modules at any depth that are within no other list."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)


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
def pre_hooks(modules: Sequence[nn.Module], hook: Callable):
    """Forward pre-hooks with keyword arguments on modules, removed however the block is left."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def post_hooks(modules: Sequence[nn.Module], hook: Callable):
    """Forward hooks on modules, removed however the block is left."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run_to_head(model: PreTrainedModel, windows: Tensor) -> Tensor | None:
    """Run a model's own forward pass on windows int64 [B, L] up to its head, whose input [B, L, H] is returned.

    None where the head is not reached. Raises QuambaError where the model fails on such windows, saying how.
    """
    found: list[Tensor] = []

    def stop(_head: nn.Module, args: tuple, kwargs: dict) -> None:
        found.append(args[0] if args else next(iter(kwargs.values())))
        raise _Reached

    head = model.get_output_embeddings()
    parameters = inspect.signature(model.forward).parameters
    accepts = "use_cache" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    with (
        foreign(f"{type(model).__name__} cannot be run on windows of {windows.shape[-1]} tokens"),
        pre_hooks([] if head is None else [head], stop),
        suppress(_Reached),
    ):
        model(windows.to(model.device), **({"use_cache": False} if accepts else {}))
    return found[0] if found else None


@dataclass
class _Call:
    """Hold what a layer, or the head, was called with (all tensors among it), and the hidden states that a layer
    gave."""

    place: int  # of the layer; behind the last one: the head
    given: list[Tensor]
    hidden: Tensor | None = None  # None: of the head, and where a layer gives something else than a tensor


class LayerStack:
    """A model's decoder layers, of which some run at a time, in the model's own forward pass.

    So what a layer is called with beside its hidden states (positions, masks, keys and values of other layers) is what
    the model makes of the very windows that run. The layers before those are passed over: hidden states that were
    carried from there take their place. Where layers hand on more than hidden states nothing is carried, and every run
    begins at the first layer. `carries`: which of the two it is, tried out on `probe`, int64 [L]: at every layer, and
    at the head, the pass must go on as a whole one does.
    Raises QuambaError for a model whose layers cannot be found, and where it fails on the probe.
    """

    def __init__(self, model: PreTrainedModel, probe: Tensor):
        self.model, self.layers = model, decoder_layers(model)
        self._tuples: dict[nn.Module, int] = {}  # layer -> values in the tuple that it returns, where it is one
        whole = self._record(probe)
        self._in_order = [call.place for call in whole] == list(range(len(self.layers) + 1))
        self.carries = self._in_order and self._goes_on_everywhere(probe, whole)
        if not self.carries:
            logger.info(
                "layers of %s share more than hidden states: each run starts at the first", type(model).__name__
            )

    @torch.no_grad()
    def run(self, windows: Tensor, chosen: range, state: Tensor | None) -> Tensor | None:
        """Run neighbouring layers on windows int64 [B, L], and give what comes behind them, for the next ones.

        state: what was given for the layers before them, [B, L, H]; None, as where nothing is carried: those run too.
        """
        found: list[Tensor] = []

        def stop(_layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            if self.carries:
                found.append(hidden_of(output))
            raise _Reached

        last = [self.layers[chosen[-1]]] if self._in_order else []
        with self._passed_over(chosen.start, state), post_hooks(last, stop):
            run_to_head(self.model, windows)
        return found[0] if found else None

    @torch.no_grad()
    def head_input(self, windows: Tensor, state: Tensor | None) -> Tensor:
        """Return what the head reads, [B, L, H], on windows int64 [B, L]; state: what `run` gave for the last layer.

        Raises QuambaError for a model that does not call its head.
        """
        with self._passed_over(len(self.layers), state):
            found = run_to_head(self.model, windows)
        if found is None:
            raise QuambaError(f"the head of {type(self.model).__name__} is not called in its forward pass")
        return found

    @contextmanager
    def _passed_over(self, count: int, state: Tensor | None) -> Iterator[None]:
        """The first layers compute nothing: each gives `state` in its usual form; None: all layers run."""
        passed = [] if state is None else list(self.layers[:count])

        def stub(layer: nn.Module) -> Callable:
            def forward(*_args, **_kwargs) -> Tensor | tuple:
                hidden = state.clone()  # what comes behind may change it in place
                size = self._tuples.get(layer)
                return hidden if size is None else (hidden, *[None] * (size - 1))

            return forward

        before = [layer.__dict__.get("forward") for layer in passed]
        try:
            for layer in passed:
                layer.forward = stub(layer)
            yield
        finally:
            for layer, own in zip(passed, before, strict=True):
                if own is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = own

    def _record(self, probe: Tensor, stop: int | None = None) -> list[_Call]:
        """Every call of a layer and of the head when a window int64 [L] runs; `stop`: up to that place."""
        places = {layer: index for index, layer in enumerate(self.layers)}
        calls: list[_Call] = []

        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            calls.append(_Call(places[module], [tensor.clone() for tensor in _tensors([args, kwargs])]))

        def leave(layer: nn.Module, _args: tuple, output: Tensor | tuple) -> None:
            if isinstance(hidden := hidden_of(output), Tensor):
                calls[-1].hidden = hidden.clone()  # what comes behind may change it in place
            if isinstance(output, tuple):
                self._tuples[layer] = len(output)
            if places[layer] == stop:
                raise _Reached

        with ExitStack() as hooks:
            hooks.enter_context(pre_hooks(self.layers, enter))
            hooks.enter_context(post_hooks(self.layers, leave))
            reached = run_to_head(self.model, probe[None])
            if reached is not None:
                calls.append(_Call(len(self.layers), [reached]))
        return calls

    def _goes_on_everywhere(self, probe: Tensor, whole: list[_Call]) -> bool:
        """Return whether a pass that enters at any layer, or at the head, goes on as the whole pass of the probe
        did."""
        if any(call.hidden is None for call in whole[:-1]):
            return False
        # of another window: what a module kept of an earlier one must not be taken for this one's
        self._record(probe.flip(0))
        try:
            return all(self._goes_on(probe, before.hidden, call) for before, call in pairwise(whole))
        except QuambaError:  # the model misses what a layer that was passed over would have left
            return False

    def _goes_on(self, probe: Tensor, state: Tensor, whole: _Call) -> bool:
        """Return whether a pass that enters behind `state` calls the next place as `whole` says, and gets the same from
        it."""
        with self._passed_over(whole.place, state):
            calls = [call for call in self._record(probe, stop=whole.place) if call.place >= whole.place]
        if len(calls) != 1 or calls[0].place != whole.place:
            return False
        mine, theirs = ([*call.given, *([] if call.hidden is None else [call.hidden])] for call in (calls[0], whole))
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))


def _tensors(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors within an argument of a layer: in containers, and in objects that hold some, such as caches."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, nn.Module | PreTrainedConfig | str | type):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        yield from _tensors(part, seen)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and bool((a.double() - b.double()).norm() <= SAME * b.double().norm())
