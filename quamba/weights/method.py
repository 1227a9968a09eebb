"""A method of the weight path as data, and what it does to the linear layers that share one input.

Dims: I in features, O out features (V rows of a head), G groups of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import QuambaError
from .awq import ScaledStatistics, scale_statistics, search_scales
from .clip import clip_weight
from .gptq import GptqOptions, gptq
from .grid import Grid
from .head import head_chunks
from .rounded import RoundedWeight
from .rounding import FlipOptions, FlipStatistics, apply_rounding, get_rounding
from .rounding_state import RoundingState
from .statistics import InputStatistics

METHODS = ("rtn", "gptq", "awq", "awq+gptq")
NEAREST, MEAN = "nearest", "mean"
HEAD_ROWS = 1024  # sampled tokens that the error of a chunk of the head is taken on: it has many outputs


@dataclass(frozen=True)
class WeightMethod:
    """Say how weights are turned into integers. Raises QuambaError for values that there are not.

    method: `awq` scales input channels first, `gptq` rounds column by column, `rtn` to nearest. rounding: the
    registered rule that moves single integers afterwards (`nearest` moves none); flips: its options. n_grid: steps of
    the search for alpha; clip: search for clipped ranges too. sequential: statistics are of a model whose earlier
    layers are quantized already, `layer_batch_size` of them at a time; otherwise of the float model. lm_head_chunks: of
    the rows of a quantized head, each with an alpha of its own, chosen on at most `HEAD_ROWS` tokens. sample_rows:
    tokens that errors are measured on. seed: of their choice.
    """

    method: str = "rtn"
    rounding: str = NEAREST
    flips: FlipOptions = field(default_factory=FlipOptions)
    n_grid: int = 20
    clip: bool = False
    gptq: GptqOptions = field(default_factory=GptqOptions)
    sequential: bool = True
    layer_batch_size: int = 16
    lm_head_chunks: int = 4
    sample_rows: int = 2048
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise QuambaError(f"unknown weight method {self.method!r}: choose one of {', '.join(METHODS)}")
        get_rounding(self.rounding)
        for name in ("n_grid", "layer_batch_size", "lm_head_chunks", "sample_rows"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise QuambaError(f"{name} is a whole number from 1 up, not {getattr(self, name)!r}")

    @property
    def scales_inputs(self) -> bool:
        """Return whether input channels are scaled."""
        return self.method.startswith("awq")

    @property
    def calibrated(self) -> bool:
        """Return whether it needs to see activations."""
        return self.method != "rtn" or self.rounding != NEAREST or self.clip

    @property
    def second_moment(self) -> bool:
        """Return whether it needs E[x x^T] of every input."""
        return "gptq" in self.method or self.rounding not in (NEAREST, MEAN)  # a rule of the user's may need it

    def describe(self) -> str:
        """Describe the method for the terminal: `awq+gptq, clipped, hessian flips`."""
        parts = [self.method] + (["clipped"] if self.clip else [])
        return ", ".join(parts + ([] if self.rounding == NEAREST else [f"{self.rounding} flips"]))


# by the bits of the weights, where the user names no method: 8 bits lose nothing that a search could give back; at 4 no
# method here is better than GPTQ by more than the calibration text decides; at 3 flips behind it help with every text
# that was tried (python benchmarks/weights.py)
DEFAULT_METHODS = {8: WeightMethod("rtn"), 4: WeightMethod("gptq"), 3: WeightMethod("gptq", "hessian")}


@dataclass
class SiteReport:
    """Hold what became of the linear layers that share an input: errors are mean squared, of their outputs on the
    sample."""

    alpha: float | None  # None: no search
    error: float
    nearest_error: float  # of rounding to nearest, without scales
    flips: dict | None  # the statistics of each linear layer's flips

    def to_dict(self) -> dict:
        """Plain data for the log."""
        return {"alpha": self.alpha, "error": self.error, "nearest_error": self.nearest_error, "flips": self.flips}


@torch.no_grad()
def round_linears(
    weights: Mapping[str, Tensor],
    statistics: InputStatistics | None,
    grid: Grid,
    method: WeightMethod,
    *,
    norm_weight: Tensor | None = None,
    scalable: bool = True,
    output_rows: int | None = None,
) -> tuple[dict[str, RoundedWeight], SiteReport | None]:
    """The integers of linear layers [O, I] that share an input, by name, and how well they fit.

    `statistics`: of the input, None where the method needs none (the report is then None). `norm_weight` [I]: of the
    norm that the input scales go into; `scalable`: whether there may be any; `output_rows`: sampled tokens that it is
    searched on (None: all). Raises QuambaError where the statistics are unfit.
    """
    if statistics is None:
        return {name: _rounded(grid.nearest(weight), None) for name, weight in weights.items()}, None
    search = None
    if method.scales_inputs and scalable:
        search = search_scales(list(weights.values()), statistics, grid, n_grid=method.n_grid, output_rows=output_rows)
        if norm_weight is not None:
            search = replace(search, scales=foldable(search.scales, norm_weight))
    scales = None if search is None or search.alpha == 0 else search.scales
    seen = statistics if scales is None else scale_statistics(statistics, scales)
    rounded, flips, error, nearest_error = {}, {}, 0.0, 0.0
    for name, weight in weights.items():
        target = weight.detach().float() if scales is None else search.scaled(weight)
        state, flip_statistics = _round(target, seen, grid, method)
        rounded[name] = _rounded(state, scales)
        if flip_statistics is not None:
            flips[name] = flip_statistics.to_dict()
        error += output_error(target - state.dequantized(), seen.sample)
        nearest_error += output_error(grid.nearest(weight).error(), statistics.sample)
    alpha = None if search is None else search.alpha
    return rounded, SiteReport(alpha, error, nearest_error, flips or None)


def _round(
    target: Tensor, statistics: InputStatistics | ScaledStatistics, grid: Grid, method: WeightMethod
) -> tuple[RoundingState, FlipStatistics | None]:
    """The weight's integers, and what flipped where a rule was named."""
    if method.clip:
        target = clip_weight(target, statistics, grid)
    if "gptq" in method.method:
        state = gptq(target, statistics.second, grid, options=method.gptq)
    else:
        state = grid.nearest(target)
    if method.rounding == NEAREST:
        return state, None
    return apply_rounding(method.rounding, state, statistics, method.flips)


