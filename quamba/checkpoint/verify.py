"""Whether the files of a quantized checkpoint are those that were saved: hashes, names, shapes and kinds of tensors."""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from ..errors import QuambaError
from ..nn.module import QuantModule
from .resolve import read_config
from .weight_files import stored_tensors

SAFETENSORS_DTYPES = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
FLOAT_DTYPES = ("F32", "F16", "BF16")  # of what is not quantized, which is cast when it is loaded
HASH_BLOCK = 1 << 22
CONFIG_HASH = "config_sha256"
# what users and tools change in a config.json without making it another model, besides the ids of special tokens
UNHASHED = {"_name_or_path", "transformers_version", "use_cache", CONFIG_HASH}


def buffer_names(model: nn.Module) -> set[str]:
    """The names of what this package's modules hold: integers, scales, states; the format fixes their dtypes."""
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, QuantModule)
        for name, _ in module.named_buffers(recurse=False)
    }


def verify_hashes(files: list[Path], sha256: dict[str, str]) -> None:
    """Raises QuambaError where a weight file is not, byte for byte, the one that was saved."""
    for file in files:
        expected = sha256.get(file.name)
        if expected is not None and file_sha256(file) != expected:
            raise QuambaError(
                f"{file} is truncated or damaged: its SHA-256 is not the one that config.json records; copy it again"
            )


def verify_tensors(model: nn.Module, files: list[Path]) -> None:
    """Raises QuambaError naming tensors that are missing, unknown, or of another shape or kind than the model's."""
    stored = stored_tensors(files)
    folder = files[0].parent if files else "the checkpoint"
    ours = buffer_names(model)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    problems = {
        "missing": sorted(set(expected) - set(stored)),
        "unknown": sorted(set(stored) - set(expected) - set(model.all_tied_weights_keys)),
        "of another shape or type": sorted(
            name for name in set(expected) & set(stored) if not _fits(expected[name], name in ours, *stored[name])
        ),
    }
    lines = [f"{what}: {', '.join(names[:4])} ({len(names)} in all)" for what, names in problems.items() if names]
    if lines:
        raise QuambaError(
            f"{folder} does not hold the tensors that its quantization_config describes; {'; '.join(lines)}"
        )


def _fits(tensor: torch.Tensor, is_ours: bool, shape: tuple, dtype: str) -> bool:
    """Integers, scales and states are of their own type; what the float model had may be of any float type."""
    if is_ours:
        same_kind = dtype == SAFETENSORS_DTYPES[tensor.dtype]
    else:
        same_kind = (dtype in FLOAT_DTYPES) == tensor.is_floating_point()
    return tuple(tensor.shape) == shape and same_kind


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks. Raises QuambaError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK):
                digest.update(block)
    except OSError as error:
        raise QuambaError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def config_sha256(config: dict) -> str:
    """SHA-256 of what config.json says of the model: all but UNHASHED fields and the ids of special tokens."""

    def hashed(value):
        if isinstance(value, dict):
            return {k: hashed(v) for k, v in value.items() if k not in UNHASHED and not k.endswith("_token_id")}
        return [hashed(entry) for entry in value] if isinstance(value, list) else value

    return hashlib.sha256(json.dumps(hashed(config), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify_config(directory: Path) -> None:
    """Raises QuambaError where config.json, if it has a hash, describes another model than the one that was saved."""
    config = read_config(directory)
    quantization = config.get("quantization_config")
    expected = quantization.get(CONFIG_HASH) if isinstance(quantization, dict) else None
    if expected is not None and config_sha256(config) != expected:
        raise QuambaError(
            f"{directory / 'config.json'} is not as it was saved: its {CONFIG_HASH} does not fit. Copy it again; where "
            f"it was changed on purpose, remove {CONFIG_HASH} from its quantization_config"
        )


def verify_index(directory: Path, files: list[Path]) -> None:
    """Raises QuambaError where a weight file that the index or config.json names is not there."""
    recorded = (read_config(directory).get("quantization_config") or {}).get("sha256") or {}
    if missing := sorted(set(recorded) - {file.name for file in files}):
        raise QuambaError(f"{directory} lacks the weight files {', '.join(missing)} that its config.json records")
