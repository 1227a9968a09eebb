"""Perplexity of a causal language model on windows of tokens.

Dims: B windows of a batch, n tokens of a window, p predicted ones among them, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import QuambaError
from ..models.original import in_eval_mode
from ..models.positions import check_positions
from ..models.text_config import text_config

MAX_LOGITS = 2**28  # elements of one forward pass's logits: 1 GiB in float32
SEQLEN = "the length of a perplexity window (--ppl_seqlen)"  # in messages
NLL_CHUNK = 2**24  # logits elements that are turned to float32 log-probabilities at a time


@dataclass(frozen=True)
class PerplexityResult:
    """`ppl` = exp(sum of nll / tokens); per window its mean nll in nats (float64) and its predicted tokens (int64)."""

    ppl: float
    tokens: int
    window_nll: np.ndarray
    window_tokens: np.ndarray


class Window(NamedTuple):
    """Tokens int64 [n] that are read together; those from `predicted_from` (1 or more) on are predicted."""

    tokens: Tensor
    predicted_from: int = 1

    @property
    def predicted(self) -> int:
        """Return how many tokens are predicted."""
        return len(self.tokens) - self.predicted_from


def perplexity(
    model,
    windows: Sequence[Tensor] | Tensor,
    batch_size: int = 16,
    max_windows: int | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """exp of the mean negative log-likelihood: each window, read alone, predicts its tokens 1 .. n-1.

    `windows`: int64 [n] each, n >= 2, of any lengths; `max_windows`: only the first ones. The batch size changes the
    speed, not the result (beyond float accumulation): windows of different lengths never share a batch, so nothing is
    padded. Log-probabilities are float32, sums float64. Raises QuambaError for too few windows, for too short ones, and
    for ones longer than the model has positions.
    """
    windows = list(windows[:max_windows])
    check_windows(windows)
    return window_perplexity(model, [Window(window) for window in windows], batch_size, progress)


def check_windows(windows: Sequence[Tensor]) -> None:
    """Raises QuambaError unless there is a window, and two tokens in each."""
    if not windows or min(len(window) for window in windows) < 2:
        raise QuambaError("perplexity needs at least one window, each of two tokens or more")


@torch.inference_mode()
def window_perplexity(
    model, windows: Sequence[Window], batch_size: int, progress: bool = True, description: str = "perplexity"
) -> PerplexityResult:
    """exp of the mean nll of the predicted tokens of every window, which is read alone; see `perplexity`.

    `description`: what stands before the progress bar. Raises QuambaError for no window, for one that predicts nothing,
    for one longer than the model has positions, and for a batch size below 1.
    """
    if not windows or min(window.predicted for window in windows) < 1:
        raise QuambaError("perplexity needs at least one window, and a predicted token in each")
    check_positions(model.config, max(len(window.tokens) for window in windows), SEQLEN)
    window_nll: list[float] = []
    bar = tqdm(total=len(windows), desc=description, unit="window", disable=not progress)
    with in_eval_mode(model), bar:
        for tokens, predicted_from in equal_batches(windows, batch_size, text_config(model).vocab_size):
            nll = _mean_nll(model, tokens.to(model.device), predicted_from)
            window_nll.extend(nll.tolist())
            bar.update(len(tokens))
    return perplexity_of(np.array(window_nll), np.array([window.predicted for window in windows]))


def perplexity_of(nll: np.ndarray, tokens: np.ndarray) -> PerplexityResult:
    """The result of windows of that mean nll in nats [windows] and so many predicted tokens [windows]."""
    with np.errstate(over="ignore"):  # a broken model's perplexity may be infinite
        ppl = float(np.exp((nll * tokens).sum() / tokens.sum()))
    return PerplexityResult(ppl, int(tokens.sum()), nll, tokens)


def equal_batches(windows: Sequence[Window], batch_size: int, vocab_size: int) -> Iterator[tuple[Tensor, int]]:
    """(int64 [B, n], predicted_from): runs of neighbours of one form, at most `batch_size` and MAX_LOGITS logits.

    Raises QuambaError for a batch size below 1.
    """
    if batch_size < 1:
        raise QuambaError(f"the batch size is {batch_size}: it must be at least 1")
    forms = [(len(window.tokens), window.predicted_from) for window in windows]
    start = 0
    while start < len(windows):
        length, predicted_from = forms[start]
        limit = min(batch_size, max(1, MAX_LOGITS // (length * vocab_size)))
        stop = start + 1
        while stop < min(start + limit, len(windows)) and forms[stop] == forms[start]:
            stop += 1
        yield torch.stack([window.tokens for window in windows[start:stop]]), predicted_from
        start = stop


def _mean_nll(model, tokens: Tensor, predicted_from: int) -> Tensor:
    """int64 [B, n] -> float64 [B]: mean nll in nats of the tokens `predicted_from` .. n-1 of each row."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, predicted_from - 1 : -1]  # [B, n, V] -> [B, p, V]
    targets = tokens[:, predicted_from:]  # [B, p]
    nll = torch.zeros(len(tokens), dtype=torch.float64)
    chunk = max(1, NLL_CHUNK // (len(tokens) * logits.shape[-1]))
    for part, target in zip(logits.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
        # float32 whatever the model's dtype, a part at a time: the vocabulary makes logits the largest tensor here
        loss = F.cross_entropy(part.float().transpose(1, 2), target, reduction="none")  # [B, c]
        nll += loss.double().sum(dim=1).cpu()
    return nll / targets.shape[1]
