"""Quantized checkpoints: safetensors + config.json with `quantization_config`, written whole and verified on reading.

Importing this registers the format with transformers, so that `AutoModelForCausalLM.from_pretrained` reads it.
"""

import json
import logging
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..architectures.convert import build_skeleton, leave_files
from ..borders import foreign
from ..errors import QuambaError
from ..models.memory import tensor_bytes
from ..models.model_checks import check_placement
from ..models.original import require_whole
from ..models.tensor_checks import check_tensors
from ..nn.placement import align_floats
from ..scheme.recipe import QuantizationRecipe
from ..storage.files import write_text_atomically
from ..storage.folders import replace_folder, require_files_of
from ..storage.outputs import FOLDER, Output, check_space
from .load_float import UNFIT, quiet_transformers, read_model_config
from .resolve import Checkpoint, read_config
from .savable import check_savable, save_tokenizer, say_without_tokenizer
from .sizes import QUANTIZED_FACTOR, check_counts, check_sizes
from .tokenizer import load_tokenizer
from .unchanged import generation
from .verify import config_sha256, file_sha256, verify_config, verify_hashes, verify_index, verify_tensors
from .weight_files import stored_tensors, weight_files

logger = logging.getLogger(__name__)

METHOD = "quamba"
FORMAT_VERSION = 5
EARLIER = (2, 3, 4)  # versions that are read too: fields that their recipes did not have yet have their defaults
OF_THE_FILES = ("sha256", "config_sha256", "files", "flat")  # what holds for the files of one save

# what `save_quantized` wrote before it recorded the names, and what transformers' save_pretrained writes
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
VOCABULARY = ("vocab.*", "merges.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json", "added_tokens.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", *VOCABULARY, *TEMPLATES)
USUAL_FILES = ("config.json", "generation_config.json", *WEIGHTS, *TOKENIZER)


@register_quantization_config(METHOD)
class QuambaConfig(QuantizationConfigMixin):
    """`quantization_config` of config.json: the recipe as data, and what holds for the files of one save.

    sha256: of each weight file. config_sha256: of config.json (see `verify.config_sha256`). files: the names of all
    that was written.
    """

    def __init__(
        self,
        recipe: dict | None = None,
        format_version: int | None = None,
        sha256: dict | None = None,
        config_sha256: str | None = None,
        files: list | None = None,
        **unknown,
    ):
        self.quant_method = METHOD
        self.format_version = format_version
        self.recipe = recipe
        self.flat = format_version in EARLIER  # integer weights [O, C] in the files, see QuantModule
        if self.flat:
            self.format_version = FORMAT_VERSION
        self.sha256, self.config_sha256, self.files = sha256 or {}, config_sha256, files or []
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
        """Without the hashes and names: transformers writes this beside files of its own."""
        return {name: value for name, value in super().to_dict().items() if name not in OF_THE_FILES}


@register_quantizer(METHOD)
class QuambaQuantizer(HfQuantizer):
    """Gives `from_pretrained` the modules of a quantized model before it loads the tensors into them."""

    requires_calibration = True
    is_trainable = False

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, checkpoint_files=None, **_) -> None:
        recipe = QuantizationRecipe.from_dict(self.quantization_config.recipe)
        build_skeleton(model, recipe, self.quantization_config.flat)
        files = self._files = [Path(file) for file in checkpoint_files or []]
        self._folder = files[0].parent if files else None
        self._generation = self._files and self._stamp()
        if self._folder:
            verify_config(self._folder)
            self._require_unchanged()
        try:
            verify_hashes(files, self.quantization_config.sha256)
            verify_tensors(model, files)
        except QuambaError:
            if self._folder:
                self._require_unchanged()
            raise

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_) -> None:
        if self._folder:
            self._require_unchanged()
        leave_files(model)
        check_tensors(model, f"{self._folder or 'the checkpoint'}, read as {model.dtype}", UNFIT)
        align_floats(model)

    def _require_unchanged(self) -> None:
        """Raises QuambaError where the config is not the one beside the weights, or these are others than before."""
        recorded = read_config(self._folder).get("quantization_config") or {}
        ours = (recorded.get("sha256") or {}) == self.quantization_config.sha256
        if not ours or self._stamp() != self._generation:
            raise QuambaError(
                f"{self._folder} was replaced while it was read, or is read with another model's config: load it again"
            )

    def _stamp(self) -> dict[str, tuple[int, ...]] | None:
        """Return what changes with the files that are read here; others may come meanwhile, as a download goes on."""
        return generation(self._folder, {"config.json", *(file.name for file in self._files)})

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


