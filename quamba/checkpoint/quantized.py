"""Quantized checkpoints: safetensors + config.json with `quantization_config`, written whole and verified on reading.

Importing this registers the format with transformers, so that `AutoModelForCausalLM.from_pretrained` reads it.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..convert import build_skeleton
from ..errors import QuambaError
from ..files import fsync_tree, write_text_atomically
from ..nn.module import QuantModule
from ..scheme import QuantizationRecipe
from .load_float import quiet_transformers, read_model_config
from .resolve import Checkpoint, read_config
from .tokenizer import load_tokenizer
from .weight_files import weight_files

logger = logging.getLogger(__name__)

METHOD = "quamba"
FORMAT_VERSION = 4
_SINCE_4 = {"layers": (), "state_bits": 32, "reordered": False}
# versions that are read: what their recipes did not have yet
EARLIER = {2: {"multipliers": (), "lm_head_chunks": 0, **_SINCE_4}, 3: _SINCE_4}
SAFETENSORS_DTYPES = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
FLOAT_DTYPES = ("F32", "F16", "BF16")  # of what is not quantized, which is cast when it is loaded
HASH_BLOCK = 1 << 22


@register_quantization_config(METHOD)
class QuambaConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: the recipe as data, and the SHA-256 of each weight file."""

    def __init__(
        self, recipe: dict | None = None, format_version: int | None = None, sha256: dict | None = None, **unknown
    ):
        self.quant_method = METHOD
        self.format_version = format_version
        self.recipe = recipe
        if format_version in EARLIER and isinstance(recipe, dict):
            self.format_version, self.recipe = FORMAT_VERSION, EARLIER[format_version] | recipe
        self.sha256 = sha256 or {}
        unknown.pop("quant_method", None)
        if self.format_version != FORMAT_VERSION:
            raise QuambaError(
                f"this checkpoint has format_version {format_version}, this version of quamba reads {FORMAT_VERSION}"
            )
        if unknown:
            raise QuambaError(f"quantization_config has fields that this version does not know: {sorted(unknown)}")
        if not isinstance(recipe, dict) or not isinstance(self.sha256, dict):
            raise QuambaError(
                "quantization_config must have a `recipe` and, where it has one, a `sha256` of named values"
            )

    def to_dict(self) -> dict:
        """Without the hashes: transformers writes this beside weight files of its own."""
        return {name: value for name, value in super().to_dict().items() if name != "sha256"}


@register_quantizer(METHOD)
class QuambaQuantizer(HfQuantizer):
    """Gives `from_pretrained` the modules of a quantized model before it loads the tensors into them."""

    requires_calibration = True
    is_trainable = False

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, checkpoint_files=None, **_) -> None:
        build_skeleton(model, QuantizationRecipe.from_dict(self.quantization_config.recipe))
        files = [Path(file) for file in checkpoint_files or []]
        verify_hashes(files, self.quantization_config.sha256)
        verify_tensors(model, files)

    def update_weight_conversions(self, weight_conversions: list, model: PreTrainedModel) -> list:
        """None: the files have the names of the modules, whatever transformers calls float tensors in its own."""
        return []


def mark_quantized(model: PreTrainedModel, recipe: QuantizationRecipe) -> None:
    """Tells transformers that the model is quantized: its config says how, and `save_pretrained` writes that."""
    model.config.quantization_config = QuambaConfig(recipe.to_dict(), FORMAT_VERSION)
    model.hf_quantizer = QuambaQuantizer(model.config.quantization_config, pre_quantized=True)
    # what from_pretrained leaves on a loaded one: transformers' save_pretrained then keeps the names of the modules,
    # where float checkpoints have others (GPT-NeoX), and permutes no matrix whose scales it does not know
    model._weight_conversions = []


def recipe_of(model: PreTrainedModel) -> QuantizationRecipe | None:
    """The recipe of a quantized model, None for a float one."""
    config = getattr(model.config, "quantization_config", None)
    return QuantizationRecipe.from_dict(config.recipe) if isinstance(config, QuambaConfig) else None


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
    stored = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                    view = tensors.get_slice(name)
                    stored[name] = (tuple(view.get_shape()), view.get_dtype())
        except (SafetensorError, OSError) as error:
            raise QuambaError(f"{file} is truncated or damaged: {error}") from error
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
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def save_quantized(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> Path:
    """Writes a quantized model and its tokenizer to `directory`, whole or not at all; an older one there is replaced.

    Raises QuambaError for a float model, for a folder that holds anything but a quantized model, and where the
    directory cannot be written.
    """
    if recipe_of(model) is None:
        raise QuambaError("only quantized models are saved here: use save_pretrained for a float one")
    directory = Path(directory)
    target = directory.resolve()  # a link keeps pointing where it does
    check_replaceable(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        _write(model, tokenizer, temporary)
        _replace_directory(temporary, target)
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise QuambaError(f"cannot write to {directory}: {error}") from error
        raise
    logger.info("saved to %s", directory)
    return directory


def check_replaceable(directory: Path) -> None:
    """Raises QuambaError where `directory` exists and is neither empty nor a quantized model: what would be lost."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise QuambaError(f"{directory} is a file: give the name of a folder")
    try:
        quantization = read_config(directory).get("quantization_config")
    except QuambaError:
        quantization = None
    ours = isinstance(quantization, dict) and quantization.get("quant_method") == METHOD
    if not ours and any(directory.iterdir()):
        raise QuambaError(
            f"{directory} holds something else than a quantized model, which is not replaced: move it away"
        )


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(directory, save_original_format=False)  # names of modules: see mark_quantized
        tokenizer.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    hashes = {file.name: file_sha256(file) for file in sorted(directory.glob("*.safetensors"))}
    config["quantization_config"]["sha256"] = hashes
    write_text_atomically(directory / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    directory.chmod(0o755)
    fsync_tree(directory)


def _replace_directory(new: Path, directory: Path) -> None:
    """Renames `new` to `directory`; what was there steps aside first and is removed only once the new one stands."""
    if not directory.exists():
        os.replace(new, directory)
        return
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.old."))
    try:
        os.replace(directory, aside)
        os.replace(new, directory)
    except BaseException:
        if directory.exists():
            aside.rmdir()
        else:
            os.replace(aside, directory)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def load_quantized(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint of ours; `dtype` of what is float, None: as saved.

    Raises QuambaError for damaged or misfitting files.
    """
    verify_index(checkpoint.path, weight_files(checkpoint.path))
    config = read_model_config(checkpoint)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path, config=config, dtype=dtype or "auto", local_files_only=True
        )
        tokenizer = load_tokenizer(checkpoint)
    return model.eval().requires_grad_(False), tokenizer


def verify_index(directory: Path, files: list[Path]) -> None:
    """Raises QuambaError where a weight file that the index or config.json names is not there."""
    config = json.loads((directory / "config.json").read_text("utf-8"))
    named = set((config.get("quantization_config") or {}).get("sha256") or {})
    if missing := sorted(named - {file.name for file in files}):
        raise QuambaError(f"{directory} lacks the weight files {', '.join(missing)} that its config.json records")
