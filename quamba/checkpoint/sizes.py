"""What a config.json describes, compared with what the weight files hold before anything of that size is made.

A config is a few hundred bytes and may ask for any amount of memory. The number of layers is compared first, since even
their names take memory; then the model is built without memory for its tensors, and its tensors are counted.
"""

import copy
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..borders import foreign
from ..errors import QuambaError

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MODULES_PER_TENSOR, FEW_MODULES = 16, 10_000  # more than any model has
LABELS = 1 << 20  # of a classifier, for which transformers makes names
# beside what the files hold a model has tables that are computed, as of positions, and tensors that are stored once;
# quantized files hold two values in a byte, and one table for two
FACTOR, QUANTIZED_FACTOR, SMALL = 2, 4, 1 << 26  # elements

Shapes = Mapping[str, tuple[int, ...]]


def check_counts(config: dict, file: Path, stored: Mapping) -> None:
    """Raises QuambaError where a config.json names more layers than there are tensors; `file`: named in the error.

    config: the JSON object, before transformers makes lists of that length. stored: by tensor name.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for name in LAYER_COUNTS:
            value = part.get(name)
            if isinstance(value, int) and value > len(stored):
                raise QuambaError(f"{file}: {name} is {value}, but the weight files hold {len(stored)} tensors")
        if isinstance(part.get("num_labels"), int) and part["num_labels"] > LABELS:
            raise QuambaError(f"{file}: num_labels is {part['num_labels']}: a language model has no labels, remove it")


def check_sizes(config: PreTrainedConfig, file: Path, stored: Shapes, factor: int = FACTOR) -> None:
    """Raises QuambaError where a config describes a model that is far larger than what its weight files hold.

    Names the tensors that differ. config: as transformers read it from `file`; stored: tensor name -> shape; factor:
    how many values of the model one stored element may stand for.
    """
    with bounded_modules(file, stored):
        model = _empty_model(config, file)
    parameters = dict(model.named_parameters())  # a tied head once
    tables = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    held = _elements(stored.values())
    for kind, tensors, limit in (
        ("parameters", parameters, factor * held),
        ("values in tables", tables, factor * held + SMALL),
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        count = _elements(shapes.values())
        if count > limit:
            raise QuambaError(
                f"{file} describes a model of {count:,} {kind}, the weight files hold {held:,}: "
                f"{_differences(shapes, stored)}"
            )


@contextmanager
def bounded_modules(file: Path, stored: Shapes) -> Iterator[None]:
    """Ends a model that is being built in the block when it has far more modules than its files have tensors.

    Raises QuambaError naming `file`, the config. Other threads build what they like.
    """
    limit = MODULES_PER_TENSOR * len(stored) + FEW_MODULES
    thread, count = threading.get_ident(), 0

    def count_module(*_) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > limit:
            raise QuambaError(
                f"{file} describes a model of more than {limit} modules, but the weight files hold {len(stored)} "
                "tensors: its numbers of layers or experts are not theirs"
            )

    handle = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        handle.remove()


def _empty_model(config: PreTrainedConfig, file: Path) -> PreTrainedModel:
    """The model that a config describes, on the meta device."""
    with torch.device("meta"), foreign(f"{file} describes no valid model"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))  # which sets the dtype of its config


def _elements(shapes) -> int:
    return sum(map(math.prod, shapes))


def _differences(shapes: Shapes, stored: Shapes) -> str:
    """The largest tensors that the files lack, or hold in another shape."""
    others = [name for name in shapes if stored.get(name) != shapes[name]] or list(shapes)
    largest = sorted(others, key=lambda name: -math.prod(shapes[name]))[:3]
    told = [
        f"{name} {list(shapes[name])}" + (f", stored {list(stored[name])}" if name in stored else "")
        for name in largest
    ]
    return "; ".join(told)
