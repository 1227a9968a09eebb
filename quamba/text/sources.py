"""Where texts come from: data sets of the hub, folders that stand in for the hub, files; and how WikiText is cut up.

A text is rows at first, as the hub keeps it. Rows of WikiText are the lines of one running text: `running_text`,
`plain_text` and `split_articles` make documents of them. Rows of every other text are documents already.
Dims: none, a text is strings here.
"""

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import QuambaError
from .files import ROW_SUFFIXES, read_rows_file, read_text

logger = logging.getLogger(__name__)

EMBEDDED_TEXT = "stdlib"
WIKITEXT, PLAIN_WIKITEXT = "wikitext2", "wikitext2-simple"


@dataclass(frozen=True)
class HubText:
    """Say where the hub keeps a text: the arguments of `datasets.load_dataset`, and which of its rows are taken."""

    path: str
    split: str
    name: str | None = None
    data_files: str | None = None
    field: str = "text"
    rows: int | None = None  # only the first rows: enough text, without reading a whole crawl


_WIKITEXT = {
    "calibration": HubText("Salesforce/wikitext", "train", name="wikitext-2-raw-v1"),
    "test": HubText("Salesforce/wikitext", "test", name="wikitext-2-raw-v1"),
}
# One table of names for every option that takes a text. Calibration never reads a test split.
HUB_TEXTS = {
    WIKITEXT: _WIKITEXT,
    PLAIN_WIKITEXT: _WIKITEXT,
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

LINE_FILES = ("{part}.txt", "wiki.{part}.raw", "wiki.{part}.tokens", "wiki.{part}.txt")
UNNAMED = ""  # the part of a file whose name tells none


@dataclass(frozen=True)
class FolderText:
    """Which files of a `data_dir` hold a text: those in its folders of the text's own names come first."""

    folders: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]  # split -> the parts that serve it, the most wanted first
    lines: bool = False  # plain text whose lines are the rows, in one file; else rows, in any number of files

    def files(self, place: Path, part: str) -> list[Path]:
        """The files of one folder that are this part of the text."""
        if not place.is_dir():
            return []
        if self.lines:
            names = [name.format(part=word) for word in PART_NAMES[part] for name in LINE_FILES]
            return [place / name for name in names if (place / name).is_file()][:1]  # other forms of the same text
        return [file for file in sorted(place.iterdir()) if self._holds_rows(file) and file_part(file) == part]

    def _holds_rows(self, file: Path) -> bool:
        others = {name for name, text in FOLDER_TEXTS.items() if text is not self}
        foreign = others & set(re.split(r"[^a-z0-9]+", file.name.lower()))
        return file.name.endswith(ROW_SUFFIXES) and file.is_file() and not foreign

    def looked_for(self, split: str) -> str:
        """Return, for messages, the usual ones of the names that `files` takes."""
        if not self.lines:
            parts = " or ".join(part or "no part of a data set" for part in self.parts[split])
            return f"files *{', *'.join(ROW_SUFFIXES)} whose name tells {parts}"
        return ", ".join(name.format(part=part) for part in self.parts[split] for name in LINE_FILES)


PART_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}
_WIKITEXT_FOLDER = FolderText(
    ("wikitext2", "wikitext-2", "wikitext-2-raw"), {"calibration": ("train", "valid"), "test": ("test",)}, lines=True
)
FOLDER_TEXTS = {
    WIKITEXT: _WIKITEXT_FOLDER,
    PLAIN_WIKITEXT: _WIKITEXT_FOLDER,
    # what the hub gives for a test of c4 is its validation file: calibration leaves that alone
    "c4": FolderText(("c4", "c4/en", "en"), {"calibration": ("train", UNNAMED), "test": ("valid", "test")}),
    "pile": FolderText(("pile",), {"calibration": ("train", UNNAMED, "valid"), "test": ("test",)}),
}


def text_sha256(documents: Sequence[str]) -> str:
    """SHA-256 of documents, for logs and caches: equal exactly when the documents are."""
    digest = hashlib.sha256()
    for document in documents:
        data = document.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def read_rows(name: str, split: str, data_dir: str | Path | None = None) -> list[str]:
    """The rows of a named text: from `data_dir` where one is given, else from the hub. Raises QuambaError.

    Both give the same rows for the same data: lines of WikiText end in a newline, blank ones are empty.
    """
    source = HUB_TEXTS[name][split]
    if data_dir is None:
        return _read_hub(name, source)
    files = find_data_files(name, split, data_dir)
    logger.info("%s: reading %s", name, ", ".join(map(str, files)))
    if FOLDER_TEXTS[name].lines:
        lines = read_text(files[0]).removesuffix("\n").split("\n")
        return [f"{line}\n" if line.strip() else "" for line in lines]
    rows: list[str] = []
    for file in files:
        rows += read_rows_file(file, None if source.rows is None else source.rows - len(rows))
        if len(rows) == source.rows:
            logger.info("%s: using the first %d rows", name, source.rows)
            break
    return rows


