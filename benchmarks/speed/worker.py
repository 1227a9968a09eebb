"""The driver's end of a worker process: starts it, asks it, ends it."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOG_LINES = 5
WAITING = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


class WorkerError(RuntimeError):
    """A worker refused, failed or died; the text says which and why."""


class Worker:
    """One process that serves one system; `greeting` holds its versions and what its imports take in memory.

    Its OpenMP threads wait as the system has them by default, whatever the driver's do, or as `variables`, added to its
    environment, say.
    """

    def __init__(self, name: str, command: list[str], log: Path, threads: int, variables: dict[str, str] | None = None):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, log
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        for variable in WAITING:
            environment.pop(variable, None)
        environment |= variables or {}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.greeting = self._receive()

    def ask(self, operation: str, **fields) -> dict:
        """The answer to a request. Raises WorkerError for one that failed."""
        try:
            self.process.stdin.write(json.dumps({"op": operation} | fields) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerError(self._death()) from error
        return self._receive()

    def _receive(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(self._death())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def _death(self) -> str:
        tail = " / ".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        return f"{self.name}: the process ended with code {self.process.wait()}; its last lines: {tail}"

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()
