"""The interleaved run: at every case each round asks every system once, so that all of them meet the same machine."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from . import rows
from .shapes import Case, Shape
from .systems import System
from .worker import Worker, WorkerError

# before every measurement: a processor that was idle, with other systems' data in its caches, takes a tenth of a second
# to come up to speed, which would count as much as a short prompt
WARM_UP_PROMPT, WARM_UP_STEPS, WARM_UP_S = 32, 2, 0.3
PAUSE_S = 0.05  # between systems: the threads of the last one go to sleep

Advance = Callable[[str], None]


class Workers:
    """The loaded workers of one shape; what fails is dropped and noted, the others go on."""

    def __init__(self, shape: Shape, models: Path, logs: Path, threads: int, note: Callable[[str], None]):
        self.shape, self.models, self.logs, self.threads, self.note = shape, models, logs, threads, note
        self.running: dict[System, Worker] = {}
        self.versions: dict[str, str] = {}

    def start(self, systems: Iterable[System], announce: Advance) -> None:
        """Starts and loads them one after another."""
        for system in systems:
            announce(f"{self.shape.name}: loading {system.name}")
            try:
                worker = Worker(system.name, system.command, self._log(system), self.threads)
                self.running[system] = worker
                self.versions |= worker.greeting["versions"]
                path = str(system.path(self.models, self.shape))
                worker.ask("load", path=path, scheme=system.scheme, threads=self.threads)
            except WorkerError as error:
                self.drop(system, error)

    def _log(self, system: System) -> Path:
        return self.logs / f"{self.shape.name}-{system.system}-{system.scheme}.log"

    def drop(self, system: System, error: WorkerError) -> None:
        """Ends a worker that failed and notes why."""
        self.note(f"{self.shape.name}, {system.name}: no figures from here on: {error}")
        if worker := self.running.pop(system, None):
            worker.close()

    def close(self) -> None:
        """Ends all of them."""
        for worker in self.running.values():
            worker.close()
        self.running.clear()


def expected_rounds(rounds: int, systems: list[System], cases: list[Case], done: set[tuple]) -> int:
    """How many measurements `measure_case` will make in all, warm-ups not counted."""
    return sum(rounds * len(missing(systems, case, done)) for case in cases)


def missing(systems: Iterable[System], case: Case, done: set[tuple]) -> list[System]:
    """The systems that take a case and have no row of it yet."""
    wanted = [system for system in systems if system.takes(case)]
    return [s for s in wanted if (s.system, s.scheme, case.shape, case.batch, case.prompt) not in done]


def measure_case(workers: Workers, case: Case, rounds: int, done: set[tuple], advance: Advance) -> list[dict]:
    """A row for each system that takes the case. Every round starts with another system than the round before."""
    steps = workers.shape.decode_steps
    samples: dict[System, list[dict]] = {system: [] for system in missing(workers.running, case, done)}
    warm_up = {"batch": case.batch, "prompt": min(case.prompt, WARM_UP_PROMPT), "steps": WARM_UP_STEPS}
    for system in list(samples):
        _ask(workers, system, samples, warm_up)
    for system in samples:
        samples[system].clear()
    for number in range(rounds):
        order = list(samples)
        turn = number % max(len(order), 1)
        for system in order[turn:] + order[:turn]:
            time.sleep(PAUSE_S)
            advance(f"{case.shape}, batch {case.batch}, prompt {case.prompt}: {system.name}")
            _warm_up(workers, system, samples, warm_up)
            _ask(workers, system, samples, {"batch": case.batch, "prompt": case.prompt, "steps": steps})
    return [
        rows.case_row(
            system.system, system.scheme, case, taken, steps, workers.running[system].greeting["resident_bytes"]
        )
        for system, taken in samples.items()
        if len(taken) == rounds
    ]


def _warm_up(workers: Workers, system: System, samples: dict[System, list[dict]], request: dict) -> None:
    end = time.perf_counter() + WARM_UP_S
    discarded = {**samples, system: []} if system in samples else {}
    while system in discarded and system in workers.running and time.perf_counter() < end:
        _ask(workers, system, discarded, request)


def _ask(workers: Workers, system: System, samples: dict[System, list[dict]], request: dict) -> None:
    if system not in workers.running:
        return
    try:
        samples[system].append(workers.running[system].ask("measure", **request))
    except WorkerError as error:
        samples.pop(system)
        workers.drop(system, error)
