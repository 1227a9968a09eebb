"""The table of the families in `families/`: one row a model type."""

import importlib
import pkgutil
from collections.abc import Mapping

from torch import nn

from . import families
from .base import Architecture

_MODULES = [
    importlib.import_module(f"{families.__name__}.{found.name}") for found in pkgutil.iter_modules(families.__path__)
]
_FOUND = [module.ARCHITECTURE for module in _MODULES if hasattr(module, "ARCHITECTURE")]
# by `model_type`, as config.json names it; models of Mamba blocks alone first
ARCHITECTURES: dict[str, Architecture] = {
    model_type: architecture
    for architecture in sorted(_FOUND, key=lambda architecture: (architecture.hybrid, architecture.model_types))
    for model_type in architecture.model_types
}
# every tap that some mixer has
BLOCK_TAPS = tuple(dict.fromkeys(tap for architecture in ARCHITECTURES.values() for tap in architecture.taps))
_NORM_READERS = {name: readers for module in _MODULES for name, readers in getattr(module, "NORM_READERS", {}).items()}


def norm_readers(model: nn.Module) -> Mapping[str, tuple[str, ...]]:
    """Return the norms of a layer whose only readers are linear layers, and these; none for a class without a row."""
    return _NORM_READERS.get(type(model).__name__, {})
