"""What a command says when something goes wrong: one line that tells whose mistake it is, and the exit status."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..borders import describe, is_memory_shortage
from ..errors import QuambaError
from ..plugins import plugin_file

OK, MISTAKE, INTERNAL, INTERRUPTED = 0, 2, 70, 130  # 70: EX_SOFTWARE of sysexits.h; 130: 128 + SIGINT
PACKAGE = Path(__file__).parents[1]
OWN_FILES = (PACKAGE, PACKAGE.parent / "main.py", PACKAGE.parent / "utils.py")
# errors of the system that name no file, and are nobody's bug
SYSTEM_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
}
MEMORY_ADVICE = "give a smaller --batch_size or shorter sequences, or run it on a machine with more memory"


def exit_status(program: str, run: Callable[[], None], verbose: bool = False) -> int:
    """Runs a command and returns its exit status; a failure is one line on the standard error, never a traceback.

    0; 2 for what the user can mend; 70 for a bug of this package, said as one; 130 when interrupted. `verbose`: the
    traceback comes before the line.
    """
    set_up_streams()
    try:
        run()
        return OK
    except KeyboardInterrupt:
        _say(f"{program}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        drop_standard_output()
        return OK
    except (Exception, SystemExit) as error:
        if verbose:
            traceback.print_exc()
        status, text = explain(error)
        _say(f"{program}: {text}")
        return status


def explain(error: BaseException) -> tuple[int, str]:
    """(exit status, text) of what ended a command: a mistake of the user, of a plug-in, of the system, or of ours."""
    if isinstance(error, QuambaError):
        return MISTAKE, f"error: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if plugin := plugin_file(frame.filename):
            return MISTAKE, f"error: plug-in {str(plugin)!r}, line {frame.lineno}: {describe(error)}"
    if is_memory_shortage(error):
        return MISTAKE, f"error: out of memory ({describe(error)}): {MEMORY_ADVICE}"
    if isinstance(error, OSError):
        if error.filename is not None and error.strerror is not None:
            return MISTAKE, f"error: cannot use {_text(error.filename)}: {error.strerror}"
        if error.errno in SYSTEM_ERRORS:
            return MISTAKE, f"error: {error.strerror}"
    return INTERNAL, (
        f"internal error: {describe(error)}{_place(frames)}. This is a bug of quamba, not a mistake of yours: "
        "run it again with --verbose, and report the traceback"
    )


class Failures:
    """Outputs that could not be written while others could: collected, and said together once all are done."""

    def __init__(self):
        self.texts: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keeps what goes wrong in the block, where it is no bug, for `raise_any`; the command goes on."""
        try:
            yield
        except BrokenPipeError:  # nobody reads the standard output any more: the other outputs go on
            drop_standard_output()
        except (QuambaError, OSError) as error:
            status, text = explain(error)
            if status != MISTAKE:
                raise
            self.texts.append(text.removeprefix("error: "))

    def raise_any(self) -> None:
        """Raises QuambaError with every failure, a line each, where there were some."""
        if self.texts:
            raise QuambaError("\n  ".join(self.texts))


def set_up_streams() -> None:
    """Lets the standard output take any text: what its encoding lacks becomes an escape, not an error."""
    if hasattr(sys.stdout, "reconfigure"):  # not a stand-in of a test or a notebook
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_standard_output() -> None:
    """Send what is still written to the standard output nowhere: nobody reads it any more."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # a stand-in without one
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _place(frames: traceback.StackSummary) -> str:
    """Return where an exception comes from: the innermost frame of this package, and of a library below it."""
    own = [frame for frame in frames if _is_own(frame.filename)]
    named = [*own[-1:], *(frames[-1:] if frames and frames[-1] not in own[-1:] else [])]
    places = [f"{_short(frame.filename)}:{frame.lineno} in {frame.name}" for frame in named]
    return f" ({', below it '.join(places)})" if places else ""


def _is_own(filename: str) -> bool:
    path = Path(filename)
    return any(path == own or own in path.parents for own in OWN_FILES)


def _short(filename: str) -> str:
    """The path of a module from its package on."""
    path = Path(filename)
    for root in (PACKAGE.parent, *map(Path, sys.path)):
        if root.is_absolute() and root in path.parents:
            return str(path.relative_to(root))
    return filename


def _text(filename: object) -> str:
    return os.fsdecode(filename) if isinstance(filename, str | bytes | os.PathLike) else str(filename)


def _say(line: str) -> None:
    text = line.encode("utf-8", "backslashreplace").decode()  # names of files may be no text
    sys.stderr.write(f"{text}\n")


def set_up_logging(verbose: bool) -> None:
    """Warnings to the terminal, everything of this package with --verbose."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("quamba").setLevel(logging.DEBUG if verbose else logging.WARNING)
