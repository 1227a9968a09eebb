"""The run as a whole: models, floors, the cases of every shape, growth and memory; the output saved after each."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import check as logits_check
from . import floors, machine, memory, models, rounds, rows, table
from .shapes import Case, Shape, cases_of
from .systems import BENCH_PYTHON, System, fitting
from .worker import ROOT, WorkerError

console = Console(stderr=True)
MEMORY_SHARE = 0.85  # of what is available; the rest is for the system
MEMORY_FIGURE = ("w4a8", "370m")
GROWTH_SCHEMES = ("w4a8", "w8a8")  # the first that is among the systems


@dataclass
class Options:
    """What to measure and where; `growth_prompts` are the prompts at batch 1 that only the growth table shows."""

    shapes: list[Shape]
    systems: list[System]
    batches: list[int]
    prompts: list[int]
    rounds: int
    threads: int
    full: bool
    growth_prompts: list[int]
    output: Path
    resume: bool
    models: Path
    rebuild: bool
    notes: list[str] = field(default_factory=list)
    failed: bool = False

    @property
    def logs(self) -> Path:
        """Where the workers' messages go."""
        return self.models.parent / "logs"

    def note(self, text: str, failure: bool = True) -> None:
        """Says at once and again at the end what was not measured; a `failure` is also in the exit status."""
        console.print(f"[yellow]{text}[/yellow]", highlight=False)
        self.notes.append(text)
        self.failed |= failure


class Results:
    """The rows so far, in memory and in the output."""

    def __init__(self, options: Options):
        self.path = options.output
        resumed = options.resume and self.path.exists()
        self.rows = rows.read(self.path) if resumed else []

    @property
    def done(self) -> set[tuple]:
        """The keys of the rows."""
        return {rows.key_of(row) for row in self.rows}

    def add(self, new: list[dict]) -> None:
        """Takes rows in and saves."""
        self.rows = rows.merge(self.rows, new)
        rows.save(self.path, self.rows)


def measure(options: Options) -> bool:
    """Everything that is asked for and fits into memory; whether nothing failed."""
    _require_llama(options.systems)
    commit = machine.commit()  # now: the rows that are saved make the working tree dirty
    _forget_models(options)
    results = Results(options)
    earlier = next((row for row in results.rows if row["system"] == rows.MACHINE), None)
    measured = earlier or _floors(options.threads)
    versions = earlier["versions"] if earlier else {}
    for shape in options.shapes:
        if found := _measure_shape(shape, options, results, measured):
            versions = versions | found
            results.add([machine.machine_row(options.threads, measured, versions, commit)])
    _growth(options, results)
    _memory(options, results)
    for text in options.notes:
        console.print(f"[yellow]not measured: {text}[/yellow]", highlight=False)
    return not options.failed


def _require_llama(systems: list[System]) -> None:
    """Raises OSError where a system of llama.cpp's is among them and llama.cpp is not installed."""
    if any(system.system == "llama.cpp" for system in systems) and not BENCH_PYTHON.exists():
        raise OSError(
            "llama.cpp is not installed: `make .venv-bench/installed` builds it (half an hour), or `make bench`"
        )


def _forget_models(options: Options) -> None:
    if options.rebuild:
        for shape in options.shapes:
            shutil.rmtree(options.models / shape.name, ignore_errors=True)


