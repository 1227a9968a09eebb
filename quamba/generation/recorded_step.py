"""A step that is recorded once and replayed: on a GPU, launching the kernels of a token takes longer than they run.

Dims: B sequences, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]
Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]  # of a step without arguments


def capture_cuda(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Records the launches of `step` without running them: the tensor that it returns, and what runs them again."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may launch and allocate meanwhile
        result = step()
    return result, graph.replay


CAPTURES = {"cuda": capture_cuda}  # by device type; elsewhere a launch is a call


class RecordedStep:
    """`step`, int64 ids [B] -> float32 logits [B, V] on states that it updates in place, recorded where that pays.

    The first call on other states, or of another B, runs the step as it is: what it loads and allocates for the first
    time is no part of a recording. The second records it, and from then on a call is a copy of the ids and a replay.
    """

    def __init__(self, step: Step, captures: Mapping[str, Capture] = CAPTURES):
        self._step, self._captures = step, captures
        self._key: tuple | None = None  # what the recording's pointers hold for
        self._ids: Tensor | None = None
        self._logits: Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, ids: Tensor, states: Callable[[], Sequence[Tensor]]) -> Tensor:
        """One token of every sequence, ids [B]; `states` gives all tensors that the step updates."""
        capture = self._captures.get(ids.device.type)
        if capture is None:
            return self._step(ids)
        key = (len(ids), *(state.data_ptr() for state in states()))
        if key != self._key:
            self._key, self._replay = key, None
            return self._step(ids)
        if self._replay is None:
            self._ids = ids.clone()
            self._logits, self._replay = capture(lambda: self._step(self._ids))
        self._ids.copy_(ids)
        self._replay()
        return self._logits.clone()  # the next replay overwrites it
