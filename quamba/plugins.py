"""Plug-ins: Python files of a user's own that register observers and rounding rules."""

import importlib.util
import logging
import os
import sys
import threading
import traceback
import zlib
from pathlib import Path
from types import ModuleType

from . import registry
from .borders import describe
from .errors import QuambaError

logger = logging.getLogger(__name__)

_loaded: dict[Path, ModuleType] = {}
_loading = threading.RLock()  # one at a time: what a file registered that then fails is found by comparison


def load_plugin(path: str | Path) -> ModuleType:
    """Runs a user's Python file, so that what it registers is known by name; a second call does nothing.

    Raises QuambaError where the file is missing or fails; nothing of it, nor of plug-ins that it loaded, then stays
    registered.
    """
    path = Path(os.path.expanduser(path)).resolve()
    with _loading:
        return _loaded[path] if path in _loaded else _load(path)


def _load(path: Path) -> ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise QuambaError(f"plug-in {str(path)!r} is not a Python file: give the path of an existing .py file")
    name = f"quamba_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"  # two files may share a stem
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    registered, loaded = registry.snapshot(), dict(_loaded)
    sys.modules[name] = module  # so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # also sys.exit and an interruption
        del sys.modules[name]
        registry.restore(registered)
        _loaded.clear()
        _loaded.update(loaded)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise QuambaError(f"plug-in {str(path)!r} failed{_line(error, path)}: {_described(error)}") from error
    _loaded[path] = module
    added = [f"{kind} {', '.join(names)}" for kind, names in registry.added_since(registered).items()]
    logger.info("plug-in %s registered: %s", path, "; ".join(added) or "nothing")
    return module


def plugin_file(filename: str) -> Path | None:
    """The plug-in that a frame's file name is that of, None where it is none."""
    path = Path(filename)
    return path if path in _loaded else None


def _line(error: BaseException, path: Path) -> str:
    """` in line 3`, the last of the plug-in's own lines that an error went through; "" where none did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f" in line {lines[-1]}" if lines else ""


def _described(error: BaseException) -> str:
    """Return what an error says, on one line."""
    if isinstance(error, SystemExit):
        return f"it ended the program (exit status {error.code}), which a plug-in must not"
    return describe(error)
