"""Perplexity of a causal language model on windows of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import QuambaError

MAX_LOGITS = 2**28  # elements of one forward pass's logits: 1 GiB in float32
NLL_CHUNK = 2**24  # logits elements that are turned to float32 log-probabilities at a time


@dataclass(frozen=True)
class PerplexityResult:
    """`ppl` = exp(sum of nll / tokens); per window its mean nll in nats (float64) and its predicted tokens (int64)."""

    ppl: float
    tokens: int
    window_nll: np.ndarray
    window_tokens: np.ndarray


@torch.inference_mode()
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
    padded. Log-probabilities are float32, sums float64. Raises QuambaError for too few windows or too short ones.
    """
    windows = list(windows[:max_windows])
    if not windows or min(len(window) for window in windows) < 2:
        raise QuambaError("perplexity needs at least one window, each of two tokens or more")
    if batch_size < 1:
        raise QuambaError(f"the batch size is {batch_size}: it must be at least 1")
    window_nll: list[float] = []
    with tqdm(total=len(windows), desc="perplexity", unit="window", disable=not progress) as bar:
        for batch in _batches(windows, batch_size, model.config.vocab_size):
            nll = _mean_nll(model, batch.to(model.device))
            window_nll.extend(nll.tolist())
            bar.update(len(batch))
    nll = np.array(window_nll)
    tokens = np.array([len(window) - 1 for window in windows])
    with np.errstate(over="ignore"):  # a broken model's perplexity may be infinite
        ppl = float(np.exp((nll * tokens).sum() / tokens.sum()))
    return PerplexityResult(ppl, int(tokens.sum()), nll, tokens)


def _batches(windows: list[Tensor], batch_size: int, vocab_size: int) -> Iterator[Tensor]:
    """int64 [B, n]: runs of neighbours of one length, at most `batch_size` and MAX_LOGITS logits a batch."""
    start = 0
    while start < len(windows):
        length = len(windows[start])
        limit = min(batch_size, max(1, MAX_LOGITS // (length * vocab_size)))
        stop = start + 1
        while stop < min(start + limit, len(windows)) and len(windows[stop]) == length:
            stop += 1
        yield torch.stack(windows[start:stop])
        start = stop


def _mean_nll(model, tokens: Tensor) -> Tensor:
    """int64 [B, n] -> float64 [B]: mean nll in nats of the tokens 1 .. n-1 of each row."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]  # [B, n, V] -> [B, n-1, V]
    targets = tokens[:, 1:]
    nll = torch.zeros(len(tokens), dtype=torch.float64)
    chunk = max(1, NLL_CHUNK // (len(tokens) * logits.shape[-1]))
    for part, target in zip(logits.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
        # float32 whatever the model's dtype, a part at a time: the vocabulary makes logits the largest tensor here
        loss = F.cross_entropy(part.float().transpose(1, 2), target, reduction="none")  # [B, c]
        nll += loss.double().sum(dim=1).cpu()
    return nll / targets.shape[1]
