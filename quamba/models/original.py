"""What is the caller's about a model that is worked on: its mode, its configs, its modules; kept or given back.

Whatever changes a model in place enters these blocks around its work.
"""

import copy
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..errors import QuambaError

_UNFINISHED = "_quamba_unfinished"  # attribute of a model whose weights were left half-way


@contextmanager
def in_eval_mode(model: object) -> Iterator[None]:
    """Puts a model in eval mode, without dropout, for a block; after it every module has its own mode again.

    Modules that the block put into the model stay in eval mode: none of this package's differs between the two. What is
    no nn.Module has no mode.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = weakref.WeakSet(module for module in modules if module.training)  # what the block replaces is freed
    for module in training:
        module.training = False
        del module
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def plain_computation(model: PreTrainedModel) -> Iterator[None]:
    """Computes a block as it reads, whatever the caller has switched on: autocast, gradients, inference mode.

    What the block makes are ordinary tensors, unless the model's are those of inference mode, which nothing outside of
    that mode can change.
    """
    autocast = [torch.autocast(kind, enabled=False) for kind in dict.fromkeys(("cpu", model.device.type))]
    of_inference_mode = any(parameter.is_inference() for parameter in model.parameters())
    with torch.inference_mode(of_inference_mode), torch.no_grad(), ExitStack() as stack:
        for off in autocast:
            stack.enter_context(off)
        yield


@contextmanager
def own_configs(model: PreTrainedModel) -> Iterator[None]:
    """Gives a model copies of its configs: other models, and the caller, may hold the same objects.

    Modules that shared a config share its copy. An error in the block gives the model its own back.
    """
    memo: dict = {}
    held = [
        (weakref.ref(module), name, value)  # what the block replaces is freed
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, PreTrainedConfig | GenerationConfig)
    ]
    for module, name, value in held:
        setattr(module(), name, copy.deepcopy(value, memo))
    try:
        yield
    except BaseException:
        for module, name, value in held:
            if (there := module()) is not None:
                setattr(there, name, value)
        raise


class Original:
    """The modules and parameters of a model, until they are let go, and the dtypes of those that it still has."""

    def __init__(self, model: PreTrainedModel):
        self._model, self._tied_keys = model, getattr(model, "all_tied_weights_keys", None)
        self._places = [(part, dict(part)) for m in model.modules() for part in (m._modules, m._parameters)]
        self.dtypes = WeakIdKeyDictionary({parameter: parameter.dtype for parameter in model.parameters()})
        # a float32 copy can be cast back to every other dtype without loss
        self._wide: dict[Tensor, Tensor] = {p: p.data for p in self.dtypes if p.dtype == torch.float64}
        self.let_gone = False

    def let_go(self) -> None:
        """From here on nothing is put back: what the model drops is freed layer by layer, as it is replaced."""
        self.let_gone = True
        self._places, self._wide = [], {}

    def put_back(self) -> None:
        """Gives the model its modules and parameters again."""
        for part, children in self._places:
            part.clear()
            part.update(children)
        self._model.all_tied_weights_keys = self._tied_keys
        for parameter, dtype in self.dtypes.items():
            parameter.data = self._wide.get(parameter, parameter.data).to(dtype)


@contextmanager
def put_back_on_error(model: PreTrainedModel) -> Iterator[Original]:
    """An error in the block, or an interruption, leaves the model as it was, unless that was let go before.

    Then it is marked, and `require_whole` refuses it: its weights are neither the old ones nor the new ones.
    """
    original = Original(model)
    try:
        yield original
    except BaseException:
        if original.let_gone:
            setattr(model, _UNFINISHED, True)
        else:
            original.put_back()
        raise


def require_whole(model: nn.Module) -> None:
    """Raises QuambaError for a model that an error or an interruption left with weights half-way changed."""
    if getattr(model, _UNFINISHED, False):
        raise QuambaError(
            "an earlier quantization of this model ended half-way and left its weights changed: load the model again"
        )
