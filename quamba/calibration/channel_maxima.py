"""The largest magnitude of every channel of Mamba2's x, which its sort-and-cluster groups are made of.

Dims: L tokens, S heads, P head_dim.
"""

from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..architectures.anatomy import Anatomy
from ..errors import QuambaError
from ..nn.mamba2 import Mamba2Mixer
from ..nn.taps import tap_name
from ..observers.per_tensor import PerChannelMinmaxObserver

TAP = "x"  # the output of convolution and SiLU


class ChannelMaxima:
    """Context manager that watches tap x of every Mamba2 block of a model on our float mixers.

    The hooks are removed when the block is left, however it is left. Raises QuambaError for a layer with another kind
    of mixer and, while the model runs, for NaN and infinity, naming the tap.
    """

    def __init__(self, model: nn.Module):
        self._mixers = {slot.index: slot.mixer for slot in Anatomy.of(model).slots}
        for index, mixer in self._mixers.items():
            if not isinstance(mixer, Mamba2Mixer):
                raise QuambaError(
                    f"layer {index} has a {type(mixer).__name__}, which shows no {TAP} of several heads: only Mamba2 "
                    "models have them, after quamba.architectures.convert.install_float_mixers(model)"
                )
        self._observers = {index: PerChannelMinmaxObserver() for index in self._mixers}
        self._hooks: list = []

    def __enter__(self) -> "ChannelMaxima":
        for index, mixer in self._mixers.items():
            self._hooks.append(mixer.taps[TAP].register_forward_hook(partial(self._watch, index)))
        return self

    def _watch(self, index: int, _module: nn.Module, _args: tuple, out: Tensor) -> None:
        try:
            self._observers[index].update(out)
        except QuambaError as error:
            raise QuambaError(f"tap {tap_name(index, TAP)}: {error}") from error

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def results(self) -> dict[int, Tensor]:
        """Layer index -> float32 [S, P], on the CPU. Raises QuambaError where a layer has seen no token."""
        maxima = {}
        for index, mixer in self._mixers.items():
            observer = self._observers[index]
            if observer.count == 0:
                raise QuambaError(f"tap {tap_name(index, TAP)} has seen no tokens: run the model within the block")
            largest = torch.maximum(-observer.low, observer.high)  # [D]
            maxima[index] = largest.unflatten(0, (mixer.dt_bias.numel(), -1)).cpu()  # [S, P]
        return maxima


@torch.inference_mode()
def collect_channel_maxima(
    model: nn.Module, windows: Tensor, *, batch_size: int = 8, progress: bool = True
) -> dict[int, Tensor]:
    """Runs `windows` int64 [count, L] through the backbone once: layer index -> float32 [S, P], the largest |x|.

    model: a Mamba2 causal LM, or a hybrid of its blocks, with this package's float mixers. Raises QuambaError as
    `ChannelMaxima` does.
    """
    with ChannelMaxima(model) as maxima:
        with tqdm(total=windows.numel(), desc="Measuring channels", unit="tok", disable=not progress) as bar:
            for batch in windows.split(batch_size):
                model.base_model(batch, use_cache=False)
                bar.update(batch.numel())
        return maxima.results()
