"""Which systems are measured, as data: who runs them, from which file, and what they are compared with."""

import sys
from dataclasses import dataclass
from pathlib import Path

from .rows import FLOOR
from .shapes import Case, Shape
from .worker import ROOT

BENCH_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
GIGABYTE = 1e9
OVERHEAD_BYTES = 0.5 * GIGABYTE  # of one worker: its libraries, activations and states


@dataclass(frozen=True)
class System:
    """One contestant; `bits` of a weight is for the estimate of what fits into memory together."""

    system: str
    scheme: str
    bits: float
    looped: bool = False  # a Python loop over time, see TOKENS_IN_A_LOOP

    @property
    def name(self) -> str:
        """How options and messages call it: `llama.cpp:Q4_0`."""
        return f"{self.system}:{self.scheme}"

    @property
    def file(self) -> str:
        """Its model, in the folder of the shape."""
        if self.system == "llama.cpp":
            return f"{self.scheme}.gguf"
        return "float" if self.system == "transformers" else self.scheme

    @property
    def command(self) -> list[str]:
        """What starts its worker."""
        if self.system == "llama.cpp":
            return [str(BENCH_PYTHON), "-m", "benchmarks.speed.llama_worker"]
        if self.system == FLOOR:
            return [sys.executable, "-m", "benchmarks.speed.floor_worker"]
        return [sys.executable, "-m", "benchmarks.speed.torch_worker", self.system]

    def path(self, models: Path, shape: Shape) -> Path:
        """Its model's file or folder."""
        return models / shape.name / self.file

    def takes(self, case: Case) -> bool:
        """Whether it is asked to run a case at all."""
        most = TOKENS_IN_A_LOOP.get(case.shape, TOKENS_IN_A_LOOP_ELSEWHERE)
        return not self.looped or case.batch * case.prompt <= most

    def memory_estimate(self, shape: Shape) -> float:
        """Bytes of its loaded worker, roughly."""
        return shape.parameters * self.bits / 8 + OVERHEAD_BYTES


# transformers' CPU path loops over time in Python: its rate hardly depends on the prompt, and long ones take minutes.
# The most tokens (batch x prompt) that it is asked for
TOKENS_IN_A_LOOP, TOKENS_IN_A_LOOP_ELSEWHERE = {"130m": 1024, "mamba2-130m": 1024}, 128

# where not all fit into memory together, the first of the list that would fit are measured
SYSTEMS = (
    System("quamba", "w8a8", 8),
    System("quamba", "w4a8", 5),
    System("quamba", "w4a16", 5),
    System("llama.cpp", "Q8_0", 8.5),
    System("llama.cpp", "Q4_0", 5),
    System("llama.cpp", "Q4_K_M", 5),
    System("transformers", "float32", 32, looped=True),
    System("quamba", "float", 32),
    System("transformers", "bfloat16", 16, looped=True),
    System(FLOOR, "w8a8", 8),
    System(FLOOR, "w4a8", 5),
    System(FLOOR, "w4a16", 5),
    System(FLOOR, "float", 32),
)
BY_NAME = {system.name: system for system in SYSTEMS}

# a scheme of ours -> the system whose weights have as many bits
COUNTERPARTS = {
    "w8a8": "llama.cpp:Q8_0",
    "w4a8": "llama.cpp:Q4_0",
    "w4a16": "llama.cpp:Q4_0",
    "float": "transformers:float32",
}


def fitting(systems: list[System], shape: Shape, available_bytes: float) -> list[System]:
    """Those, in order, that stay in memory together."""
    chosen, taken = [], 0.0
    for system in systems:
        needed = system.memory_estimate(shape)
        if taken + needed <= available_bytes:
            chosen.append(system)
            taken += needed
    return chosen
