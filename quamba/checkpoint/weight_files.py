"""The weight files of a checkpoint folder: which they are, and whether they can be read at all."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..borders import foreign
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


def stored_tensors(files: list[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype as safetensors names it) of the tensors in weight files; reads headers, not tensors.

    Raises QuambaError naming a file that is truncated or not of its kind.
    """
    stored = {}
    for file in files:
        if file.suffix != ".safetensors":
            tensors = load_bin(file, device="meta")
            stored |= {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
            continue
        with damaged(file), safe_open(file, framework="pt") as tensors:  # compares the header with the file's length
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                view = tensors.get_slice(name)
                stored[name] = (tuple(view.get_shape()), view.get_dtype())
    return stored


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a weight file of either kind. Raises QuambaError naming `file` where it cannot be read."""
    if file.suffix != ".safetensors":
        return load_bin(file)
    with damaged(file):
        return load_file(file)


def load_bin(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, never running code from it; on `meta` their data is not read.

    Raises QuambaError naming `file` where it is truncated, damaged, or holds anything but named tensors.
    """
    with damaged(file):  # the unpickler fails with whatever it stumbles over
        tensors = torch.load(file, map_location=device, weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise QuambaError(f"{file} does not hold named tensors")
    return tensors


def damaged(file: Path) -> foreign:
    """Return what is raised by a library that reads `file` means that it is truncated or damaged."""
    return foreign(f"{file} is truncated or damaged: copy or download it again")


def _shards(index: Path) -> list[Path]:
    """The files that an index of shards names, all of them beside it."""
    with foreign(f"{index} cannot be read as an index of shards"):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names]
    for file in files:
        if file.parent != index.parent or file.name in ("", ".", ".."):
            raise QuambaError(f"{index} names {str(file)!r}: the shards of a checkpoint lie beside their index")
    with foreign(f"{index} cannot be read as an index of shards"):  # names that no file system takes
        missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise QuambaError(f"{index.parent} lacks the shards {', '.join(missing)}: copy or download them again")
    return files
