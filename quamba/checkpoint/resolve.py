"""From the name of a model to a folder on this machine: local folders first, then what is embedded, then the hub."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError

from ..borders import one_line
from ..errors import QuambaError
from ..storage.folders import recover
from .unchanged import read_unchanged

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent.parent / "assets"
LOCAL_MODELS = Path("pretrained_models")  # relative to the working directory

HUB_IDS = {
    **{f"mamba-{size}": f"state-spaces/mamba-{size}-hf" for size in ("130m", "370m", "790m", "1.4b", "2.8b")},
    **{f"mamba2-{size}": f"state-spaces/mamba2-{size}" for size in ("130m", "370m", "780m", "1.3b", "2.7b")},
    "falcon-mamba-7b": "tiiuae/falcon-mamba-7b",
}

# What a download fails with: not an id; not cached, offline or refused (all OSError); the connection lost half-way
HUB_ERRORS = (HFValidationError, OSError, HTTPError)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine."""

    name: str  # what results are named after: the short name, else the last part of the path or hub id
    path: Path  # the folder that holds config.json
    config: dict  # config.json as it is
    source: str  # directory | embedded | hub
    pretrained_dir: Path | None = None  # the user's own folder of models: tokenizers are looked up there too

    @property
    def embedded(self) -> bool:
        """Return whether the checkpoint ships with this package."""
        return self.source == "embedded"

    @property
    def format(self) -> str:
        """`transformers`, or `state-spaces` for the original layout. Raises QuambaError for any other config.json."""
        if "model_type" in self.config:
            return "transformers"
        if "d_model" in self.config and "n_layer" in self.config:
            return "state-spaces"
        raise QuambaError(
            f"{self.path / 'config.json'} describes no model this package reads: it has neither `model_type` "
            "(transformers) nor `d_model` and `n_layer` (state-spaces)"
        )

    @property
    def quantization_method(self) -> str | None:
        """The method of a checkpoint that is quantized already (ours is `quamba`); None for a float one."""
        quantization = self.config.get("quantization_config")
        return quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else None


def resolve_checkpoint(name: str, pretrained_dir: str | Path | None = None) -> Checkpoint:
    """Find the checkpoint that `name` stands for, downloading it if it is nowhere on this machine.

    The order: an existing folder; PRETRAINED_DIR/NAME; pretrained_models/NAME; the embedded checkpoints; the hub, where
    a short name (`mamba-130m`, or `130m`) stands for its hub id and any other name is one. HF_HUB_OFFLINE is respected.
    Raises QuambaError saying everything that was tried and what to do, and for a folder without a usable config.json.
    """
    if not name.strip():
        raise QuambaError("the name of the model is empty: give a folder, a hub id, or a short name such as mamba-130m")
    root = Path(os.path.expanduser(pretrained_dir)) if pretrained_dir is not None else None
    short, hub_id = _short_name(name)
    places = [(Path(os.path.expanduser(name)), "directory")]
    places += [(folder, "directory") for folder in local_folders([name, short or name], root)]
    if Path(name).name == name and (ASSETS / name / "config.json").is_file():  # a bare name, never a path
        places.append((ASSETS / name, "embedded"))
    for path, source in places:
        recover(path)
        if path.is_dir():
            logger.info("%s: reading %s", name, path)
            config = read_unchanged(path, lambda path=path: read_config(path))
            return Checkpoint(short or Path(os.path.abspath(path)).name, path, config, source, root)
        if path.exists():
            raise QuambaError(f"{path} is a file: give the folder that holds config.json and the weights")

    try:
        path = _download_model(hub_id)
    except HUB_ERRORS as error:
        tried = [f"  no folder {path}" for path, _ in places] + [f"  hub: {hub_id}: {one_line(error)}"]
        raise QuambaError(
            "\n".join([f"model {name!r} was not found. Tried:", *tried, *_advice(short or name, root)])
        ) from error
    return Checkpoint(short or hub_id.split("/")[-1], path, read_config(path), "hub", root)


def local_folders(names: list[str], pretrained_dir: Path | None) -> list[Path]:
    """Return where a local copy of something that has these names is looked for, first to last."""
    roots = [root for root in (pretrained_dir, LOCAL_MODELS) if root is not None]
    return list(dict.fromkeys(root / name for root in roots for name in names))


def read_config(path: Path) -> dict:
    """config.json of the folder `path`. Raises QuambaError where it is missing or is not a JSON object."""
    file = path / "config.json"
    if not file.is_file():
        raise QuambaError(f"{path} has no config.json: it is not the folder of a model")
    return _read_object(file)


def check_generation_config(path: Path) -> None:
    """Raises QuambaError where generation_config.json, if there is one, is no JSON object: transformers passes over it
    and generates by other rules without a word."""
    file = path / "generation_config.json"
    if file.is_file():
        _read_object(file)


def _read_object(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise QuambaError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise QuambaError(f"{file} does not hold a JSON object")
    return found


def download(hub_id: str, patterns: list[str]) -> Path:
    """The cached folder of a hub repository's top-level files that match `patterns`; raises one of HUB_ERRORS."""
    return Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _download_model(hub_id: str) -> Path:
    """Fetch a model: its safetensors, or the older pytorch_model.bin where it has none."""
    path = download(hub_id, ["*.json", "*.txt", "*.model", "*.spm", "*.tiktoken", "*.safetensors"])
    if not any(path.glob("*.safetensors")):
        path = download(hub_id, ["pytorch_model*.bin"])
    return path


def _short_name(name: str) -> tuple[str | None, str]:
    """(the short name that `name` means or None, the hub id): `130m` and `mamba-130m` mean the same."""
    for short in (name, f"mamba-{name}"):
        if short in HUB_IDS:
            return short, HUB_IDS[short]
    return None, name


def _advice(name: str, pretrained_dir: Path | None) -> list[str]:
    """Return what to do about a model that was not found."""
    embedded = sorted(path.parent.name for path in ASSETS.glob("*/config.json"))
    folder = local_folders([Path(name).name], pretrained_dir)[0]
    return [
        f"Put a local copy (config.json, weights, tokenizer) into {folder} or give its path, or use a short name: "
        f"{', '.join(HUB_IDS)}.",
        f"Embedded in this package, no download needed: {', '.join(embedded)}.",
    ]
