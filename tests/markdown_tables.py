"""Reads the Markdown tables that commands write, and fails where one is malformed."""

import re


def parse_markdown(text: str) -> tuple[str, list[list[str]]]:
    """(title, rows of cells) of one Markdown table; fails where it is none."""
    title, blank, header, rule, *rows = text.removesuffix("\n").split("\n")
    assert re.fullmatch(r"\*\*.+\*\*", title) and blank == ""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in (header, rule, *rows)]
    assert all(row[0] == row[-1] == "" and len(row) == len(cells[0]) for row in cells), "rows of different lengths"
    assert all(re.fullmatch("-{3,}:?", cell) for cell in cells[1][1:-1])
    return title.strip("*"), [row[1:-1] for row in (cells[0], *cells[2:])]
