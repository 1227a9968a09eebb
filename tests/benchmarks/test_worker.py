"""The pipe between the driver and its workers, with a worker that has no model."""

import sys

import pytest

from benchmarks.speed.worker import WAITING, Worker, WorkerError

STAND_IN = """
import numpy as np
from benchmarks.speed.serve import serve

class Counting:
    def __init__(self, path, scheme, threads):
        if path == "absent": raise FileNotFoundError(path)
        print("chatter that must not reach the driver")
    def reset(self, batch, prompt, steps): self.read = []
    def prefill(self, tokens): self.read.append(tokens.shape[1]); return np.full((len(tokens), 2), sum(self.read))
    def step(self, tokens): return self.prefill(tokens[:, None])

serve(Counting, {"stand-in": "1"})
"""


@pytest.fixture
def worker(tmp_path):
    with Worker("stand-in", [sys.executable, "-c", STAND_IN], tmp_path / "log", threads=1) as started:
        yield started


def test_it_greets_with_versions_and_the_memory_of_its_imports(worker):
    assert worker.greeting["versions"] == {"stand-in": "1"}
    assert worker.greeting["resident_bytes"] > 1e6


def test_it_measures_prefill_and_steps(worker):
    worker.ask("load", path="here", scheme="x", threads=1)
    answer = worker.ask("measure", batch=2, prompt=5, steps=3)
    assert answer["prefill_s"] > 0 and answer["decode_s"] > 0 and answer["peak_bytes"] > 1e6


def test_logits_are_those_after_the_prompt_and_after_each_step(worker):
    worker.ask("load", path="here", scheme="x", threads=1)
    answer = worker.ask("logits", tokens=[[1, 2, 3, 4, 5]], steps=2)
    assert answer["logits"] == [[[3, 3]], [[4, 4]], [[5, 5]]]


def test_a_refused_request_names_the_system_and_leaves_it_running(worker):
    with pytest.raises(WorkerError, match="stand-in: FileNotFoundError: absent"):
        worker.ask("load", path="absent", scheme="x", threads=1)
    assert worker.ask("resident")["resident_bytes"] > 1e6


@pytest.mark.parametrize("variables", [{}, {"GOMP_SPINCOUNT": "7"}])
def test_how_its_threads_wait_is_its_own_matter_or_said_for_it(variables, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")  # as a driver has it that imports the package
    code = f"import json, os; print(json.dumps({{name: os.environ.get(name) for name in {WAITING}}}))"
    with Worker("stand-in", [sys.executable, "-c", code], tmp_path / "log", 1, variables) as started:
        assert started.greeting == dict.fromkeys(WAITING) | variables


def test_a_worker_that_dies_is_reported_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('out of luck')"]
    with pytest.raises(WorkerError, match=r"ended with code 1.*out of luck"):
        Worker("doomed", command, tmp_path / "log", threads=1)
