"""How far two models lie apart: tensor by tensor, block by block, and in what they predict. Tensors in, figures out.

Model a is the reference: relative differences are ||a - b|| / ||a||, the divergence is KL(a || b).
Dims: n tokens of a window, H hidden, V vocabulary, O x I a weight.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import numerics
from ...errors import QuambaError
from ...nn.conv1d import QuantConv1d
from ...nn.linear import QuantLinear
from ...nn.weight import QuantWeight

EMBEDDING = -1  # the place of the first block's input in the order of the layers


@dataclass(frozen=True)
class ScaledWeight:
    """A weight [O, I] that is compared times `factors`, float32 [I] or [O, I]."""

    weight: Tensor | QuantWeight
    factors: Tensor


Values = Tensor | QuantWeight | QuantConv1d | ScaledWeight  # what has a name in a model, and values


class RunningDifference:
    """The difference of two tensors that come in parts: its relative norm and its largest magnitude."""

    def __init__(self):
        self.squared, self.reference, self.largest = 0.0, 0.0, 0.0

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """Takes in a part, any dtypes, of one shape; gives the magnitudes of its differences, float32."""
        a = a.float()
        difference = (a - b.float()).abs()
        if difference.numel():
            self.squared += float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2
            self.reference += float(torch.linalg.vector_norm(a, dtype=torch.float64)) ** 2
            largest = float(difference.max())
            self.largest = self.largest if largest <= self.largest else largest  # NaN takes over
        return difference

    @property
    def relative(self) -> float:
        """||a - b|| / ||a||; infinite where a is zero and b is not."""
        if self.squared == 0:
            return 0.0
        return math.inf if self.reference == 0 else math.sqrt(self.squared / self.reference)


@dataclass(frozen=True)
class TensorDifference:
    """One tensor of both models. `differing_share`: of the integers, where both have integers of one format."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    mean_abs: float
    relative: float
    differing_share: float | None = None


