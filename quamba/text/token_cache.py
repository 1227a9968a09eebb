"""Tokenised documents, kept between runs.

Texts of a million characters and more are kept, one file each in the folder `tokens` of `$QUAMBA_CACHE`, by default
~/.cache/quamba; `QUAMBA_CACHE=off` keeps nothing. Smaller texts are tokenised in less time than they are worth a file.
Nothing is ever removed: delete the folder when it has grown too large.
Dims: T tokens of all documents, D documents.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import QuambaError
from ..storage.files import replace_atomically
from .reading import once
from .sources import text_sha256

logger = logging.getLogger(__name__)

VARIABLE, OFF, DEFAULT_FOLDER = "QUAMBA_CACHE", "off", "~/.cache/quamba"
MIN_CHARACTERS = 1_000_000
PROBE_CHARACTERS = 4096
FORMAT_VERSION = 1
SETTINGS = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}  # of the tokenizer's call


@dataclass
class TokenizedText:
    """The token ids of documents, one behind the other. tokens: int64 [T]; lengths: int64 [D]."""

    tokens: Tensor
    lengths: Tensor

    def documents(self) -> tuple[Tensor, ...]:
        """The token ids of each document: D views, int64 [its length]."""
        return self.tokens.split(self.lengths.tolist())


def tokenize(documents: Sequence[str], tokenizer) -> TokenizedText:
    """The tokens of documents, without marks between them, from the cache where it has them.

    What is kept is found again by a hash of the documents, the tokenizer and the settings. A damaged file is made
    anew, and a folder that cannot be written to only costs the time: both are said in the log. Errors: the tokenizer's.
    """
    described = tokenizer_sha256(tokenizer)
    if described is None:
        return _tokenize(documents, tokenizer)
    key = ("tokens", text_sha256(documents), described)
    return once(key, lambda: _tokenize_or_read(documents, tokenizer))


def _tokenize_or_read(documents: Sequence[str], tokenizer) -> TokenizedText:
    path = _cache_file(documents, tokenizer)
    if path is None:
        return _tokenize(documents, tokenizer)
    text = _read(path)
    if text is None:
        text = _tokenize(documents, tokenizer)
        _write(path, text)
    return text


def cache_folder() -> Path | None:
    """Return where results are kept between runs, None where `QUAMBA_CACHE=off` or nobody's home folder is known."""
    value = os.environ.get(VARIABLE) or DEFAULT_FOLDER
    try:
        return None if value == OFF else Path(value).expanduser()
    except RuntimeError:
        logger.info("no home folder to keep tokens in: set %s to a folder", VARIABLE)
        return None


def tokenizer_sha256(tokenizer) -> str | None:
    """SHA-256 of what decides a tokenizer's output, None where that cannot be told.

    A fast one is its tokenizer.json, less padding and truncation, which belong to a call; a slow one its class, its
    vocabulary and the plain values that it was made with.
    """
    described = {"class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        try:
            pipeline = json.loads(backend.to_str())
        except Exception as error:  # the library raises no narrower one for parts written in Python
            logger.info("the tokenizer cannot be serialised, so its tokens are not kept: %s", error)
            return None
        described["pipeline"] = {key: part for key, part in pipeline.items() if key not in ("padding", "truncation")}
        described["split_special_tokens"] = bool(getattr(tokenizer, "split_special_tokens", False))
    elif hasattr(tokenizer, "get_vocab"):
        arguments = getattr(tokenizer, "init_kwargs", {})
        described["vocabulary"] = tokenizer.get_vocab()
        described["arguments"] = {key: v for key, v in arguments.items() if isinstance(v, (bool, int, float, str))}
    else:
        return None
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _tokenize(documents: Sequence[str], tokenizer) -> TokenizedText:
    encoded = tokenizer(list(documents), **SETTINGS)["input_ids"]
    tokens = torch.tensor([token for ids in encoded for token in ids], dtype=torch.int64)  # [T]
    return TokenizedText(tokens, torch.tensor([len(ids) for ids in encoded], dtype=torch.int64))


def _cache_file(documents: Sequence[str], tokenizer) -> Path | None:
    """Return where the tokens of these documents are kept, None where they are not."""
    folder = cache_folder()
    if folder is None or sum(map(len, documents)) < MIN_CHARACTERS:
        return None
    tokenizer_hash = tokenizer_sha256(tokenizer)
    if tokenizer_hash is None:
        return None
    # what no description of a slow tokenizer shows, such as merges, shows in the tokens of the first words
    probe = _tokenize([next(filter(None, documents))[:PROBE_CHARACTERS]], tokenizer)
    key = {
        "format": FORMAT_VERSION,
        "text": text_sha256(documents),
        "tokenizer": tokenizer_hash,
        "probe": probe.tokens.tolist(),
        "settings": SETTINGS,
        "library": tokenizers.__version__,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return folder / "tokens" / f"{name}.safetensors"


def _sha256(tokens: Tensor, lengths: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (tokens, lengths):
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _read(path: Path) -> TokenizedText | None:
    """Return what is kept under `path`; None where nothing is, or, with a line in the log, nothing whole."""
    try:
        with safe_open(path, "pt") as file:
            tokens, lengths = file.get_tensor("tokens"), file.get_tensor("lengths")
            expected = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.warning("cannot read the cached tokens %s (%s): tokenising the text anew", path, error)
        return None
    if _sha256(tokens, lengths) != expected:
        logger.warning("the cached tokens %s are damaged (their hash differs): tokenising the text anew", path)
        return None
    logger.info("%d cached tokens are read from %s", len(tokens), path)
    return TokenizedText(tokens.to(torch.int64, copy=True), lengths.clone())


def _write(path: Path, text: TokenizedText) -> None:
    tokens = text.tokens.to(torch.int32)  # half the size
    try:
        with replace_atomically(path) as temporary:
            save_file({"tokens": tokens, "lengths": text.lengths}, temporary, {"sha256": _sha256(tokens, text.lengths)})
    except (OSError, SafetensorError, QuambaError) as error:
        logger.warning("cannot keep the tokens of the text in %s (%s): set %s", path.parent, error, VARIABLE)
