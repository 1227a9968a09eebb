"""Text for calibration and perplexity: the embedded slices, local files and the usual data sets of the hub.

`load_text` gives documents, `token_windows` calibration samples, `evaluation_windows` the windows of a perplexity.
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

from .errors import QuambaError

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
SPLITS = ("calibration", "test")
EMBEDDED_TEXT = "stdlib"


@dataclass(frozen=True)
class EmbeddedDefaults:
    """What a run on an embedded checkpoint uses where the user says nothing: seconds of work on two cores."""

    calib_dataset: str = EMBEDDED_TEXT
    calib_data_num: int = 128
    calib_seqlen: int = 256  # the contexts that the checkpoint was trained on
    ppl_dataset: str = EMBEDDED_TEXT
    ppl_seqlen: int = 512
    ppl_windows: int = 128
    batch_size: int = 16
    tasks: tuple[str, ...] = ("stdlib_cloze",)


EMBEDDED_MODELS = {"mamba-tiny": EmbeddedDefaults()}


@dataclass(frozen=True)
class HubText:
    """Where the hub keeps a text: the arguments of `datasets.load_dataset`, and how its rows become documents."""

    path: str
    split: str
    name: str | None = None
    data_files: str | None = None
    field: str = "text"
    rows: int | None = None  # only the first rows: enough text, without reading a whole crawl
    joined_by: str | None = None  # rows that are lines of one running text are joined into one document


_WIKITEXT = {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "joined_by": "\n\n"}
# One table of names for every option that takes a text. Calibration never reads a test split.
HUB_TEXTS = {
    "wikitext2": {
        "calibration": HubText(split="train", **_WIKITEXT),
        "test": HubText(split="test", **_WIKITEXT),
    },
    "c4": {
        "calibration": HubText("allenai/c4", "train", data_files="en/c4-train.00000-of-01024.json.gz", rows=5000),
        "test": HubText("allenai/c4", "train", data_files="en/c4-validation.00000-of-00008.json.gz", rows=1100),
    },
    "pile": {
        "calibration": HubText("mit-han-lab/pile-val-backup", "validation", rows=5000),
        "test": HubText("monology/pile-uncopyrighted", "train", data_files="test.jsonl.zst", rows=1100),
    },
    "lambada": {
        "calibration": HubText("cimec/lambada", "validation"),
        "test": HubText("EleutherAI/lambada_openai", "test", name="default"),
    },
}
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


def text_sha256(documents: Sequence[str]) -> str:
    """SHA-256 of documents, for logs: equal exactly when the documents are."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def load_text(name_or_file: str | Path, split: str = "calibration") -> list[str]:
    """The documents of a text, in order, without blank ones.

    `name_or_file`: `stdlib` (embedded); wikitext2, c4, pile or lambada (from the hub, through `datasets`); else a file
    (`.jsonl`: a document in the "text" field of each row; any other: one document, UTF-8) or a folder of `.txt` and
    `.jsonl` files in the order of their names. `split`: "calibration" or "test"; a local file has only itself.
    Raises QuambaError for unknown names, unreadable or empty text and an unreachable hub.
    """
    if split not in SPLITS:
        raise QuambaError(f"unknown split {split!r} of a text: choose one of {', '.join(SPLITS)}")
    if name_or_file == EMBEDDED_TEXT:
        documents = [row["text"] for row in read_asset_rows(f"text/{EMBEDDED_TEXT}-{split}.jsonl")]
    elif name_or_file in HUB_TEXTS:
        documents = _read_hub(str(name_or_file), HUB_TEXTS[name_or_file][split])
    else:
        path = Path(os.path.expanduser(name_or_file))
        if not path.exists():
            raise QuambaError(
                f"unknown text {str(name_or_file)!r}: neither a file or folder here nor one of {', '.join(TEXT_NAMES)}"
            )
        documents = _read_local(path)
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise QuambaError(f"the text {str(name_or_file)!r} holds nothing but blanks")
    return documents


def _read_local(path: Path) -> list[str]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".txt", ".jsonl"))
        if not files:
            raise QuambaError(f"the folder {path} has no .txt and no .jsonl file to read text from")
        return [document for file in files for document in _read_local(file)]
    try:
        text = path.read_text("utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise QuambaError(f"cannot read {path} as UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        return [text]
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            document = None
        if not isinstance(document, str):
            raise QuambaError(f'{path}, line {number}: expected a JSON object with a string in its field "text"')
        documents.append(document)
    return documents


def _read_hub(name: str, source: HubText) -> list[str]:
    import datasets  # slow to import, and only these texts need it

    try:
        rows = datasets.load_dataset(source.path, source.name, data_files=source.data_files, split=source.split)
    except (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise QuambaError(
            f"cannot load the text {name!r}: tried split {source.split!r} of {source.path} on the Hugging Face hub and "
            f"in the local cache ({type(error).__name__}: {error}). Without the hub give a local file (.txt or .jsonl) "
            f"instead of the name, or {EMBEDDED_TEXT!r}, which is embedded"
        ) from error
    if source.rows is not None and source.rows < len(rows):
        logger.info("%s: using the first %d of %d rows", name, source.rows, len(rows))
        rows = rows.select(range(source.rows))
    documents = list(rows[source.field])
    return documents if source.joined_by is None else [source.joined_by.join(documents)]


def token_stream(documents: Sequence[str], tokenizer) -> Tensor:
    """int64 [tokens]: every document's tokens, each behind the tokenizer's bos (or eos) token, as in pre-training.

    A tokenizer that has neither token gives the documents without a mark between them.
    """
    separator = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix = [] if separator is None else [separator]
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return torch.tensor([token for ids in encoded["input_ids"] for token in (*prefix, *ids)], dtype=torch.int64)


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise QuambaError(f"{name} is {value}: it must be at least {least}")


def token_windows(documents: Sequence[str], tokenizer, seqlen: int, count: int, seed: int = 0) -> Tensor:
    """Calibration samples: int64 [count, seqlen], windows of the token stream chosen at random without overlap.

    Where the text has fewer than `count` windows all of them are given, with a warning in the log.
    Raises QuambaError when the text has not even one.
    """
    _check_at_least("the length of a calibration sequence", seqlen, 1)
    _check_at_least("the number of calibration sequences", count, 1)
    stream = token_stream(documents, tokenizer)
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
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(len(stream) - available * seqlen + 1, (), generator=generator))
    windows = stream[offset : offset + available * seqlen].view(available, seqlen)
    return windows[torch.randperm(available, generator=generator)[:count]]


def evaluation_windows(documents: Sequence[str], tokenizer, seqlen: int) -> list[Tensor]:
    """Consecutive windows of the token stream, int64 [seqlen] each, without overlap; the last one may be shorter.

    A last window of a single token predicts nothing and is left out. Raises QuambaError when no window is left.
    """
    _check_at_least("the length of a perplexity window", seqlen, 2)
    windows = [window for window in token_stream(documents, tokenizer).split(seqlen) if len(window) > 1]
    if not windows:
        raise QuambaError("the text is too short to measure perplexity on: it has no two tokens")
    return windows
