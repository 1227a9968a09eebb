"""Documents from files: plain text, JSON rows, Parquet, folders of such, and what `datasets` saved to disk.

A row's document is in its column `text` or `content`, in the turns of a conversation, or in the only column of strings
that it has.
Dims: none, a text is strings here.
"""

import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TextIO

from ..borders import foreign
from ..errors import QuambaError

logger = logging.getLogger(__name__)

ENCODING = "utf-8-sig"  # UTF-8, with the mark that some editors put first or without it
PACKED = ("", ".gz", ".zst")
TEXT_SUFFIXES = tuple(f".txt{packed}" for packed in PACKED)
JSON_SUFFIXES = tuple(f"{kind}{packed}" for kind in (".json", ".jsonl") for packed in PACKED)
PARQUET = ".parquet"
ROW_SUFFIXES = (*JSON_SUFFIXES, PARQUET)
TEXT_COLUMNS = ("text", "content")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
TURN_FIELDS = ("content", "value")  # of a turn in a conversation
SAVED_SET, SAVED_SETS = "state.json", "dataset_dict.json"  # of `Dataset.save_to_disk` and `DatasetDict.save_to_disk`
SPLIT_NAMES = {"calibration": ("train", "validation", "valid", "val"), "test": ("test", "validation", "valid", "val")}


def read_local(path: Path, split: str = "calibration") -> list[str]:
    """The documents of a file or folder of the user's own, see `data.load_text`; `split`: of a saved DatasetDict.

    Raises QuambaError naming the file, and the row, where there is no text in it.
    """
    if path.is_dir():
        return _read_folder(path, split)
    if not path.is_file():
        raise QuambaError(f"{path} is neither a file nor a folder of text: a device or a pipe cannot be read twice")
    return read_rows_file(path) if path.name.endswith(ROW_SUFFIXES) else [read_text(path)]


def _read_folder(path: Path, split: str) -> list[str]:
    if (path / SAVED_SET).is_file() or (path / SAVED_SETS).is_file():
        return _read_saved_set(path, split)
    with foreign(f"cannot read the folder {path}"):
        files = sorted(file for file in path.iterdir() if file.name.endswith((*TEXT_SUFFIXES, *ROW_SUFFIXES)))
    if not files:
        raise QuambaError(
            f"the folder {path} has no .txt and no .jsonl file to read text from, no {PARQUET}, nor what save_to_disk "
            "writes"
        )
    return [document for file in files for document in read_local(file)]


def read_text(path: Path) -> str:
    """A file as UTF-8 text; `.gz` and `.zst` are unpacked. Raises QuambaError where it is none or cannot be read."""
    try:
        with _open_text(path) as file:
            text = file.read()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, *_zstd_errors(path)) as error:
        raise QuambaError(f"cannot read {path} as UTF-8 text: {error}") from error
    if "\0" in text:
        raise QuambaError(f"cannot read {path} as UTF-8 text: it holds NUL bytes, as files of other kinds do")
    return text


def read_rows_file(path: Path, limit: int | None = None) -> list[str]:
    """The documents of the first `limit` rows of a file of JSON or Parquet rows; `.gz` and `.zst` are unpacked.

    JSON: an object a line, or one list of objects. Nothing behind the last of those rows is read. Raises QuambaError
    where the file is not such a one, with the row.
    """
    rows = _parquet_rows(path) if path.name.endswith(PARQUET) else _json_rows(path)
    try:
        return [document_of(row, place) for place, row in islice(rows, limit)]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, *_zstd_errors(path)) as error:
        raise QuambaError(f"cannot read {path} as UTF-8 text: {error}") from error


