"""Rounds the weights of a float model layer by layer, by a method that looks at what each linear layer reads.

Decoder layers are taken in order, some at a time. The hidden states of all windows are carried from one batch of layers
to the next, and memory holds the model, the statistics of one batch and those states; where a model's layers share more
than hidden states (see `LayerStack`) none are kept, and each batch of layers is reached from the first one. A finished
batch can be kept on the disk, from where an interrupted run goes on to the same bits.

Dims: C windows, B of them at a time, L tokens, H hidden, I in features of a linear layer.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from ..architectures.linear_sites import Site, find_sites, linear_of, watching
from ..errors import QuambaError
from ..models.layer_stack import LayerStack
from ..models.memory import peak_memory_bytes, reset_peak_memory
from ..scheme.formats import TensorSpec
from ..weights.grid import Grid
from ..weights.method import SiteReport, WeightMethod, effective_weight, round_head, round_linears
from ..weights.rounded import RoundedWeight
from ..weights.statistics import InputStatistics
from .resume import ResumeFolder

logger = logging.getLogger(__name__)

Layer = dict[str, RoundedWeight]  # linear layer, by its name within the decoder layer


@dataclass
class RoundedModel:
    """The integers of every decoder layer, and how they came about; `reports`: by `layers.{i}.{site}`."""

    layers: list[Layer] = field(default_factory=list)
    head: RoundedWeight | None = None
    reports: dict[str, dict] = field(default_factory=dict)
    scaled_inputs: tuple[str, ...] = ()  # the linear layers, by their name within a layer, whose input is scaled
    tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def to_dict(self) -> dict:
        """Plain data for the log: all but the integers."""
        return {name: getattr(self, name) for name in ("tokens", "seconds", "peak_bytes", "reports")}


class _Text:
    """Windows int64 [C, L] on their way through a model's layers, a batch at a time, and how far they have come.

    states: the hidden states [B, L, H] of each batch behind the layers that are done; None where nothing is carried.
    """

    def __init__(self, stack: LayerStack, windows: Tensor, batch_size: int, states: Sequence[Tensor] = ()):
        self.stack, self.batches = stack, windows.split(batch_size)
        self.states: list[Tensor | None] = list(states) if stack.carries and states else [None] * len(self.batches)

    def run(self, chosen: range, move: bool) -> None:
        """Runs every batch through some layers; move: and leaves it behind them."""
        for position, (batch, state) in enumerate(zip(self.batches, self.states, strict=True)):
            behind = self.stack.run(batch, chosen, state)
            if move:
                self.states[position] = behind

    def carried(self) -> list[Tensor]:
        """The states that must be kept to go on later: none where nothing is carried."""
        return [state for state in self.states if state is not None]

    def head_inputs(self) -> Iterator[Tensor]:
        """Return what the head reads, [B, L, H], of every batch."""
        for batch, state in zip(self.batches, self.states, strict=True):
            yield self.stack.head_input(batch, state)


@torch.no_grad()
def round_weights(
    model: PreTrainedModel,
    windows: Tensor,
    spec: TensorSpec | Sequence[TensorSpec],
    method: WeightMethod,
    *,
    float_activations: bool,
    head: TensorSpec | None = None,
    batch_size: int = 8,
    folder: ResumeFolder | None = None,
    progress: bool = True,
) -> RoundedModel:
    """The integers of a float model's linear layers, and that model with the weights that they stand for.

    windows: int64 [C, L], calibration text. spec: the format of the weights of the decoder layers, one for all or one
    for each; head: that of the head's, None where it stays as it is. float_activations: whether the model will run with
    float activations. folder: where finished batches of layers are kept and found again. The model is changed in place:
    each weight becomes what its integers mean, in its own dtype.
    Raises QuambaError naming the layer whose input is unfit (NaN, infinity) or whose second moment has no inverse.
    """
    start = time.perf_counter()
    reset_peak_memory()
    stack = LayerStack(model, windows[0])
    sites = find_sites(model, windows[0], float_activations)
    grids = [Grid.of(spec)] * len(sites) if isinstance(spec, TensorSpec) else [Grid.of(each) for each in spec]
    result = RoundedModel(scaled_inputs=scaled_input_names(sites, method), tokens=windows.numel())
    states: list[Tensor] = []  # [B, L, H] each
    if folder and (left := folder.restore()):
        result.layers, result.reports, states = left
        if method.sequential:
            _set_all_weights(stack, result.layers, grids)
    text = _Text(stack, windows, batch_size, states)
    with tqdm(total=len(sites), initial=len(result.layers), desc="Weights", unit="layer", disable=not progress) as bar:
        while len(result.layers) < len(sites):
            first = len(result.layers)
            chosen = range(first, min(first + method.layer_batch_size, len(sites)))
            _round_batch(text, chosen, sites, grids, method, result, bar)
            if folder and not _kept(folder, result, text.carried(), first):
                folder = None
    if head is not None:
        result.head = _round_head(text, Grid.of(head), method, float_activations, result)
    if not method.sequential:  # until here every statistic was of the float model
        _set_all_weights(stack, result.layers, grids)
    result.seconds, result.peak_bytes = time.perf_counter() - start, peak_memory_bytes()
    logger.info("rounded %d layers in %.1f s", len(sites), result.seconds)
    return result


def _kept(folder: ResumeFolder, result: RoundedModel, hidden: list[Tensor], first: int) -> bool:
    """Return whether the progress could be kept; where it cannot, as on a full disk, the run goes on without."""
    try:
        folder.keep(result.layers, result.reports, hidden, first)
    except QuambaError as error:
        logger.warning("%s: the run goes on, and could not be resumed from here", error)
        return False
    return True


def _round_batch(
    text: _Text,
    chosen: range,
    sites: list[list[Site]],
    grids: list[Grid],
    method: WeightMethod,
    result: RoundedModel,
    bar: tqdm,
) -> None:
    """Rounds some layers on what reaches them of the text, and leaves that behind them."""
    seen = _watch(text, chosen, sites, method)
    for index in chosen:
        layer = text.stack.layers[index]
        rounded: Layer = {}
        for site in sites[index]:
            name = f"layers.{index}.{site.name}"
            try:
                integers, report = _round_site(layer, site, seen.pop((index, site)), grids[index], method)
            except QuambaError as error:
                raise QuambaError(f"{name}: {error}") from error
            rounded |= integers
            result.reports[name] = report.to_dict()
            bar.set_postfix_str(_account(name, report))
        result.layers.append(rounded)
        bar.update()
    if method.sequential and text.stack.carries:  # what the next layers will read: these are quantized now
        text.run(chosen, move=True)


def _watch(
    text: _Text, chosen: range, sites: list[list[Site]], method: WeightMethod
) -> dict[tuple[int, Site], InputStatistics]:
    """The statistics of every site of some layers; unless the run is sequential the hidden states move on."""
    seen: dict[tuple[int, Site], InputStatistics] = {}
    with ExitStack() as hooks:
        for index in chosen:
            layer = text.stack.layers[index]
            hooks.enter_context(watching(layer, sites[index], partial(_update, seen, layer, index, method)))
        text.run(chosen, move=not method.sequential)
    return seen


def _update(seen: dict, layer: nn.Module, index: int, method: WeightMethod, site: Site, activation: Tensor) -> None:
    key = (index, site)
    if key not in seen:
        seen[key] = InputStatistics(
            linear_of(layer, site.linears[0]).in_features,
            second_moment=method.second_moment,
            sample_rows=method.sample_rows,
            seed=method.seed,
        )
    try:
        seen[key].update(activation)
    except QuambaError as error:
        raise QuambaError(f"layers.{index}.{site.name}: {error}") from error


def _round_site(
    layer: nn.Module, site: Site, statistics: InputStatistics, grid: Grid, method: WeightMethod
) -> tuple[Layer, SiteReport]:
    """The integers of a site's linear layers, whose weights become what those stand for; at once where in sequence."""
    weights = {name: linear_of(layer, name).weight for name in site.linears}
    norm = None if site.norm is None else layer.get_submodule(site.norm).weight
    rounded, report = round_linears(weights, statistics, grid, method, norm_weight=norm, scalable=site.scalable)
    if method.sequential:
        _set_weights(layer, rounded, grid.group_size)
    return rounded, report


