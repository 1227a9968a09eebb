"""Figures as files."""

import pytest
from matplotlib.figure import Figure

from quamba.errors import QuambaError
from quamba.study.saving import check_figure_path, save_figure


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(3, 2), dpi=100)
    figure.subplots().plot([1, 2])
    return figure


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_says_the_format(figure, tmp_path, suffix, start):
    path = tmp_path / "new" / f"figure{suffix}"
    save_figure(figure, path)
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_a_figure_has_its_own_size_in_pixels(figure, tmp_path):
    save_figure(figure, tmp_path / "figure.png")
    header = (tmp_path / "figure.png").read_bytes()
    assert [int.from_bytes(header[at : at + 4]) for at in (16, 20)] == [300, 200]


def test_a_figure_that_fails_leaves_the_older_one(figure, tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_text("older")

    def fail(temporary, **_):
        temporary.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(QuambaError, match=r"cannot write the figure .*figure\.png: no space left"):
        save_figure(figure, path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.json"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(QuambaError, match=rf"{name}: let its name end in one of \.png, \.svg, \.pdf"):
        check_figure_path(tmp_path / name)


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"cannot write .*file"):
        check_figure_path(tmp_path / "file" / "figure.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(QuambaError, match="is a folder: name a file"):
        check_figure_path(tmp_path / "folder.png")
