"""From logits to the next token: repetition penalty, temperature, top-k, top-p, and the choice. Pure functions.

Dims: B sequences, V vocabulary, T tokens so far. The order and the meaning of the steps are those of transformers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import QuambaError

TOP_P_CANDIDATES = 512  # looked at first: to order these takes a thirtieth of the time of ordering 50,000


@dataclass(frozen=True)
class SamplingOptions:
    """Say how tokens are chosen: greedily at temperature 0, where options of sampling would do nothing and are refused.

    None: no such limit; for `seed`: 0. Raises QuambaError naming a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        # comparisons are written so that NaN fails them
        if not 0 <= self.temperature < float("inf"):
            raise QuambaError(f"temperature {self.temperature}: 0 (greedy) or a positive number")
        if self.top_k is not None and not self.top_k >= 1:
            raise QuambaError(f"top_k {self.top_k}: a whole number of at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise QuambaError(f"top_p {self.top_p}: above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise QuambaError(f"repetition_penalty {self.repetition_penalty}: a positive number, 1 for none")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise QuambaError(f"seed {self.seed}: a whole number from 0 to {2**63 - 1}")
        if self.greedy:
            for name in ("top_k", "top_p", "seed"):
                if getattr(self, name) is not None:
                    raise QuambaError(f"{name} {getattr(self, name)} does nothing at temperature 0: give a higher one")

    @property
    def greedy(self) -> bool:
        """Return whether the likeliest token is taken every time."""
        return self.temperature == 0

    def generator(self) -> torch.Generator | None:
        """The random numbers of one run, None where none are needed."""
        return None if self.greedy else torch.Generator().manual_seed(self.seed or 0)


def penalize_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """logits [B, V] with those of the tokens `ids` int64 [B, T] made less likely, once however often they occur.

    A positive logit is divided by `penalty`, a negative one multiplied. Source: CTRL, arXiv 1909.05858, section 4.1.
    """
    seen = logits.gather(1, ids)  # [B, T]
    return logits.scatter(1, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """logits [B, V] with -inf for all that are below the k-th largest; those equal to it stay."""
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """logits [B, V] with -inf for all but the fewest tokens, likeliest first, whose probability reaches `top_p`.

    Source: nucleus sampling, arXiv 1904.09751.
    """
    probabilities = logits.softmax(-1)
    vocab_size = logits.shape[-1]
    for count in (min(TOP_P_CANDIDATES, vocab_size), vocab_size):
        best, index = probabilities.topk(count)  # [B, count], descending
        likelier = best.cumsum(-1) - best  # [B, count]: the probability of all that come before
        if bool((likelier[:, -1] >= top_p).all()):  # none of those that were not looked at can be kept
            break
    dropped = torch.ones_like(logits, dtype=torch.bool).scatter(1, index, likelier >= top_p)
    return logits.masked_fill(dropped, -torch.inf)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A random token of each row by its probability: [B, V] -> int64 [B], from one random number a row."""
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # [B, V]
    total = cumulative[:, -1:].contiguous()
    point = total * torch.rand(len(logits), 1, dtype=torch.float64, generator=generator)
    index = torch.searchsorted(cumulative, point, right=True)  # [B, 1], never a token of probability 0 ...
    last = torch.searchsorted(cumulative, total)  # ... not even where `point` is rounded up to the total
    return torch.minimum(index, last)[:, 0]


def choose(logits: Tensor, ids: Tensor, options: SamplingOptions, generator: torch.Generator | None) -> Tensor:
    """The next tokens int64 [B] after `ids` int64 [B, T], prompt included, by the float32 logits [B, V] that follow.

    Raises QuambaError for logits without a largest finite one: NaN or infinity from a broken model.
    """
    if options.repetition_penalty != 1:
        logits = penalize_repetition(logits, ids, options.repetition_penalty)
    largest = logits.argmax(-1, keepdim=True)  # [B, 1]; NaN counts as the largest
    if not bool(logits.gather(1, largest).isfinite().all()):
        raise QuambaError("the model's logits are NaN or infinite: its weights are damaged, or overflow in this dtype")
    if options.greedy:
        return largest[:, 0]
    logits = logits / options.temperature
    if options.top_k is not None:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    return draw(logits, generator)
