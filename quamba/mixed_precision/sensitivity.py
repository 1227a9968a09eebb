"""What it costs to quantize one layer: the divergence of the predictions when that layer alone is quantized.

Dims: B windows of a batch, L tokens of a window, V vocabulary, c tokens of a chunk.
"""

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calibration.run import check_windows
from ..errors import QuambaError

MAX_LOGITS = 2**27  # elements of a batch's float logits, which stay in memory: 512 MiB in float32
KL_CHUNK = 2**21  # logits elements that are turned to float64 log-probabilities at a time: 16 MiB each

QuantizedLayer = Callable[[int, str], AbstractContextManager]


@torch.no_grad()  # no inference mode: modules that `quantize_layer` makes and keeps would be bound to it
def layer_sensitivities(
    model: nn.Module,
    windows: Tensor,
    quantize_layer: QuantizedLayer,
    schemes: Collection[str],
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> dict[str, list[float]]:
    """scheme -> for every layer the mean KL(float || quantized) over all tokens in nats, that layer alone quantized.

    `model`: a float causal LM; `windows`: int64 [count, L]. `quantize_layer(layer, scheme)`: a context manager, within
    which the layer is quantized and after which it is the float one again. It is entered for every layer and scheme
    once a batch, so what is slow to make is better kept. The float model runs once a batch; the batch size changes the
    speed, not the result (beyond float accumulation). Log-probabilities and sums are float64.
    Raises QuambaError for windows that are no token ids of the model, no scheme and batches below 1, and where a
    divergence is no finite number, naming layer and scheme.
    """
    check_windows(windows, model.config.vocab_size)
    if not schemes:
        raise QuambaError("the search takes at least one scheme")
    if batch_size < 1:
        raise QuambaError(f"the batch size is {batch_size}: it must be at least 1")
    layers = range(model.config.num_hidden_layers)
    size = min(batch_size, max(1, MAX_LOGITS // (windows.shape[1] * model.config.vocab_size)))
    batches = windows.split(size)
    sums = {scheme: [0.0 for _ in layers] for scheme in schemes}
    runs = len(batches) * len(sums) * len(layers)
    with tqdm(total=runs, desc="Measuring layers", unit="run", disable=not progress) as bar:
        for batch in batches:
            batch = batch.to(model.device)  # int64 [B, L]
            reference = model(input_ids=batch, use_cache=False).logits  # [B, L, V]
            for layer in layers:
                for scheme in sums:
                    with quantize_layer(layer, scheme):
                        logits = model(input_ids=batch, use_cache=False).logits  # [B, L, V]
                    divergence = sum_of_divergences(reference, logits)
                    if not math.isfinite(divergence):
                        raise QuambaError(
                            f"with layer {layer} at {scheme} the predictions diverge by {divergence}: leave {scheme} "
                            "out of the search, or calibrate on other text"
                        )
                    sums[scheme][layer] += divergence
                    bar.update()
    return {scheme: [total / windows.numel() for total in totals] for scheme, totals in sums.items()}


def sum_of_divergences(a: Tensor, b: Tensor) -> float:
    """The sum over all tokens of KL(a || b) in nats, of logits [..., V] of any float dtypes.

    In float64, as the divergence of close predictions is tiny, and a few tokens at a time.
    """
    vocab_size, total = a.shape[-1], 0.0
    chunk = max(1, KL_CHUNK // vocab_size)
    parts = zip(a.reshape(-1, vocab_size).split(chunk), b.reshape(-1, vocab_size).split(chunk), strict=True)
    for part_a, part_b in parts:
        log_p, log_q = part_a.double().log_softmax(dim=-1), part_b.double().log_softmax(dim=-1)  # [c, V]
        divergences = (log_p.exp() * (log_p - log_q)).sum(dim=-1)  # [c]
        total += float(divergences.clamp(min=0).sum())  # rounding may leave -1e-17; NaN stays
    return total
