"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

Builds quamba._C with both into build/sanitize, beside the library that users run, and runs on it the tests of ops, with
the best instruction set of this machine, and random bad calls of every op (tests/ops/bad_calls.py), with all of its
instruction sets. A read or a write out of bounds, a use after free, an overflow or a shift too far ends the process.
Leaks are not looked for: Python's own would hide ours.
"""

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from .build_cuda import ROOT, BuildError, cxx

FOLDER = ROOT / "build/sanitize"
LIBRARY = FOLDER / "quamba" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
RUNTIMES = ("libasan.so", "libstdc++.so")  # the first must be the process's first; it wraps what the second throws
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:strict_init_order=1:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "PYTHONMALLOC": "malloc",
}


def build() -> None:
    """Compiles what has changed since the last time. Raises BuildError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(FOLDER)]
    command += ["--build-temp", str(FOLDER / "objects")]
    only_cpu = {"QUAMBA_SANITIZE": "1", "QUAMBA_CUDA": "0", "QUAMBA_EMULATED": "0"}
    log = FOLDER / "build.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | only_cpu, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise BuildError("\n".join([*log.read_text().splitlines()[-40:], "the build failed"]))


def environment() -> dict[str, str]:
    """What a process needs that runs the instrumented kernels: their path and, loaded first, the sanitizers' runtime.

    Raises BuildError where the compiler has none.
    """
    paths = []
    for name in RUNTIMES:
        found = subprocess.run([*cxx(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(found.stdout.strip())
        if not path.is_absolute():
            raise BuildError(f"{shlex.join(cxx())} has no {name}: install its sanitizers")
        paths.append(str(path.resolve()))
    return os.environ | OPTIONS | {"LD_PRELOAD": ":".join(paths), "QUAMBA_KERNELS": str(LIBRARY)}


def instruction_sets(env: dict[str, str]) -> list[str]:
    """Those of this machine, the best first."""
    code = "import torch; from quamba import ops; print(*torch.ops.quamba.cpu_capabilities())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"the instrumented kernels do not load: {done.stderr.strip()}")
    return done.stdout.split()


def main() -> int:
    """Build, test, call badly; the first status that is not 0."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--calls", type=int, default=6000, help="random bad calls of all ops and instruction sets")
    parser.add_argument("--seed", type=int, default=0, help="of the bad calls")
    parser.add_argument("--jobs", type=int, default=2, help="processes that run tests")
    parser.add_argument("--no-tests", action="store_true", help="the bad calls alone")
    arguments = parser.parse_args()
    try:
        build()
        env = environment()
        _, *lower = instruction_sets(env)
    except BuildError as error:
        sys.exit(f"error: {error}")
    calls = ["-m", "tests.ops.bad_calls", "--calls", str(arguments.calls), "--seed", str(arguments.seed)]
    commands = [[*calls, "--quiet"]]
    if not arguments.no_tests:
        chosen = f"not ({' or '.join(lower)})" if lower else ""
        commands.insert(0, ["-m", "pytest", "-n", str(arguments.jobs), "-k", chosen, "tests/ops"])
    for command in commands:
        print("sanitize:", shlex.join(command), flush=True)
        status = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=False).returncode
        if status:
            return abs(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