def _floors(threads: int) -> dict:
    with console.status("floors: reading memory, multiplying matrices"):
        command = [sys.executable, "-m", "benchmarks.speed.floors", str(threads)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise WorkerError(f"the floors could not be measured: {run.stderr.strip().splitlines()[-1]}")
    return json.loads(run.stdout)


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar of `total` steps; what it gives takes one step and says what is being done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(title, total=total)
        bar.refresh()

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield advance


@contextmanager
def _loaded(shape: Shape, systems: list[System], options: Options) -> Iterator[rounds.Workers]:
    """Workers of a shape, their models made first; ended on the way out."""
    with console.status(f"{shape.name}: models") as status:
        log = options.logs / f"{shape.name}-models.log"
        failed = models.prepare(shape, systems, options.models, log, status.update)
        for system, reason in failed.items():
            options.note(f"{shape.name}, {system.name}: {reason}")
        ready = [system for system in systems if system not in failed]
        chosen = fitting(ready, shape, MEMORY_SHARE * machine.available_bytes())
        for system in ready:
            if system not in chosen:
                options.note(f"{shape.name}, {system.name}: does not fit into memory beside the others", failure=False)
        workers = rounds.Workers(shape, options.models, options.logs, options.threads, options.note)
        workers.start(chosen, status.update)
    try:
        yield workers
    finally:
        workers.close()


def _measure_shape(shape: Shape, options: Options, results: Results, measured: dict) -> dict[str, str]:
    """The rows of every case of a shape, saved case by case; returns the versions of what ran."""
    cases = cases_of(shape, options.batches, options.prompts, options.full)
    wanted = [s for s in options.systems if any(rounds.missing([s], case, results.done) for case in cases)]
    if not wanted:
        return {}
    with _loaded(shape, wanted, options) as workers:
        running = list(workers.running)
        total = rounds.expected_rounds(options.rounds, running, cases, results.done)
        with _progress(shape.name, total) as advance:
            for case in cases:
                new = rounds.measure_case(workers, case, options.rounds, results.done, advance)
                results.add([_completed(row, shape, case, options, measured) for row in new])
        return workers.versions


def _completed(row: dict, shape: Shape, case: Case, options: Options, measured: dict) -> dict:
    """The row; of a floor, with the bound of prefill and with the weights alone as its memory."""
    if row["system"] != rows.FLOOR:
        return row
    sizes = floors.checkpoint_sizes(options.models / row["shape"] / row["scheme"])
    bound = floors.prefill_bound(row["scheme"], shape, case, measured["operations_s"])
    del row["prefill_quartiles"]
    return row | {"prefill_tok_s": rows.rounded(bound), "memory_bytes": floors.bytes_per_token(sizes)}


def _growth(options: Options, results: Results) -> None:
    """One of our schemes at the smallest shape and batch 1, over prompts up to thousands of tokens."""
    candidates = [s for name in GROWTH_SCHEMES for s in options.systems if (s.system, s.scheme) == ("quamba", name)]
    shape = next((shape for shape in options.shapes if shape.name == table.GROWTH_SHAPE), None)
    if not candidates or shape is None:
        return
    cases = [Case(shape.name, 1, prompt) for prompt in options.growth_prompts]
    ready = [s for s in candidates if models.is_current(s.path(options.models, shape))]
    left = [case for case in cases if rounds.missing(ready[:1], case, results.done)]
    if not left:
        return
    with _loaded(shape, ready[:1], options) as workers, _progress("growth", options.rounds * len(left)) as advance:
        for case in left:
            results.add(rounds.measure_case(workers, case, options.rounds, results.done, advance))


def _memory(options: Options, results: Results) -> None:
    """The memory figure, where its scheme and shape are among what is asked for."""
    scheme, name = MEMORY_FIGURE
    system = next((s for s in options.systems if (s.system, s.scheme) == ("quamba", scheme)), None)
    shape = next((shape for shape in options.shapes if shape.name == name), None)
    if system is None or shape is None or not models.is_current(system.path(options.models, shape)):
        return
    with console.status(f"memory of a process that serves {name} {scheme}"):
        try:
            results.add([memory.memory_row(system, shape, options.models, options.logs, options.threads)])
        except WorkerError as error:
            options.note(f"memory of {name} {scheme}: {error}")


def check(options: Options) -> int:
    """Prints how far the logits of every system are from transformers'; 1 where one is missing or differs."""
    systems = logits_check.systems_to_check(options.systems)
    _require_llama(systems)
    _forget_models(options)
    agrees = True
    for shape in options.shapes:
        with _loaded(shape, systems, options) as workers:
            lines, same = logits_check.compare(workers, shape, systems)
        print("\n".join(lines))
        agrees &= same
    return 0 if agrees else 1


def show(output: Path, page: Path | None) -> None:
    """Prints the table of the rows in the output, and puts it into `page`. Raises OSError or ValueError."""
    text = table.report(rows.read(output))
    print(text)
    if page:
        table.fill(page, text)
