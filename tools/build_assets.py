"""Builds the embedded text and the cloze items: `python tools/build_assets.py` (Python 3.11, the package installed).

The files under quamba/assets are frozen: rebuilding them is a deliberate change of every figure that was measured on
them. Another patch release of Python has slightly different sources and gives slightly different files.

Text. The documents are the standard library's own `*.py` files, whole. A file's split depends on its path alone, by the
rule that the embedded checkpoints were trained with: int(sha256(relative POSIX path), 16) % 20 is 0 for validation, 1
for test, anything else for train. Left out: site-packages, what the interpreter's build generated, files that are
blank, not UTF-8 or over MAX_FILE_BYTES. Files are taken in the order of sha256(path) until a slice holds SLICE_BYTES.

Cloze items, in the style of LAMBADA: guess an identifier from the passage before it. A position in a file is a
candidate when all of this holds:
- an identifier (or a word of a comment) begins there, directly after one of `. ( [ = @`, or after a single space that
  follows a visible character; it has at least MIN_TARGET_LENGTH characters and is neither a keyword nor `self`;
- the passage, from the first line start in the PASSAGE_LENGTH characters before it, has at least MIN_CONTEXT_LENGTH
  characters and two lines;
- the target follows from the passage: the PRECEDING lexical units (a word, or one other visible character) before the
  target are also followed by the target earlier in the passage;
- the target is one token of the embedded tokenizer, as LAMBADA's targets are words of a vocabulary, and the tokenizer
  splits context + target exactly there.
Of a file's candidates, those with the smallest sha256(path:position) are taken, at most `per_file`, no two with the
same target or less than MIN_DISTANCE apart; of all files' items those with the smallest hash, in that order. No
model's answers take part. Files under encodings/ give no items: they are generated tables. Test items come from the
test slice, few-shot examples from the calibration slice.
"""

import hashlib
import json
import keyword
import platform
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoTokenizer

from quamba.storage.files import write_text_atomically

ASSETS = Path(__file__).resolve().parent.parent / "quamba" / "assets"
STDLIB = Path(sysconfig.get_paths()["stdlib"])

MAX_FILE_BYTES = 60_000
SLICE_BYTES = 900_000
SPLITS = {"calibration": "train", "test": "test"}

PASSAGE_LENGTH = 480
MIN_CONTEXT_LENGTH = 320
MIN_TARGET_LENGTH = 4
MIN_DISTANCE = 240  # characters: neighbouring passages share at most half of their text
PRECEDING = 2
EXCLUDED_TARGETS = {*keyword.kwlist, *keyword.softkwlist, "self"}
TARGET = re.compile(r"(?:(?<=\S) |(?<=[.(\[=@]))([A-Za-z_][A-Za-z0-9_]*)")
LEXICAL_UNIT = re.compile(r"\w+|[^\w\s]")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(path: str) -> str:
    """The checkpoints' split rule."""
    return {0: "validation", 1: "test"}.get(int(sha256(path), 16) % 20, "train")


def library_files(split: str) -> Iterator[tuple[str, str]]:
    """(relative path, text) of the split's files, in the order of sha256(path)."""
    files = {path.relative_to(STDLIB).as_posix(): path for path in STDLIB.rglob("*.py")}
    for name in sorted(files, key=sha256):
        generated = name.startswith(("_sysconfigdata", "config-")) or "site-packages" in name or "__pycache__" in name
        if generated or split_of(name) != split or files[name].stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = files[name].read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield name, text


def text_slice(split: str) -> list[dict]:
    """Whole documents of the split until SLICE_BYTES are reached."""
    documents, size = [], 0
    for path, text in library_files(split):
        documents.append({"path": path, "text": text})
        size += len(text.encode())
        if size >= SLICE_BYTES:
            break
    return documents


def follows_from(context: str, target: str) -> bool:
    """True when the last PRECEDING units of the context were followed by the target before."""
    units = LEXICAL_UNIT.findall(context)
    wanted = [*units[-PRECEDING:], target]
    return any(units[i : i + PRECEDING + 1] == wanted for i in range(len(units) - PRECEDING))


def candidates(path: str, text: str) -> Iterator[dict]:
    """Every position of the document that fits the rule, the tokenizer's condition aside."""
    for match in TARGET.finditer(text):
        position, target = match.start(), match.group(1)
        if len(target) < MIN_TARGET_LENGTH or target in EXCLUDED_TARGETS:
            continue
        start = text.find("\n", max(0, position - PASSAGE_LENGTH)) + 1
        context = text[start:position]
        if len(context) >= MIN_CONTEXT_LENGTH and "\n" in context and follows_from(context, target):
            item_id = f"{path}:{position}"
            yield {"id": item_id, "position": position, "context": context, "target": match.group(0)}


def document_items(document: dict, encode: Callable[[str], list[int]], per_file: int) -> list[dict]:
    """The items that one document gives."""
    chosen: list[dict] = []
    if document["path"].startswith("encodings/"):
        return chosen
    for item in sorted(candidates(document["path"], document["text"]), key=lambda item: sha256(item["id"])):
        context, target = item["context"], item["target"]
        if any(
            abs(item["position"] - other["position"]) < MIN_DISTANCE or target.strip() == other["target"].strip()
            for other in chosen
        ):
            continue
        target_tokens = encode(target)
        if len(target_tokens) != 1 or encode(context) + target_tokens != encode(context + target):
            continue
        chosen.append(item)
        if len(chosen) == per_file:
            break
    return chosen


def cloze_items(documents: list[dict], encode: Callable[[str], list[int]], count: int, per_file: int) -> list[dict]:
    """At most `count` items of the documents: {"id", "context", "target"}."""
    items = [item for document in documents for item in document_items(document, encode, per_file)]
    items.sort(key=lambda item: sha256(item["id"]))
    return [{key: item[key] for key in ("id", "context", "target")} for item in items[:count]]


def write_jsonl(rows: list[dict], name: str) -> dict:
    """Writes one JSON object a line under the assets; returns the file's row of the manifest."""
    path = ASSETS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text_atomically(path, text)
    data = text.encode()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": len(rows)}


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "mamba-tiny")

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    slices = {name: text_slice(split) for name, split in SPLITS.items()}
    files = {f"text/stdlib-{name}.jsonl": rows for name, rows in slices.items()}
    files["tasks/stdlib_cloze/test.jsonl"] = cloze_items(slices["test"], encode, count=500, per_file=12)
    files["tasks/stdlib_cloze/fewshot.jsonl"] = cloze_items(slices["calibration"], encode, count=64, per_file=1)
    manifest = {
        "source": f"CPython {platform.python_version()} standard library, PSF licence (text/LICENSE-PSF.txt)",
        "built_by": "tools/build_assets.py",
        "files": {name: write_jsonl(rows, name) for name, rows in files.items()},
    }
    write_text_atomically(ASSETS / "MANIFEST.json", json.dumps(manifest, indent=2) + "\n")
    shutil.copyfile(STDLIB / "LICENSE.txt", ASSETS / "text" / "LICENSE-PSF.txt")
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
