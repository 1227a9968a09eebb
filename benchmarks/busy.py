"""What a busy neighbour costs, by how OpenMP's threads wait: decoding and calibration, quiet and beside it.

    python benchmarks/busy.py
    python benchmarks/busy.py --waits package 1000 passive --threads 1 2 --neighbours 2 --cores 0 1 --rounds 7

A model of random weights runs in a process for each way to wait; every round asks each of them, quiet and then beside
the neighbours. Printed are medians, behind decoding and calibration what the neighbour costs, and in brackets the time
beside that of the first way: medians of the ratios within a round, which other load of the machine disturbs least.
As root, `chrt -r 1 python benchmarks/busy.py` shuts that load out: only the benchmark and its neighbours run then, but
in turns of 100 ms. Ordinary processes take turns of a few.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import quamba  # before torch: it sets how OpenMP's threads wait

# isort: split
import torch
from transformers import MambaConfig, MambaForCausalLM

from benchmarks.speed.worker import Worker
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.defaults import parse_observers
from quamba.calibration.run import calibrate
from quamba.generation.decoder import Decoder
from quamba.study.markdown import markdown_table
from quamba.weights.method import WeightMethod

VOCAB = 8192
BATCH = 8
CONDITIONS = QUIET, BESIDE = "quiet", "beside"
JOBS = DECODE, CALIBRATE = "decode", "calibrate"
# it loops until the benchmark ends, however it does
NEIGHBOUR = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(100_000): pass"
Times = dict[tuple[str, int, str, str], list[float]]  # seconds by way to wait, threads, job and condition


def wait_variables(wait: str) -> dict[str, str]:
    """The environment that has OpenMP's threads wait so; what the package sets itself needs none."""
    if wait == "package":
        return {}
    return {"OMP_WAIT_POLICY": wait} if wait == "passive" else {"GOMP_SPINCOUNT": wait}


@contextmanager
def busy(count: int, cores: list[int]) -> Iterator[list[subprocess.Popen]]:
    """That many processes loop meanwhile, on these cores in turn, or anywhere where none is named."""
    with ExitStack() as ends:
        processes = []
        for index in range(count):
            processes.append(ends.enter_context(subprocess.Popen([sys.executable, "-c", NEIGHBOUR])))
            ends.callback(processes[-1].kill)  # before the wait for its end
            if cores:
                os.sched_setaffinity(processes[-1].pid, {cores[index % len(cores)]})
        yield processes


