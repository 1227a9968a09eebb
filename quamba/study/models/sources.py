"""Models that are to be compared, before they are loaded: found by name, labelled, with the tokens they all read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...checkpoint import METHOD, Checkpoint, load_checkpoint, load_tokenizer, resolve_checkpoint
from ...checkpoint.load import DTYPES as DTYPES  # commands import it from here
from ...checkpoint.load import saved_dtype
from ...checkpoint.load_float import quiet_transformers, read_model_config
from ...checkpoint.state_spaces import convert_config
from ...errors import QuambaError
from ...models.positions import max_positions
from ...models.text_config import text_config
from ..logs.result_log import distinct_labels


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded. `dtype`: of what is float in it; None: as a quantized checkpoint was saved."""

    label: str
    name: str  # as the user gave it
    checkpoint: Checkpoint
    config: PreTrainedConfig
    dtype: torch.dtype | None

    def load(self) -> PreTrainedModel:
        """The model. Raises QuambaError as `quamba.load` does."""
        return load_checkpoint(self.checkpoint, self.dtype)[0]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer, as `quamba.load` gives it, without the model."""
        with quiet_transformers():
            tokenizer = load_tokenizer(self.checkpoint)
        eos = self.config.eos_token_id
        if tokenizer.eos_token is None and isinstance(eos, int):  # a lone tokenizer.json has no roles
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
        return tokenizer

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model was made for, None where nothing limits it (Mamba)."""
        return max_positions(self.config)


def find_models(
    names: Sequence[str],
    pretrained_dir: str | Path | None = None,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> list[ModelSource]:
    """The models of these names, in order; `dtype` None: each as it was saved; `labels`: by default their own names.

    Raises QuambaError for fewer than two, for a name that is nowhere, for a format that quamba does not run, and for
    labels that do not fit.
    """
    if len(names) < 2:
        raise QuambaError(f"a comparison takes two models or more, not {len(names)}: name another one")
    checkpoints = [resolve_checkpoint(name, pretrained_dir) for name in names]
    for checkpoint in checkpoints:  # told now, not once the models before it were measured
        if checkpoint.quantization_method not in (None, METHOD):
            raise QuambaError(
                f"{checkpoint.path} was quantized with {checkpoint.quantization_method!r}, which quamba does not run: "
                "give the float checkpoint it was made from"
            )
    labels = _checked_labels(labels, len(names)) if labels else _own_labels(checkpoints)
    return [
        ModelSource(label, name, checkpoint, _model_config(checkpoint), dtype or saved_dtype(checkpoint))
        for label, name, checkpoint in zip(labels, names, checkpoints, strict=True)
    ]


def common_tokens(
    sources: Sequence[ModelSource], tokenizers: Sequence[PreTrainedTokenizerBase], tokenize: Callable, text: str
) -> Tensor:
    """Return what `tokenize(tokenizer)` makes of a text, int64 [tokens], the same for every model.

    Raises QuambaError naming the models whose tokenizers differ, or the one whose embedding lacks a token.
    """
    streams = [tokenize(tokenizer) for tokenizer in tokenizers]
    tokens = streams[0]
    for source, stream in zip(sources, streams, strict=True):
        if not torch.equal(stream, tokens):
            raise QuambaError(
                f"the tokenizers of {sources[0].label} and {source.label} give different tokens of {text}: figures per "
                "token compare only between models of one tokenizer"
            )
        vocab_size = text_config(source).vocab_size
        if int(tokens.max()) >= vocab_size:
            raise QuambaError(
                f"{text} has token {int(tokens.max())}, and the embedding of {source.label} {vocab_size} "
                "rows: the tokenizer beside the model is not its own"
            )
    return tokens


def _model_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    if checkpoint.format == "state-spaces":
        return convert_config(checkpoint.config, checkpoint.path / "config.json")
    return read_model_config(checkpoint)


def _checked_labels(labels: Sequence[str], count: int) -> list[str]:
    if len(labels) != count:
        raise QuambaError(f"--labels names {len(labels)} ({', '.join(labels)}) for {count} models: one label for each")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise QuambaError(f"--labels names {twice[0]!r} twice: labels tell the models apart")
    return list(labels)


def _own_labels(checkpoints: Sequence[Checkpoint]) -> list[str]:
    labels = [checkpoint.name for checkpoint in checkpoints]
    if len(set(labels)) == len(labels):
        return labels
    # the files' paths: a folder's name may hold a dot, which begins no suffix
    by_folder = distinct_labels([checkpoint.path / "config.json" for checkpoint in checkpoints])
    if len(set(by_folder)) == len(by_folder):
        return by_folder
    return [f"{label} #{number}" for number, label in enumerate(labels, start=1)]  # one model twice
