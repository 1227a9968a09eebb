"""The models that the speed benchmark keeps: what other code has made is made anew."""

from pathlib import Path

import pytest

from benchmarks import made_by
from benchmarks.speed import models
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.systems import BY_NAME

SHAPE = SHAPES["tiny"]
OURS, LLAMA = BY_NAME["quamba:w8a8"], BY_NAME["llama.cpp:Q8_0"]


@pytest.fixture
def made(monkeypatch):
    """The names of what was made, in order; every model is a file that holds a word."""
    names = []

    def run(command: list[str], log: Path) -> None:
        if command[2].endswith("make_gguf"):
            targets = [Path(command[4]) / f"{file_type}.gguf" for file_type in command[5:]]
        else:
            targets = [Path(command[5])]
        for target in targets:
            target.write_text("a model")
            names.append(target.name)

    monkeypatch.setattr(models, "_run", run)
    return names


@pytest.fixture
def sources(monkeypatch):
    """Content of a source file -> its hash, as `made_by` sees it; a test changes one of them."""
    versions: dict[str, int] = {}
    monkeypatch.setattr(
        models, "sources_sha256", lambda *patterns: str([(name, versions.get(name, 0)) for name in patterns])
    )
    return versions


def prepare(folder: Path) -> dict:
    return models.prepare(SHAPE, [OURS, LLAMA], folder, folder / "log", lambda text: None)


def test_models_are_made_once(made, tmp_path):
    assert prepare(tmp_path) == {}
    assert made == ["float", "w8a8", "Q8_0.gguf"]
    prepare(tmp_path)
    assert made == ["float", "w8a8", "Q8_0.gguf"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("benchmarks/speed/gguf_names.py", ["Q8_0.gguf"]),
        ("benchmarks/speed/make_gguf.py", ["Q8_0.gguf"]),
        ("requirements-bench.txt", ["Q8_0.gguf"]),
        ("quamba/**/*.py", ["w8a8"]),
        ("csrc/cpu/*", ["w8a8"]),
        ("benchmarks/speed/make_model.py", ["float", "w8a8", "Q8_0.gguf"]),
        ("requirements.txt", ["float", "w8a8", "Q8_0.gguf"]),
    ],
)
def test_code_that_has_changed_makes_them_anew(made, sources, tmp_path, changed, again):
    prepare(tmp_path)
    made.clear()
    sources[changed] = 1
    prepare(tmp_path)
    assert made == again


def test_a_file_without_a_record_is_never_used(made, tmp_path):
    """Those of before there were records, and those of a run that was killed; the float32 GGUF among them."""
    prepare(tmp_path)
    folder = tmp_path / SHAPE.name
    for name in ("F32.gguf", "partial.gguf"):
        (folder / name).write_text("of an earlier release")
    (folder / "notes.txt").write_text("the user's")
    (folder / "w8a8.made-by").unlink()
    made.clear()
    prepare(tmp_path)
    assert made == ["w8a8"]
    assert not (folder / "F32.gguf").exists() and not (folder / "partial.gguf").exists()
    assert (folder / "notes.txt").exists()


def test_what_was_not_written_is_named_and_has_no_record(made, tmp_path, monkeypatch):
    def fail(command: list[str], log: Path) -> None:
        if command[2].endswith("make_gguf"):
            raise models.WorkerError("llama.cpp refused")
        Path(command[5]).write_text("a model")

    monkeypatch.setattr(models, "_run", fail)
    assert prepare(tmp_path) == {LLAMA: "llama.cpp refused"}
    assert models.is_current(OURS.path(tmp_path, SHAPE)) and not models.is_current(LLAMA.path(tmp_path, SHAPE))


def test_the_hash_is_of_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(made_by, "ROOT", tmp_path)
    hashed = made_by.sources_sha256.__wrapped__
    (tmp_path / "a.py").write_text("1")
    first = hashed("*.py")
    (tmp_path / "a.py").write_text("2")
    second = hashed("*.py")
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, hashed("*.py")}) == 3
    with pytest.raises(ValueError, match=r"nothing\.txt matches no file"):
        hashed("nothing.txt")


@pytest.mark.parametrize("system", [OURS, LLAMA])
def test_every_pattern_of_the_hash_matches_a_file(system, tmp_path):
    assert len(models.made_by(system.path(tmp_path, SHAPE))) == 64
