"""Figures as files: whole or absent."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import QuambaError
from ..storage.files import replace_atomically, require_writable_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


def check_figure_path(path: str | Path) -> None:
    """Raises QuambaError where `save_figure` could not write: another suffix, a folder, a place without permission."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise QuambaError(f"a figure cannot be saved as {path}: let its name end in one of {', '.join(SUFFIXES)}")
    require_writable_file(path)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a figure in its own size, as the suffix says. Raises QuambaError as `check_figure_path` does."""
    path = Path(path)
    check_figure_path(path)
    try:
        with replace_atomically(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi="figure")
    except OSError as error:
        raise QuambaError(f"cannot write the figure {path}: {error}") from error