def jobs(args: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """What a worker measures, by name: seconds a token, and seconds of a calibration."""

    def random_model(layers: int) -> MambaForCausalLM:
        config = MambaConfig(hidden_size=args.hidden, num_hidden_layers=layers, vocab_size=VOCAB)
        return MambaForCausalLM(config).eval().requires_grad_(False)

    torch.manual_seed(0)
    quantized, float_model = random_model(args.layers), random_model(args.calibrated_layers)
    windows = torch.randint(0, VOCAB, (args.windows, args.seqlen))
    tables = {"quantize_embedding": True, "quantize_lm_head": True}
    text, weights = torch.randint(0, VOCAB, (2, 64)), WeightMethod("rtn")
    quamba.quantize(quantized, None, "w4a8", calibration=text, weights=weights, progress=False, **tables)
    install_float_mixers(float_model)
    decoder, observers, token = Decoder(quantized), parse_observers(None), torch.tensor([5])

    def decode() -> float:
        start, tokens = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < args.seconds or not tokens:
            decoder.step(token)
            tokens += 1
        return taken / tokens

    def calibration() -> float:
        start = time.perf_counter()
        calibrate(float_model, windows, observers, fingerprint="", batch_size=BATCH, progress=False)
        return time.perf_counter() - start

    return {DECODE: decode, CALIBRATE: calibration}


def serve(args: argparse.Namespace) -> None:
    """A worker's life: it answers requests for a job on a number of threads, one a line."""
    measures = jobs(args)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        torch.set_num_threads(request["threads"])
        print(json.dumps({"seconds": measures[request["op"]]()}), flush=True)


def measure(args: argparse.Namespace) -> Times:
    """Starts the workers and asks them, in rounds; the first round, in which they warm up, is not counted."""
    times: Times = {}
    with tempfile.TemporaryDirectory() as logs, ExitStack() as ends:
        workers = {}
        for wait in args.waits:
            command = [sys.executable, __file__, "--serve", *sys.argv[1:]]
            log, variables = Path(logs) / f"{wait}.log", wait_variables(wait)
            workers[wait] = ends.enter_context(Worker(wait, command, log, max(args.threads), variables))
        for round_number in range(args.rounds + 1):
            turn = round_number % len(args.waits)  # each comes first as often as the others
            order = args.waits[turn:] + args.waits[:turn]
            for condition in CONDITIONS:
                with busy(args.neighbours if condition == BESIDE else 0, args.cores):
                    for threads in args.threads:
                        for job in JOBS:
                            for wait in order:
                                seconds = workers[wait].ask(job, threads=threads)["seconds"]
                                if round_number:
                                    times.setdefault((wait, threads, job, condition), []).append(seconds)
    return times


def ratio(times: list[float], base: list[float]) -> str:
    """The median of the ratios of what was measured in one round."""
    return f"{statistics.median(a / b for a, b in zip(times, base, strict=True)):.2f}x"


def table(times: Times, waits: list[str], threads: list[int]) -> str:
    """Markdown: a line for each way to wait and number of threads."""
    lines = [["waiting", "threads"]]
    for unit in ("decoding, tokens/s", "calibration, s"):
        lines[0] += [unit, "beside", "neighbour costs"]
    for count in threads:
        for wait in waits:
            cells = [wait, str(count)]
            for job in JOBS:
                for condition in CONDITIONS:
                    found = times[wait, count, job, condition]
                    median = statistics.median(found)
                    figure = f"{1 / median:.0f}" if job == DECODE else f"{median:.2f}"
                    cells.append(f"{figure} ({ratio(found, times[waits[0], count, job, condition])})")
                cells.append(ratio(found, times[wait, count, job, QUIET]))
            lines.append(cells)
    return markdown_table(lines)


def parser() -> argparse.ArgumentParser:
    """The options; those of a worker are those of the benchmark that started it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    waits = "ways to wait: package (what importing quamba sets), a GOMP_SPINCOUNT (300000 is OpenMP's own), passive"
    parser.add_argument("--waits", nargs="+", default=["package", "300000", "10000", "1000", "passive"], help=waits)
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[os.cpu_count()], help="of the workers (default: all)"
    )
    parser.add_argument("--neighbours", type=int, default=1, help="processes that loop (default: 1); 0 shows the noise")
    parser.add_argument(
        "--cores", nargs="*", type=int, default=[0], help="theirs, in turn (default: 0); none: anywhere"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of decoding at a time (default: 1)")
    parser.add_argument("--hidden", type=int, default=768, help="hidden size of both models (default: 768)")
    parser.add_argument("--layers", type=int, default=12, help="of the decoded model, w4a8 (default: 12)")
    parser.add_argument("--calibrated_layers", type=int, default=4, help="of the calibrated model (default: 4)")
    parser.add_argument(
        "--windows", type=int, default=BATCH, help=f"of a calibration, {BATCH} a batch (default: {BATCH})"
    )
    parser.add_argument("--seqlen", type=int, default=512, help="tokens of a window (default: 512)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures and prints the table, or is one of the workers."""
    options = parser()
    args = options.parse_args()
    if args.serve:
        return serve(args)
    for wait in args.waits:
        if wait not in ("package", "passive") and not wait.isdecimal():
            options.error(f"--waits: {wait!r} is neither package nor passive nor a number")
    if absent := set(args.cores) - os.sched_getaffinity(0):
        options.error(f"--cores: {min(absent)} is none of {sorted(os.sched_getaffinity(0))}")
    if args.neighbours < 0 or min(args.rounds, *args.threads) < 1:
        options.error("--rounds and --threads begin at 1, --neighbours at 0")
    print(table(measure(args), args.waits, args.threads), end="")


if __name__ == "__main__":
    main()
