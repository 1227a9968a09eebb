"""How OpenMP's threads wait is set before torch loads it, however the package is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quamba.waiting import SPINS

ROOT = Path(__file__).parent.parent
# what libgomp would find in the environment at the moment that torch is imported
FINDER = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
"""
STARTS = {
    "import": "import quamba",
    "module": "import runpy; runpy.run_module('quamba', run_name='__main__')",
    "main": "import runpy; runpy.run_path('main.py', run_name='__main__')",
}


def spins(code: str, **variables) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", FINDER + code]
    return subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("start", STARTS)
def test_it_is_set_before_torch_is_imported(start):
    assert spins(STARTS[start]) == SPINS


def test_what_the_user_chose_stays():
    assert spins("import quamba", GOMP_SPINCOUNT="7") == "7"
    assert spins("import quamba", OMP_WAIT_POLICY="active") == "None"