@dataclass(frozen=True)
class TensorComparison:
    """The tensors that both have, the largest relative difference first; the names of those without a counterpart."""

    differences: tuple[TensorDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[str, ...]  # in both, but of another shape, which is given behind the name, or another meaning

    @property
    def identical(self) -> int:
        """Return how many of the tensors are equal in every value."""
        return sum(difference.max_abs == 0 for difference in self.differences)


@dataclass(frozen=True)
class LayerDifference:
    """The hidden states behind a block over all tokens; layer -1 (EMBEDDING): what the first block reads."""

    layer: int
    relative: float
    max_abs: float


@dataclass(frozen=True)
class LogitsDifference:
    """KL(a || b) in nats and how often both find the same token likeliest, over `positions` tokens."""

    kl_mean: float
    kl_max: float
    agreement: float
    positions: int


def compare_tensors(a: Mapping[str, Values], b: Mapping[str, Values]) -> TensorComparison:
    """Tensors of one name, and quantized weights by the values that their integers stand for.

    A module stands for its weight. What a name shares with another one in both models (a tied head) is compared once;
    dimensions of size 1 do not make shapes differ.
    """
    differences, unlike, seen = [], [], set()
    for name in (name for name in a if name in b):
        pair = (id(a[name]), id(b[name]))
        if pair in seen:
            continue
        seen.add(pair)
        values_a, values_b = values_of(a[name]), values_of(b[name])
        if _form(values_a) != _form(values_b):
            unlike.append(f"{name} {list(values_a.shape)} and {list(values_b.shape)}")
            continue
        shape, differing = tuple(values_a.shape), differing_share(a[name], b[name])
        differences.append(_difference(name, shape, values_a.reshape(-1), values_b.reshape(-1), differing))
    differences.sort(key=lambda d: math.inf if math.isnan(d.relative) else d.relative, reverse=True)
    return TensorComparison(
        tuple(differences),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        unlike=tuple(unlike),
    )


def _form(values: Tensor) -> list[int]:
    return [size for size in values.shape if size != 1]


def _difference(name: str, shape: tuple, a: Tensor, b: Tensor, differing: float | None) -> TensorDifference:
    running = RunningDifference()
    difference = running.add(a, b)
    mean = float(difference.mean(dtype=torch.float64)) if difference.numel() else 0.0
    return TensorDifference(name, shape, running.largest, mean, running.relative, differing)


def values_of(tensor: Values) -> Tensor:
    """The values of a tensor, or those that a module's integers stand for: float32 [O, I] of the unscaled input."""
    if isinstance(tensor, ScaledWeight):
        return values_of(tensor.weight).float() * tensor.factors
    if isinstance(tensor, QuantLinear):  # with the multiplier of its input (AWQ), which the integers expect
        return tensor.multiplied(tensor.dequantized())
    if isinstance(tensor, QuantWeight | QuantConv1d):
        return tensor.dequantized()
    return tensor.detach()


def differing_share(a: Values, b: Values) -> float | None:
    """The share of integers that differ; None unless both are integers, of as many bits and groups where quantized."""
    a, b = (tensor.weight if isinstance(tensor, ScaledWeight) else tensor for tensor in (a, b))
    if getattr(a, "spec", None) != getattr(b, "spec", None):
        return None
    first, second = _integers(a), _integers(b)
    if first is None or second is None or first.shape != second.shape or first.numel() == 0:
        return None
    return float((first != second).double().mean())


def _integers(tensor: Tensor | QuantWeight | QuantConv1d) -> Tensor | None:
    if isinstance(tensor, QuantWeight):
        packed = tensor.rows()["weight"]
        return packed if tensor.group_size is None else numerics.unpack_uint4(packed, tensor.in_features)
    values = tensor.weight if isinstance(tensor, QuantConv1d) else tensor
    return None if values.is_floating_point() else values


def compare_logits(pairs: Iterable[tuple[Tensor, Tensor]]) -> LogitsDifference:
    """Over pairs of logits [n, V] of the same windows. In float64: the divergence of close models is tiny.

    Raises QuambaError for vocabularies of different sizes, and for no pair.
    """
    divergences, same = [], []
    for a, b in pairs:
        if a.shape != b.shape:
            raise QuambaError(
                f"the models give {a.shape[-1]} and {b.shape[-1]} logits for a token: they do not share a vocabulary"
            )
        log_p, log_q = a.double().log_softmax(dim=-1), b.double().log_softmax(dim=-1)  # [n, V]
        divergences.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))  # [n]
        same.append(a.argmax(dim=-1) == b.argmax(dim=-1))
    if not divergences:
        raise QuambaError("logits are compared on at least one window")
    kl, agreement = torch.cat(divergences).clamp(min=0), torch.cat(same)  # rounding may leave -1e-17
    return LogitsDifference(float(kl.mean()), float(kl.max()), float(agreement.double().mean()), len(kl))


def layer_differences(differences: Sequence[RunningDifference]) -> tuple[LayerDifference, ...]:
    """Return the differences of the first block's input and of every block's output, in order."""
    return tuple(
        LayerDifference(layer, running.relative, running.largest)
        for layer, running in enumerate(differences, start=EMBEDDING)
    )


def first_parting(layers: Sequence[LayerDifference], tolerance: float) -> LayerDifference | None:
    """The first layer whose relative difference exceeds the tolerance, or is no number; None where none does."""
    return next((layer for layer in layers if not layer.relative <= tolerance), None)


def sample_windows(stream: Tensor, seqlen: int, count: int) -> Tensor:
    """int64 [count, seqlen]: windows of a stream int64 [tokens] at even distances, all of them where it has fewer.

    Raises QuambaError where the stream has not even one.
    """
    available = len(stream) // seqlen
    if available == 0:
        raise QuambaError(
            f"the text has {len(stream)} tokens, fewer than a window of {seqlen}: give more text or a shorter --seqlen"
        )
    count = min(count, available)
    return stream[: available * seqlen].view(available, seqlen)[[i * available // count for i in range(count)]]
