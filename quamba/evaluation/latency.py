"""How long a model takes to its first token, for every further one and to its last: one thing, the same for all models.

Dims: B sequences, L tokens of the prompt, G tokens decoded after the first.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from ..generation.decoder import Decoder

TTFT, TPOT, TTLT = "ttft", "tpot", "ttlt"


@dataclass(frozen=True)
class Spread:
    """Median, extremes and quartiles of repeated measurements."""

    median: float
    min: float
    max: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values; quartiles between two of them are interpolated."""
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(median, min(values), max(values), q1, q3)

    @property
    def iqr(self) -> float:
        """The interquartile range."""
        return self.q3 - self.q1

    def to_dict(self) -> dict[str, float]:
        """Plain data."""
        return {**asdict(self), "iqr": self.iqr}


def random_prompt(vocab_size: int, batch_size: int, length: int, seed: int) -> Tensor:
    """Token ids int64 [B, L], uniform over the vocabulary: how fast a model is does not depend on the text."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch_size, length), generator=generator)


def time_run(decoder: Decoder, prompt: Tensor, gen_len: int) -> dict[str, float]:
    """Seconds of one run from an empty state, greedy: `ttft`, and with `gen_len` > 0 `tpot` and `ttlt`.

    `ttft`: prefill of int64 [B, L] and argmax; `tpot`: the median of G steps with their argmax; `ttlt`: all of it.
    """
    decoder.reset()
    clock = [time.perf_counter()]
    ids = _said(decoder.prefill(prompt).argmax(-1))  # [B]
    clock.append(time.perf_counter())
    for _ in range(gen_len):
        ids = _said(decoder.step(ids).argmax(-1))  # [B]
        clock.append(time.perf_counter())
    seconds = {TTFT: clock[1] - clock[0]}
    if gen_len:
        steps = [end - start for start, end in pairwise(clock[1:])]
        seconds |= {TPOT: statistics.median(steps), TTLT: clock[-1] - clock[0]}
    return seconds


def _said(ids: Tensor) -> Tensor:
    """The ids once they are known to the host, as whoever prints them waits for them; they stay where they are."""
    ids.cpu()
    return ids


def time_runs(
    decoders: Mapping[str, Decoder], prompt: Tensor, gen_len: int, repeats: int, progress: bool = True
) -> dict[str, dict[str, list[float]]]:
    """name -> figure -> seconds of every repeat, of models that take turns so that a slow spell hits all of them.

    Every second round runs in the opposite order. Nothing is warmed up here: let each model run once before.
    """
    seconds = {name: {} for name in decoders}
    with tqdm(total=repeats * len(decoders), desc="Timing", unit="run", disable=not progress) as bar:
        for repeat in range(repeats):
            for name in list(decoders)[:: -1 if repeat % 2 else 1]:
                for figure, value in time_run(decoders[name], prompt, gen_len).items():
                    seconds[name].setdefault(figure, []).append(value)
                bar.update()
    return seconds


def paired_ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return how `values` relate to `base`, repeat by repeat."""
    return Spread.of([value / other for value, other in zip(values, base, strict=True)])
