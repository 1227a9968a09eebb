"""Results are written whole or not at all: found in the syntax tree of everything that writes some."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("quamba", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py"))
WRITERS = {"write_text", "write_bytes", "save_file", "savefig", "dump", "to_csv", "save_pretrained", "copyfile"}
# file -> why what it writes in place is no result, or is made whole by another
EXCEPTIONS = {
    "quamba/storage/files.py": "the temporary file that is renamed",
    "quamba/calibration/recording.py": "within replace_atomically",
    "quamba/pipeline/resume.py": "within replace_atomically",
    "quamba/text/token_cache.py": "within replace_atomically",
    "quamba/study/saving.py": "within replace_atomically",
    "quamba/models/memory.py": "/proc",
    "benchmarks/speed/process_memory.py": "/proc",
    "quamba/checkpoint/dequantized.py": "within replace_folder",
    "quamba/checkpoint/quantized.py": "within replace_folder",
    "quamba/checkpoint/savable.py": "within replace_folder",
    "benchmarks/speed/make_model.py": "a folder that counts once its record is written",
    "benchmarks/speed/floors.py": "the standard output",
    "benchmarks/speed/models.py": "a log that grows",
    "benchmarks/speed/worker.py": "a log that grows",
    "tools/build_assets.py": "the copy of a licence",
    "tools/build_cuda.py": "logs of a build, before the package can be imported",
    "tools/sanitize.py": "a log that grows",
}


def writes(path: Path) -> list[int]:
    """The lines of a file that write one in place."""
    lines = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        opens = name == "open" and any(set(text) & set("wax+") and set(text) <= set("rwaxbt+") for text in texts)
        library = ast.unparse(node.func) in ("torch.save", "np.save", "np.savez", "numpy.save")
        if name in WRITERS or opens or library:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_written_in_place(path):
    if str(path.relative_to(ROOT)) not in EXCEPTIONS:
        assert not writes(path), "use quamba.storage.files.write_text_atomically or replace_atomically"


def test_every_exception_still_writes():
    assert [name for name in EXCEPTIONS if not writes(ROOT / name)] == []
