"""Text for calibration and perplexity: the embedded slices, local files and the usual data sets of the hub.

`load_text` gives documents; `token_windows`, `token_slices` and `first_windows` are three ways to take calibration
samples from them; `evaluation_windows` are the windows of a perplexity.
Dims: N samples of L tokens (`count` of `seqlen`).
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import QuambaError
from .files import read_local
from .reading import once
from .sources import (
    EMBEDDED_TEXT,
    HUB_TEXTS,
    PLAIN_WIKITEXT,
    WIKITEXT,
    find_data_files,
    plain_text,
    read_rows,
    running_text,
    split_articles,
)
from .sources import text_sha256 as text_sha256  # others import it from here
from .token_cache import TokenizedText, tokenize

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets"
SPLITS = ("calibration", "test")
LONG_SHARE = 0.5  # of a text, that documents must hold to stand for it


@dataclass(frozen=True)
class EmbeddedDefaults:
    """Hold what a run on an embedded checkpoint uses where the user says nothing: seconds of work on two cores."""

    calib_dataset: str = EMBEDDED_TEXT
    calib_data_num: int = 128
    calib_seqlen: int = 256  # the contexts that the checkpoint was trained on
    ppl_dataset: str = EMBEDDED_TEXT
    ppl_seqlen: int = 512
    ppl_windows: int = 128
    batch_size: int = 16
    tasks: tuple[str, ...] = ("stdlib_cloze",)


EMBEDDED_MODELS = {"mamba-tiny": EmbeddedDefaults(), "mamba2-tiny": EmbeddedDefaults()}
TEXT_NAMES = (EMBEDDED_TEXT, *HUB_TEXTS)


def embedded_model_dir(name: str) -> Path | None:
    """The folder of the embedded checkpoint of that name, None where there is none."""
    return ASSETS / name if name in EMBEDDED_MODELS else None


def asset_hashes() -> dict[str, str]:
    """SHA-256 of every embedded text file and task file, by its path under assets/, as recorded when they were made."""
    manifest = json.loads((ASSETS / "MANIFEST.json").read_text("utf-8"))
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def read_asset_rows(name: str) -> list[dict]:
    """The JSON objects of an embedded JSONL file. Raises QuambaError when the file is not as it was published."""
    data = (ASSETS / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != asset_hashes()[name]:
        raise QuambaError(
            f"the embedded file {ASSETS / name} was changed (its SHA-256 differs from MANIFEST.json), so figures "
            "measured with it would not compare: reinstall quamba"
        )
    return [json.loads(line) for line in data.split(b"\n") if line]


def load_text(
    name_or_file: str | Path,
    split: str = "calibration",
    data_dir: str | Path | None = None,
    articles: bool = False,
) -> list[str]:
    """The documents of a text, in order, without blank ones.

    `name_or_file`: `stdlib` (embedded); wikitext2, wikitext2-simple, c4, pile or lambada (from the hub, through
    `datasets`); else a file (`.jsonl`, `.json`, `.parquet`: a document a row, see `text_files`; else one document,
    UTF-8; `.gz` and `.zst` are unpacked), a folder of such files in the order of their names, or what `save_to_disk` of
    `datasets` wrote. `split`: "calibration" or "test"; a local file has only itself. `data_dir`: a folder or file to
    read a named text from instead of the hub, see `text_sources.find_data_files`. wikitext2 is one running text, or,
    with `articles`, a document for each of its articles; wikitext2-simple is its lines that are not blank, joined by
    newlines, in one document.
    Raises QuambaError for unknown names, unreadable or empty text, an unreachable hub, and a `data_dir` that lacks the
    text or goes with one that no folder can stand in for.
    """
    if split not in SPLITS:
        raise QuambaError(f"unknown split {split!r} of a text: choose one of {', '.join(SPLITS)}")
    if data_dir is not None:
        find_data_files(name_or_file, split, data_dir)
    if name_or_file == EMBEDDED_TEXT:
        asset = f"text/{EMBEDDED_TEXT}-{split}.jsonl"
        documents = [row["text"] for row in once((asset,), lambda: read_asset_rows(asset))]
    elif name_or_file in HUB_TEXTS:
        name = str(name_or_file)
        rows = once((name, split, str(data_dir)), lambda: read_rows(name, split, data_dir))
        documents = _documents(name, rows, articles)
    else:
        path = Path(os.path.expanduser(name_or_file))
        if not path.exists():
            raise QuambaError(
                f"unknown text {str(name_or_file)!r}: neither a file or folder here nor one of {', '.join(TEXT_NAMES)}"
            )
        place = (str(path.resolve()), split if path.is_dir() else None)  # a file is the same text for every split
        documents = once(place, lambda: read_local(path, split))
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise QuambaError(f"the text {str(name_or_file)!r} holds nothing but blanks")
    return documents


def _documents(name: str, rows: list[str], articles: bool) -> list[str]:
    if name == PLAIN_WIKITEXT:
        return [plain_text(rows)]
    if name == WIKITEXT:
        return split_articles(rows) if articles else [running_text(rows)]
    return rows


def token_stream(documents: Sequence[str], tokenizer) -> Tensor:
    """int64 [tokens]: every document's tokens, each behind the tokenizer's bos (or eos) token, as in pre-training.

    A tokenizer that has neither token gives the documents without a mark between them. Tokens of large texts are kept
    between runs, see `token_cache`.
    """
    return _marked(tokenize(documents, tokenizer), tokenizer)


def _marked(text: TokenizedText, tokenizer) -> Tensor:
    """The tokens of tokenized documents, each behind its mark: int64 [tokens]."""
    mark = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if mark is None:
        return text.tokens
    marked = [piece for document in text.documents() for piece in (torch.tensor([mark]), document)]
    return torch.cat([text.tokens[:0], *marked])


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise QuambaError(f"{name} is {value}: it must be at least {least}")


def _check_sample(seqlen: int, count: int) -> None:
    _check_at_least("the length of a calibration sequence", seqlen, 1)
    _check_at_least("the number of calibration sequences", count, 1)


def _distinct_sequences(stream: Tensor, seqlen: int, count: int) -> int:
    """Return how many sequences without overlap a stream has. Raises QuambaError for none, warns of less than
    `count`."""
    available = len(stream) // seqlen
    if available == 0:
        raise QuambaError(
            f"the calibration text has {len(stream)} tokens, fewer than one sequence of {seqlen}: "
            "give more text or shorter sequences (--calib_seqlen)"
        )
    if available < count:
        logger.warning(
            "the calibration text has %d distinct sequences of %d tokens, not %d: using %d",
            available,
            seqlen,
            count,
            available,
        )
    return available


def token_windows(documents: Sequence[str], tokenizer, seqlen: int, count: int, seed: int = 0) -> Tensor:
    """Calibration samples: int64 [count, seqlen], windows of the token stream chosen at random without overlap.

    Where the text has fewer than `count` windows all of them are given, with a warning in the log.
    Raises QuambaError when the text has not even one.
    """
    _check_sample(seqlen, count)
    stream = token_stream(documents, tokenizer)
    available = _distinct_sequences(stream, seqlen, count)
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(len(stream) - available * seqlen + 1, (), generator=generator))
    windows = stream[offset : offset + available * seqlen].view(available, seqlen)
    return windows[torch.randperm(available, generator=generator)[:count]]


def token_slices(documents: Sequence[str], tokenizer, seqlen: int, count: int, seed: int = 0) -> Tensor:
    """Calibration samples: int64 [count, seqlen], slices of long documents at random places, as AWQ and GPTQ take them.

    Each is drawn on its own: a document, any of those with at least `seqlen` tokens as likely as another, then any
    place in it. So a slice lies within one document, without a mark, and slices of one document may overlap, unlike
    those of `token_windows`. Where documents that are long enough hold less than half of the text (LONG_SHARE), they
    cannot stand for it: then all documents are joined, as `token_stream` does, and a slice begins at any place of that.
    The log says which, and how much of the text a slice could come from. The same documents, tokenizer and seed give
    exactly the same slices everywhere, and a smaller `count` the first of them.
    Raises QuambaError when the whole text is too short.
    """
    _check_sample(seqlen, count)
    sources = _slice_sources(tokenize(documents, tokenizer), tokenizer, seqlen)
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    slices = []
    for _ in range(count):
        tokens = sources[below(len(sources))]
        start = below(len(tokens) - seqlen + 1)
        slices.append(tokens[start : start + seqlen])
    return torch.stack(slices)  # [N, L]


def _slice_sources(text: TokenizedText, tokenizer, seqlen: int) -> list[Tensor]:
    """Return what slices are taken from, int64 [seqlen or more] each: the long documents, or all of them as one."""
    documents = text.documents()
    long = [tokens for tokens in documents if len(tokens) >= seqlen]
    share = sum(map(len, long)) / max(1, len(text.tokens))
    counts = (seqlen, len(long), len(documents), 100 * share)
    if share >= LONG_SHARE:
        level = logging.INFO if len(long) == len(documents) else logging.WARNING
        logger.log(level, "slices of %d tokens: from %d of %d documents, with %.0f %% of the text", *counts)
        return long
    stream = _marked(text, tokenizer)
    _distinct_sequences(stream, seqlen, 1)
    logger.warning(
        "slices of %d tokens: only %d of %d documents are so long, with %.0f %% of the text: all are joined, and "
        "slices run across their ends",
        *counts,
    )
    return [stream]


def first_windows(documents: Sequence[str], tokenizer, seqlen: int, count: int) -> Tensor:
    """Calibration samples without chance: int64 [count, seqlen], the token stream from its start, cut into sequences.

    Where the text has fewer than `count` sequences all of them are given, with a warning in the log.
    Raises QuambaError when the text has not even one.
    """
    _check_sample(seqlen, count)
    stream = token_stream(documents, tokenizer)
    count = min(count, _distinct_sequences(stream, seqlen, count))
    return stream[: count * seqlen].view(count, seqlen)


SAMPLINGS = {"windows": token_windows, "slices": token_slices}


def evaluation_windows(documents: Sequence[str], tokenizer, seqlen: int) -> list[Tensor]:
    """Consecutive windows of the token stream, int64 [seqlen] each, without overlap; the last one may be shorter.

    A last window of a single token predicts nothing and is left out. Raises QuambaError when no window is left.
    """
    _check_at_least("the length of a perplexity window", seqlen, 2)
    windows = [window for window in token_stream(documents, tokenizer).split(seqlen) if len(window) > 1]
    if not windows:
        raise QuambaError("the text is too short to measure perplexity on: it has no two tokens")
    return windows
