"""Perplexity of a model that reads its text token by token, as when it generates: with the states that it keeps.

Dims: B windows of a batch, n tokens of a window, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..generation.decoder import Decoder
from ..models.original import in_eval_mode
from ..models.positions import check_positions
from ..models.text_config import text_config
from .perplexity import SEQLEN, PerplexityResult, Window, check_windows, equal_batches, perplexity_of


@torch.inference_mode()
def stepwise_perplexity(
    model,
    windows: Sequence[Tensor] | Tensor,
    batch_size: int = 16,
    max_windows: int | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """Return what `perplexity` is, each token read by a decoding step: between two tokens there are the cached states
    alone.

    `windows`: int64 [n] each, as for `perplexity`; those of equal length are decoded side by side. A float model's
    mixers are replaced by ours (see `Decoder`). Raises QuambaError as `perplexity` does, and for a model without a
    cache.
    """
    windows = list(windows[:max_windows])
    check_windows(windows)
    check_positions(model.config, max(len(window) for window in windows), SEQLEN)
    decoder, window_nll, vocab_size = Decoder(model), [], text_config(model).vocab_size
    bar = tqdm(total=len(windows), desc="perplexity, by token", unit="window", disable=not progress)
    with in_eval_mode(model), bar:
        for tokens, _ in equal_batches([Window(window) for window in windows], batch_size, vocab_size):
            window_nll.extend(_mean_nll(decoder, tokens.to(model.device)).tolist())
            bar.update(len(tokens))
    return perplexity_of(np.array(window_nll), np.array([len(window) - 1 for window in windows]))


def _mean_nll(decoder: Decoder, tokens: Tensor) -> Tensor:
    """int64 [B, n] -> float64 [B]: mean nll in nats of the tokens 1 .. n-1 of each row."""
    decoder.reset()
    nll = torch.zeros(len(tokens), dtype=torch.float64)
    for read, following in zip(tokens[:, :-1].unbind(dim=1), tokens[:, 1:].unbind(dim=1), strict=True):
        logits = decoder.step(read)  # float32 [B, V]
        nll += F.cross_entropy(logits, following, reduction="none").double().cpu()
    return nll / (tokens.shape[1] - 1)
