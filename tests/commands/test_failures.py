"""What ends a command: one line that says whose mistake it was, and an exit status of its own."""

import errno
import io
import os
import subprocess
import sys

import pytest
import torch

import quamba
from quamba.commands.console import Console
from quamba.commands.failures import INTERNAL, INTERRUPTED, MISTAKE, Failures, exit_status
from quamba.commands.quantize import measuring
from quamba.errors import QuambaError


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (QuambaError("no such model"), MISTAKE, "prog: error: no such model"),
        (KeyboardInterrupt(), INTERRUPTED, "prog: interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), MISTAKE, "cannot use /x/y: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), MISTAKE, "error: No space left on device"),
        (MemoryError(), MISTAKE, "error: out of memory (MemoryError): give a smaller --batch_size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            MISTAKE,
            "error: out of memory (RuntimeError: [enforce",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), MISTAKE, "error: out of memory (OutOfMemoryError: CUDA"),
        (KeyError("layers"), INTERNAL, "internal error: KeyError: 'layers' ("),
        (RuntimeError("mat1 and mat2\nshapes"), INTERNAL, "internal error: RuntimeError: mat1 and mat2 shapes ("),
        (OSError("who knows"), INTERNAL, "internal error: OSError: who knows"),
        (ValueError("not ours"), INTERNAL, "This is a bug of quamba, not a mistake of yours"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_failure_is_one_line_and_a_status(error, status, text, capsys):
    assert exit_status("prog", raising(error)) == status
    said = capsys.readouterr().err
    assert text in said
    assert said.startswith("prog: ")
    assert said.count("\n") == 1


def test_the_traceback_comes_before_the_line_where_it_is_asked_for(capsys):
    assert exit_status("prog", raising(KeyError("layers")), verbose=True) == INTERNAL
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("prog: internal error: KeyError: 'layers'")


def test_an_internal_error_names_the_module_and_what_is_below_it(capsys):
    exit_status("prog", lambda: quamba.hadamard.hadamard_matrix(None))
    assert "(quamba/hadamard.py:" in capsys.readouterr().err
    exit_status("prog", lambda: quamba.numerics.quantize(torch.ones(2), "scale"))
    assert "(quamba/numerics.py:" in capsys.readouterr().err


PLUGIN = """
import quamba
from quamba.observers.per_tensor import PerTensorMinmaxObserver

@quamba.register_observer("{name}")
class Mine(PerTensorMinmaxObserver):
    def _update(self, x):
        raise KeyError("mine")
"""


def test_what_a_plugin_raises_is_the_plugins_with_its_line(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN.format(name="raises_when_updated"))
    quamba.load_plugin(file)
    observer = quamba.observers.per_tensor.create_observer("raises_when_updated")
    assert exit_status("prog", lambda: observer.update(torch.ones(2))) == MISTAKE
    assert capsys.readouterr().err == f"prog: error: plug-in '{file}', line 8: KeyError: 'mine'\n"


def test_failures_are_said_together_when_all_is_done():
    failures, done = Failures(), []
    for error in (QuambaError("cannot write a"), OSError(errno.ENOSPC, "No space left", "b"), None):
        with failures.collected():
            if error:
                raise error
            done.append("c")
    assert done == ["c"]
    with pytest.raises(QuambaError, match=r"^cannot write a\n  cannot use b: No space left$"):
        failures.raise_any()
    Failures().raise_any()


@pytest.mark.parametrize("error", [KeyError("bug"), OSError("bug"), KeyboardInterrupt()])
def test_a_bug_is_not_collected_as_a_failed_output(error):
    with pytest.raises(type(error)), Failures().collected():
        raise error


def test_text_that_the_output_cannot_encode_is_escaped(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    assert exit_status("prog", lambda: sys.stdout.write("gr\u00f6\u00dfe \udcff")) == 0
    output.flush()
    assert output.buffer.getvalue() == b"gr\\xf6\\xdfe \\udcff"


def test_a_reader_that_leaves_early_is_no_failure():
    code = "import sys; from quamba.commands.failures import exit_status\n"
    code += "sys.exit(exit_status('prog', lambda: [sys.stdout.write('x' * 100000) for _ in range(100)]))"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


class ClosedPipe(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_ends_nothing_that_is_left_to_do(monkeypatch):
    """rich's own console would end the program."""
    dropped, failures = [], Failures()
    monkeypatch.setattr("quamba.commands.failures.drop_standard_output", lambda: dropped.append("failures"))
    monkeypatch.setattr(measuring, "drop_standard_output", lambda: dropped.append("main"))
    monkeypatch.setattr(measuring, "console", Console(file=ClosedPipe()))
    measuring.say("a line")
    with failures.collected():
        Console(file=ClosedPipe()).print("a line")
    failures.raise_any()
    assert dropped == ["main", "failures"]
