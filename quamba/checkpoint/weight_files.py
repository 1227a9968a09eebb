"""The weight files of a checkpoint folder: which they are, and whether they can be read at all."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import QuambaError

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")  # the order in which transformers prefers them


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of the transformers checkpoint in folder `path`, shards in the order of names.

    Raises QuambaError where there are none, and names the index that cannot be read or the shard that is missing.
    """
    for name in SINGLE_FILES:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise QuambaError(f"{path} holds no weights: expected {' or '.join(SINGLE_FILES)}, or an index of their shards")


def check_weight_file(file: Path) -> None:
    """Raises QuambaError naming `file` where it is truncated or is not of its kind; reads headers, not tensors."""
    if file.suffix != ".safetensors":
        load_bin(file, device="meta")
        return
    try:
        with safe_open(file, framework="pt"):
            pass  # opening compares the header with the length of the file
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file of either kind. Raises QuambaError naming `file` where it cannot be read."""
    if file.suffix != ".safetensors":
        return load_bin(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error


def load_bin(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, never running code from it; on `meta` their data is not read.

    Raises QuambaError naming `file` where it is truncated, damaged, or holds anything but named tensors.
    """
    try:
        tensors = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # on a damaged file the unpickler fails with whatever it stumbles over
        raise _damaged(file, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise QuambaError(f"{file} does not hold named tensors")
    return tensors


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise QuambaError(f"{index} cannot be read as an index of shards: {error!r}") from error
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise QuambaError(f"{index.parent} lacks the shards {', '.join(missing)}: copy or download them again")
    return files


def _damaged(file: Path, error: BaseException) -> QuambaError:
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return QuambaError(f"{file} is truncated or damaged: copy or download it again ({detail})")
