"""The borders to code that is not ours: what it raises becomes one QuambaError that names what it was given.

A list of expected exceptions is never whole: transformers' config classes, safetensors, tokenizers and torch's
unpickler fail with whatever they stumble over. So everything is caught, but only around the foreign call itself.
"""

import traceback
from types import TracebackType

from .errors import QuambaError

PACKAGE = __package__
LIMIT = 300
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
# how torch says on the CPU that memory is short, in a plain RuntimeError
ALLOCATOR = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


class foreign:
    """Context manager around a call to code that is not ours: an exception becomes a QuambaError.

    The error reads `WHAT: ExceptionType: its text; ADVICE`, on one line of bounded length. `what` names the file, or
    the value, that the call reads; `advice` says what to do. These pass unchanged: a QuambaError, an interruption, a
    lack of memory (`is_memory_shortage`), and what was raised in a function of this package that the block, or the
    foreign code, called (`is_internal`): that is a fault of ours, never the user's. So a block holds the foreign call
    alone, not our functions around it.
    """

    def __init__(self, what: str, advice: str | None = None):
        self.what, self.advice = what, advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception) or isinstance(error, QuambaError):
            return
        if is_memory_shortage(error) or is_internal(trace):
            return
        raise QuambaError(f"{self.what}: {describe(error)}" + (f"; {self.advice}" if self.advice else "")) from error


def is_memory_shortage(error: BaseException) -> bool:
    """Return whether an exception says that memory is short: Python's, torch's on a GPU, torch's allocator on the
    CPU."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(text in str(error) for text in ALLOCATOR)


def is_internal(trace: TracebackType | None) -> bool:
    """Return whether a traceback ends in this package, in another function than the one it begins with."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    while len(frames) > 1 and frames[-1].f_code.co_name in COMPREHENSIONS:  # part of the function around it
        frames.pop()
    return len(frames) > 1 and frames[-1].f_globals.get("__name__", "").split(".")[0] == PACKAGE


def describe(error: BaseException) -> str:
    """Return the type of an exception and its text, on one line."""
    text = one_line(error)
    name = type(error).__name__
    return text if text == name else f"{name}: {text}"


def described_with_line(error: BaseException) -> str:
    """Return `describe`, and the file and line that raised the exception: of code that the user can look into."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{describe(error)} ({frame.filename}, line {frame.lineno})"


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LIMIT else text[: LIMIT - 3] + "..."
