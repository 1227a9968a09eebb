"""Plug-ins: Python files of a user's own that register observers and rounding rules."""

import importlib.util
import logging
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType

from . import registry
from .errors import QuambaError

logger = logging.getLogger(__name__)

_loaded: dict[Path, ModuleType] = {}


def load_plugin(path: str | Path) -> ModuleType:
    """Runs a user's Python file, so that what it registers is known by name; a second call does nothing.

    Raises QuambaError where the file is missing or fails; nothing of it, nor of plug-ins that it loaded, then stays
    registered.
    """
    path = Path(os.path.expanduser(path)).resolve()
    if path in _loaded:
        return _loaded[path]
    if not path.is_file() or path.suffix != ".py":
        raise QuambaError(f"plug-in {str(path)!r} is not a Python file: give the path of an existing .py file")
    name = f"quamba_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files may share a stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    registered, loaded = registry.snapshot(), dict(_loaded)
    sys.modules[name] = module  # so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        registry.restore(registered)
        _loaded.clear()
        _loaded.update(loaded)
        raise QuambaError(f"plug-in {str(path)!r} failed: {type(error).__name__}: {error}") from error
    _loaded[path] = module
    added = [f"{kind} {', '.join(names)}" for kind, names in registry.added_since(registered).items()]
    logger.info("plug-in %s registered: %s", path, "; ".join(added) or "nothing")
    return module
