"""Load a float model and its tokenizer, from a transformers checkpoint or an original state-spaces one."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Mamba2ForCausalLM,
    MambaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from ..borders import foreign
from ..errors import QuambaError
from ..models.tensor_checks import check_tensors
from ..models.text_config import text_config
from ..models.tying import state_tying
from .resolve import Checkpoint
from .sizes import check_counts, check_sizes
from .state_spaces import read_state_spaces
from .tokenizer import load_tokenizer
from .weight_files import stored_tensors, weight_files

logger = logging.getLogger(__name__)

TRANSFORMERS = threading.RLock()  # held by the thread that loads or saves
UNFIT = "the file is damaged, or that dtype is too narrow for its values"
ORIGINAL_CLASSES = {"mamba": MambaForCausalLM, "mamba2": Mamba2ForCausalLM}


def load_float(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, transformers' own class on the CPU, and the tokenizer of a float checkpoint.

    The model is in eval mode, needs no gradients, and has parameters of `dtype`. Raises QuambaError for a checkpoint
    that is quantized already, a config that transformers cannot read, truncated or damaged files (named), missing,
    extra or misshapen tensors (named), tensors that hold NaN or infinity (named), and a tokenizer that cannot be found.
    """
    if checkpoint.quantization_method is not None:
        raise QuambaError(
            f"{checkpoint.path} is quantized already (quant_method {checkpoint.quantization_method!r}): "
            "give the float checkpoint it was made from"
        )
    with quiet_transformers():
        load_model = _load_original if checkpoint.format == "state-spaces" else _load_transformers
        model, loading_info = load_model(checkpoint, dtype)
        _require_complete(loading_info, checkpoint)
        tokenizer = load_tokenizer(checkpoint)
    check_tensors(model, f"{checkpoint.path}, read as {model.dtype}", UNFIT)
    state_tying(model)
    if tokenizer.eos_token is None and isinstance(model.config.eos_token_id, int):  # a lone tokenizer.json has no roles
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    model.eval().requires_grad_(False)
    vocab_size = text_config(model).vocab_size
    if len(tokenizer) > vocab_size:
        logger.warning(
            "%s: the tokenizer has %d tokens, the embedding %d rows: is it this model's tokenizer?",
            checkpoint.name,
            len(tokenizer),
            vocab_size,
        )
    return model, tokenizer


def read_model_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """transformers' config of a causal language model. Raises QuambaError where config.json describes none."""
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise QuambaError(f"{checkpoint.path}: {model_type!r} is not a causal language model that transformers knows")
    with foreign(f"{checkpoint.path / 'config.json'} describes no valid model"):
        return AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)


def _load_transformers(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, dict]:
    """(model, transformers' account of the tensors that were missing, unexpected or misshapen)."""
    stored = {name: shape for name, (shape, _) in stored_tensors(weight_files(checkpoint.path)).items()}
    file = checkpoint.path / "config.json"
    check_counts(checkpoint.config, file, stored)
    config = read_model_config(checkpoint)
    check_sizes(config, file, stored)
    with foreign(f"transformers cannot load {checkpoint.path}"):
        return AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they come back by name, for an error of ours
        )


def _load_original(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[PreTrainedModel, dict]:
    """Load a checkpoint in the original state-spaces format."""
    config, tensors = read_state_spaces(checkpoint)
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_sizes(config, checkpoint.path / "config.json", stored)
    return ORIGINAL_CLASSES[config.model_type].from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )


def _require_complete(loading_info: dict, checkpoint: Checkpoint) -> None:
    """Raises QuambaError naming the tensors that do not match the model; a tied head needs no tensor of its own."""
    mismatched = {
        f"{name} {list(stored)} instead of {list(expected)}"
        for name, stored, expected in loading_info["mismatched_keys"]
    }
    problems = {
        "missing": loading_info["missing_keys"],
        "not part of the model": loading_info["unexpected_keys"],
        "of the wrong shape": mismatched,
    }
    lines = [f"{what}: {_shortened(sorted(names))}" for what, names in problems.items() if names]
    lines += loading_info["error_msgs"]
    if lines:
        raise QuambaError(f"the weights in {checkpoint.path} do not fit its config.json; tensors " + "; ".join(lines))


def _shortened(names: list[str], limit: int = 5) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hold back transformers' bars and its report on loading: what is wrong is raised instead.

    These settings, and torch's default dtype, which transformers sets to load, are the process's: one thread at a time.
    """
    with TRANSFORMERS:
        verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