def save_quantized(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: str | Path) -> Path:
    """Writes a quantized model and its tokenizer to `directory`, whole or not at all; an older one there is replaced.

    `tokenizer` None: the model alone, which is said in the log. Raises QuambaError for a float model, for a folder that
    holds anything but the files of a quantized model, for configs that transformers does not write, and where the
    directory cannot be written or the disk has too little room; naming the tensor, for one that has no data or holds
    NaN, infinity or no scale.
    """
    require_whole(model)
    if recipe_of(model) is None:
        raise QuambaError("only quantized models are saved here: use save_pretrained for a float one")
    check_placement(model)
    check_tensors(model, "the model is not saved", "quantize it again")
    directory = Path(directory)
    check_replaceable(directory)
    check_savable(model, tokenizer)
    check_space({Output("the model", directory, FOLDER): tensor_bytes(model)})
    try:
        with replace_folder(directory, check_replaceable) as folder:
            _write(model, tokenizer, folder)
    except (OSError, SafetensorError) as error:
        raise QuambaError(f"cannot write to {directory}: {error}") from error
    logger.info("saved to %s", directory)
    say_without_tokenizer(tokenizer, directory)
    return directory


def check_replaceable(directory: Path) -> None:
    """Raises QuambaError where `directory` holds anything but the files of a quantized model: what would be lost."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise QuambaError(f"{directory} is a file: give the name of a folder")
    try:
        quantization = read_config(directory).get("quantization_config")
    except QuambaError:
        quantization = None
    if isinstance(quantization, dict) and quantization.get("quant_method") == METHOD:
        written = quantization.get("files")
        patterns = [*written, "config.json"] if isinstance(written, list) else USUAL_FILES
        require_files_of(directory, lambda name: any(fnmatchcase(name, str(pattern)) for pattern in patterns))
    elif any(directory.iterdir()):
        raise QuambaError(
            f"{directory} holds something else than a quantized model, which is not replaced: move it away"
        )


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, directory: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(directory, save_original_format=False)  # names of modules: see mark_quantized
        save_tokenizer(tokenizer, directory)
    config = json.loads((directory / "config.json").read_text("utf-8"))
    described = config["quantization_config"]
    described["sha256"] = {file.name: file_sha256(file) for file in sorted(directory.glob("*.safetensors"))}
    described["files"] = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    described["config_sha256"] = config_sha256(config)
    write_text_atomically(directory / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_quantized(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint of ours; `dtype` of what is float, None: as saved.

    Raises QuambaError for damaged or misfitting files.
    """
    verify_config(checkpoint.path)
    files, file = weight_files(checkpoint.path), checkpoint.path / "config.json"
    verify_index(checkpoint.path, files)
    stored = {name: shape for name, (shape, _) in stored_tensors(files).items()}
    check_counts(checkpoint.config, file, stored)
    config = read_model_config(checkpoint)
    with quiet_transformers():
        check_sizes(config, file, stored, QUANTIZED_FACTOR)
        with foreign(f"transformers cannot load {checkpoint.path}"):
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint.path, config=config, dtype=dtype or "auto", local_files_only=True, trust_remote_code=False
            )
        tokenizer = load_tokenizer(checkpoint)
    return model.eval().requires_grad_(False), tokenizer