def _rounded(state: RoundingState, scales: Tensor | None) -> RoundedWeight:
    dtype = torch.int8 if state.low < 0 else torch.uint8
    return RoundedWeight(state.integers.to(dtype), state.scale, state.zero, scales)


def output_error(difference: Tensor, sample: Tensor) -> float:
    """Mean over rows of |X D^T|^2: difference D float32 [O, I], sample X float32 [n, I]."""
    return float((sample @ difference.T).square().sum(dtype=torch.float64)) / len(sample)


def foldable(scales: Tensor, norm_weight: Tensor) -> Tensor:
    """The scales [I] nearest to those given that a norm's weight [I] can take in without a rounding error.

    The folded weight norm / s is rounded to the norm's dtype first, and s is what leads there. A norm's channel of 0
    has no input, and keeps its scale.
    """
    limits = torch.finfo(norm_weight.dtype)
    folded = norm_weight.float() / scales
    magnitude = folded.abs().clamp(limits.tiny, limits.max)  # float16 would lose a channel, or make it infinite
    folded = torch.where(folded == 0, folded, magnitude.copysign(folded)).to(norm_weight.dtype).float()
    return torch.where(folded == 0, scales, norm_weight.float() / folded)


def effective_weight(rounded: RoundedWeight, group_size: int | None) -> Tensor:
    """The weight that the integers and the input scales together stand for, float32 [O, I]."""
    columns = rounded.integers.shape[1]
    state = RoundingState(
        rounded.integers, rounded.integers.float(), rounded.scale, rounded.zero, group_size or columns, 0, 0
    )
    values = state.dequantized()
    return values if rounded.input_scales is None else values / rounded.input_scales


def round_head(
    weight: Tensor, statistics: InputStatistics, grid: Grid, method: WeightMethod, scalable: bool
) -> tuple[RoundedWeight, list[SiteReport]]:
    """The integers of a head [V, I] in chunks of rows, and a report of each.

    Where the method scales inputs and may, `input_scales` is [C, I], those of each chunk; else it is None.
    """
    parts, reports = [], []
    for rows in head_chunks(weight.shape[0], method.lm_head_chunks):
        chunk = {"": weight[rows.start : rows.stop]}
        rounded, report = round_linears(chunk, statistics, grid, method, scalable=scalable, output_rows=HEAD_ROWS)
        parts.append(rounded[""])
        reports.append(report)
    whole = [torch.cat([getattr(part, name) for part in parts]) for name in ("integers", "scale", "zero")]
    input_scales = None
    if method.scales_inputs and scalable:
        ones = torch.ones(weight.shape[1], dtype=torch.float32)
        input_scales = torch.stack([ones if part.input_scales is None else part.input_scales for part in parts])
    return RoundedWeight(*whole, input_scales), reports