def document_of(row: object, place: str) -> str:
    """The document of a row, a mapping of columns. Raises QuambaError, beginning with `place`, where it has none."""
    if not isinstance(row, Mapping):
        raise QuambaError(f'{place}: expected a JSON object with a string in its field "text"')
    for column in TEXT_COLUMNS:
        if isinstance(row.get(column), str):
            return _checked(row[column], place)
    for column in CHAT_COLUMNS:
        if isinstance(row.get(column), list):
            return _checked(_conversation(row[column], f"{place}, {column}"), place)
    strings = [column for column, value in row.items() if isinstance(value, str)]
    if len(strings) == 1 and not set(TEXT_COLUMNS) & set(row):
        return _checked(row[strings[0]], place)
    raise QuambaError(
        f'{place}: expected a JSON object with a string in its field "text", "content" or, as a list of turns, '
        f"{' or '.join(map(repr, CHAT_COLUMNS[:2]))}; it has {', '.join(map(repr, list(row)[:10])) or 'no fields'}"
    )


def _conversation(turns: list, place: str) -> str:
    """Return what was said, a paragraph a turn; who said it is left out: every model has its own marks for that."""
    texts = []
    for number, turn in enumerate(turns):
        fields = turn if isinstance(turn, Mapping) else {}
        content = next((fields[name] for name in TURN_FIELDS if fields.get(name) is not None), None)
        if isinstance(content, list):  # parts, some of which may be images
            content = "\n".join(part["text"] for part in content if isinstance(part, Mapping) and "text" in part)
        if not isinstance(content, str):
            raise QuambaError(f"{place}, turn {number}: expected an object with a string in its field 'content'")
        texts.append(content)
    return "\n\n".join(texts)


def _checked(document: str, place: str) -> str:
    try:
        document.encode()
    except UnicodeEncodeError as error:
        half = document[error.start]
        raise QuambaError(f"{place}: {half!r} is half a character, which no text has: write the file anew") from error
    return document


def _json_rows(path: Path) -> Iterator[tuple[str, object]]:
    with _open_text(path) as file:
        lines = enumerate(file, start=1)
        for number, line in lines:
            if not line.strip():
                continue
            if number == 1 and ".jsonl" not in path.suffixes and line.startswith("["):  # one list, on one line or many
                with foreign(f"{path} is no list of JSON objects"):
                    rows = json.loads(line + "".join(rest for _, rest in lines))
                yield from ((f"{path}, entry {index}", row) for index, row in enumerate(rows))
                return
            yield f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(line: str, place: str) -> object:
    with foreign(f'{place}: expected a JSON object with a string in its field "text"'):
        return json.loads(line)


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    with foreign(f"cannot read {path}", "it needs the Python package pyarrow"):
        import pyarrow.parquet  # slow to import, and only such files need it
    number = 0
    with foreign(f"cannot read {path} as Parquet"), pyarrow.parquet.ParquetFile(path) as file:
        batches = file.iter_batches()
        while (batch := next(batches, None)) is not None:
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1


def _read_saved_set(path: Path, split: str) -> list[str]:
    with foreign(f"cannot read {path}, which save_to_disk of the package datasets wrote"):
        import datasets  # slow to import, and only such folders need it

        saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        name = next((name for name in SPLIT_NAMES[split] if name in saved), next(iter(saved), None))
        if name is None or (len(saved) > 1 and name not in SPLIT_NAMES[split]):
            raise QuambaError(f"{path} has no split for {split}: it has {', '.join(map(repr, saved)) or 'none'}")
        logger.info("%s: reading its split %s", path, name)
        saved = saved[name]
    return _documents_of_set(saved, str(path))


def _documents_of_set(saved: Iterable, place: str) -> list[str]:
    rows = enumerate(saved)
    documents = []
    while True:
        with foreign(f"cannot read {place}, which save_to_disk of the package datasets wrote"):
            number, row = next(rows, (None, None))
        if number is None:
            return documents
        documents.append(document_of(row, f"{place}, row {number}"))


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=ENCODING)
    if path.suffix == ".zst":  # several frames in a row, and large windows, are usual in dumps of crawls
        import zstandard

        unpacked = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
            path.open("rb"), read_across_frames=True
        )
        return io.TextIOWrapper(unpacked, encoding=ENCODING)
    return path.open(encoding=ENCODING)


def _zstd_errors(path: Path) -> tuple[type[Exception], ...]:
    """Return what unpacking the file may raise beside the errors of files."""
    if path.suffix != ".zst":
        return ()
    import zstandard

    return (zstandard.ZstdError,)