def _set_all_weights(stack: LayerStack, layers: list[Layer], grids: list[Grid]) -> None:
    """Do so in all layers that are rounded, from the first on."""
    for layer, rounded, grid in zip(stack.layers, layers, grids, strict=False):
        _set_weights(layer, rounded, grid.group_size)


def _set_weights(layer: nn.Module, rounded: Layer, group_size: int | None) -> None:
    """Gives linear layers the weights that their integers stand for."""
    for name, integers in rounded.items():
        linear_of(layer, name).weight.copy_(effective_weight(integers, group_size))


def _round_head(text: _Text, grid: Grid, method: WeightMethod, scalable: bool, result: RoundedModel) -> RoundedWeight:
    """The integers of the head on what it reads of the text."""
    weight = text.stack.model.get_output_embeddings().weight
    seen = InputStatistics(
        weight.shape[1], second_moment=method.second_moment, sample_rows=method.sample_rows, seed=method.seed
    )
    try:
        for state in text.head_inputs():
            seen.update(state)
        rounded, reports = round_head(weight, seen, grid, method, scalable)
    except QuambaError as error:
        raise QuambaError(f"lm_head: {error}") from error
    for chunk, report in enumerate(reports):
        result.reports[f"lm_head.{chunk}"] = report.to_dict()
    return rounded


def _account(name: str, report: SiteReport) -> str:
    """Describe a site for the progress bar: `layers.3.mixer.in_proj alpha 0.45 error 0.62 of nearest, 120 flips`."""
    parts = [name] + ([] if report.alpha is None else [f"alpha {report.alpha:.2f}"])
    if report.nearest_error > 0:
        parts.append(f"error {report.error / report.nearest_error:.2f} of nearest")
    if report.flips:
        parts.append(f"{sum(flips['flips'] for flips in report.flips.values())} flips")
    return " ".join(parts)


def scaled_input_names(sites: list[list[Site]], method: WeightMethod) -> tuple[str, ...]:
    """The linear layers, by their name within a layer, whose inputs a quantized model multiplies."""
    if not method.scales_inputs:
        return ()
    return tuple(dict.fromkeys(name for layer in sites for site in layer for name in _own_scaled_input(site)))


def _own_scaled_input(site: Site) -> Iterator[str]:
    """Yield the linear layers of a site that takes input scales which do not go into a norm's weight."""
    if site.scalable and site.norm is None:
        yield from site.linears
