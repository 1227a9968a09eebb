"""Whether a model can be saved at all, found before the work that would be lost, not after it."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..borders import foreign
from ..errors import QuambaError
from .load_float import quiet_transformers

logger = logging.getLogger(__name__)


def check_savable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raises QuambaError where transformers would not write the configs of a model, or its tokenizer, float or not.

    It is tried, in a temporary folder, without the weights: a generation config that contradicts itself is refused by
    transformers only when it is saved. `tokenizer` None is allowed.
    """
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise QuambaError(
            f"a {type(tokenizer).__name__} is no tokenizer of transformers: give one, or None to save without"
        )
    with TemporaryDirectory(prefix="quamba-") as folder, quiet_transformers():
        with foreign("the config of the model cannot be saved", "mend model.config, or its config.json"):
            model.config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None:
            advice = "mend it in generation_config.json, or in model.generation_config"
            with foreign("the generation config of the model cannot be saved", advice):
                model.generation_config.save_pretrained(folder)
        save_tokenizer(tokenizer, Path(folder))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Writes a tokenizer's files, none for None. Raises QuambaError where its class does not."""
    if tokenizer is not None:
        with foreign("the tokenizer cannot be saved"):
            tokenizer.save_pretrained(folder)


def say_without_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: str | Path) -> None:
    """A warning in the log where a model was saved without its tokenizer: what reads it back needs one."""
    if tokenizer is None:
        logger.warning("%s has no tokenizer, since none was given: put its files there before it is loaded", folder)
