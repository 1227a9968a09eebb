"""Processes that use single modules of the package without importing all of it, with torch, which takes seconds."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "quamba"
PRELUDE = f"""import sys, types
package = types.ModuleType("quamba")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["quamba"] = package
"""


def start(code: str, *arguments, **pipes) -> subprocess.Popen:
    """A process that runs `code`, in which `quamba` is a package without the content of its `__init__`."""
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code, *map(str, arguments)], text=True, **pipes)


def run(code: str, *arguments, **pipes) -> subprocess.Popen:
    """The same, ended."""
    with start(code, *arguments, **pipes) as process:
        process.output, process.errors = process.communicate()
    return process