def _read_hub(name: str, source: HubText) -> list[str]:
    import datasets  # slow to import, and only these texts need it

    try:
        rows = datasets.load_dataset(source.path, source.name, data_files=source.data_files, split=source.split)
    except (OSError, ValueError, ImportError, datasets.exceptions.DatasetsError) as error:
        with_folder = "a folder that holds it (--data_dir), " if name in FOLDER_TEXTS else ""
        raise QuambaError(
            f"cannot load the text {name!r}: tried split {source.split!r} of {source.path} on the Hugging Face hub and "
            f"in the local cache ({type(error).__name__}: {error}). Without the hub give {with_folder}a local file "
            f"(.txt or .jsonl) instead of the name, or {EMBEDDED_TEXT!r}, which is embedded"
        ) from error
    if source.rows is not None and source.rows < len(rows):
        logger.info("%s: using the first %d of %d rows", name, source.rows, len(rows))
        rows = rows.select(range(source.rows))
    return list(rows[source.field])


def file_part(file: Path) -> str:
    """Which part of a data set a file's name tells: train, valid, test, or `UNNAMED`. Where in doubt it is test."""
    words = re.split(r"[^a-z]+", file.name.lower())
    if any(word.startswith("test") for word in words):
        return "test"
    return next((part for part in ("valid", "train") if set(words) & set(PART_NAMES[part])), UNNAMED)


def data_dir_for(data_dir: str | Path | None, *texts: str | Path) -> str | Path | None:
    """Return what applies to these texts: `data_dir` where a folder can stand in for one of them, else None.

    None is for texts that are not in `FOLDER_TEXTS`: stdlib, files and what only the hub has are read as ever.
    """
    return data_dir if any(text in FOLDER_TEXTS for text in texts) else None


def check_data_dir(data_dir: str | Path | None, *texts: str | Path) -> None:
    """Raises QuambaError where there is a `data_dir` that can stand in for none of the texts of a run."""
    if data_dir is None or data_dir_for(data_dir, *texts) is not None:
        return
    if not texts:
        raise QuambaError(f"--data_dir {data_dir} does nothing in a run that reads no text: drop it")
    named = [repr(str(text)) for text in dict.fromkeys(texts)]
    raise QuambaError(
        f"--data_dir {data_dir} can stand in for {', '.join(FOLDER_TEXTS)} only, not for the text"
        f"{'s' if len(named) > 1 else ''} {', '.join(named)}: drop it, or name one of those"
    )


def find_data_files(name: str, split: str, data_dir: str | Path) -> list[Path]:
    """The files that hold a split of a named text: `data_dir` itself, or files in it, or in its folder of that name.

    WikiText is one file, `train.txt`, `wiki.train.raw` or the like; calibration takes train, else valid, never test.
    c4 and pile are JSON or Parquet rows in files of `ROW_SUFFIXES`; what their names tell decides the split.
    Raises QuambaError for a text that no folder can stand in for, and where nothing is found.
    """
    check_data_dir(data_dir, name)
    source, path = FOLDER_TEXTS[name], Path(data_dir).expanduser()
    if path.is_file():
        _check_single_file(name, split, path)
        return [path]
    if not path.is_dir():
        raise QuambaError(f"--data_dir {data_dir} does not exist: name a folder or a file that holds {name}")
    for place in (*(path / folder for folder in source.folders), path):
        for part in source.parts[split]:
            if files := source.files(place, part):
                return files
    found = sorted(entry.name for entry in path.iterdir())
    listed = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
    raise QuambaError(
        f"--data_dir {data_dir} has no {split} split of {name}: looked in it and in its folders "
        f"{', '.join(source.folders)} for {source.looked_for(split)}; it holds {listed or 'nothing'}"
    )


def _check_single_file(name: str, split: str, file: Path) -> None:
    source, part = FOLDER_TEXTS[name], file_part(file)
    if not source.lines and not file.name.endswith(ROW_SUFFIXES):
        raise QuambaError(
            f"--data_dir {file} is no file of rows ({', '.join(ROW_SUFFIXES)}), in which {name} is kept: name "
            "the file in place of the text instead"
        )
    if part and part not in source.parts[split]:
        raise QuambaError(
            f"--data_dir {file} is named as the {part} part of {name}, which its {split} split never reads: give "
            f"{' or '.join(filter(None, source.parts[split]))}, or name the file in place of the text"
        )


_TITLE = re.compile(r"= (?!= ).*(?<! =) =")  # "= Title =", and not the "= = Section = =" of a lower level


def running_text(rows: Sequence[str]) -> str:
    """WikiText as perplexity is measured on it by convention: its rows with a blank line between them."""
    return "\n\n".join(rows)


def plain_text(rows: Sequence[str]) -> str:
    """WikiText as nothing but its lines that are not blank, each with the spaces it has."""
    return "\n".join(row.removesuffix("\n") for row in rows if row.strip())


def split_articles(rows: Sequence[str]) -> list[str]:
    """The articles of WikiText, which joined again by blank lines are `running_text`.

    A row like " = Title = " behind a blank one begins an article; sub-headings " = = Section = = " do not, nor do lines
    of a formula within a paragraph. Text before the first title is a document too.
    """
    articles: list[list[str]] = [[]]
    for row in rows:
        current = articles[-1]
        behind_blank = not current or not current[-1].strip()
        if behind_blank and _TITLE.fullmatch(row.strip()) and any(line.strip() for line in current):
            articles.append([])
        articles[-1].append(row)
    return [running_text(article) for article in articles]
