"""What an op is given wrong is refused before anything is read or written. In processes of their own, which may die."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quamba import ops
from quamba.ops import reference

from .arguments import argument_variants

ROOT = Path(__file__).parents[2]
STEPS = ("mamba1_step", "mamba2_step")
BASE = 4  # where both steps have it

# of 8 channels: none, not square, too large, no power of two over it, larger than the channels, of another kind
BASES = {
    "no columns": "torch.ones(2, 0)",
    "no rows": "torch.ones(0, 2)",
    "nothing": "torch.ones(0, 0)",
    "four rows of twenty": "torch.ones(4, 20)",
    "twenty rows of none": "torch.ones(20, 0)",
    "two rows of four": "torch.ones(2, 4)",
    "a vector": "torch.ones(2)",
    "three": "torch.ones(3, 3)",
    "sixteen": "torch.ones(16, 16)",
    "sixty-four": "torch.ones(64, 64)",
    "float64": "torch.ones(2, 2, dtype=torch.float64)",
}


def python(*arguments: str) -> str:
    """What a Python process prints. Fails where it dies, with its last words."""
    command = [sys.executable, "-X", "faulthandler", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    last = (run.stdout.splitlines() or ["nothing"])[-1]
    assert run.returncode == 0, f"it died with {run.returncode} at: {last}\n{run.stderr[-2000:]}"
    return run.stdout


def test_a_base_that_is_none_is_refused_by_the_steps():
    code = f"""
import torch
from quamba import ops
from tests.ops.arguments import argument_variants
for name in {STEPS!r}:
    for valid in argument_variants()[name]:
        for base in ({", ".join(BASES.values())},):
            print(name, list(base.shape), base.dtype, flush=True)
            try:
                getattr(ops, name)(*valid[:{BASE}], base, *valid[{BASE + 1}:])
            except ValueError:
                continue
            raise SystemExit("taken")
"""
    python("-c", code)


@pytest.mark.parametrize("name", STEPS)
def test_a_base_need_not_be_contiguous(name):
    for valid in argument_variants()[name]:
        hidden, spread = valid[0].clone(), torch.stack([valid[BASE]] * 2, -1)[..., 0]
        again = [state.clone() for state in (*valid[2], *valid[3])]
        getattr(ops, name)(*valid)
        layers = len(valid[2])
        states = (again[:layers], again[layers:])
        getattr(ops, name)(hidden, valid[1], *states, spread, *valid[BASE + 1 :])
        assert torch.equal(hidden, valid[0])


def test_random_bad_calls_raise_or_return():
    """Every op and instruction set; `make sanitize` makes more of them, and looks closer."""
    counts = python("-m", "tests.ops.bad_calls", "--calls", "1200", "--seed", "2")
    assert "ValueError" in counts.splitlines()[-1]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("wrong", ["states", "tensors", "group_sizes", "head"])
def test_steps_composed_of_other_ops_refuse_lists_of_other_lengths(name, wrong):
    """As the kernels do: a layer too many or too few must not be left out in silence."""
    valid = list(argument_variants()[name][1])
    at = {"tensors": 1, "states": 3, "group_sizes": -5, "head": -2}[wrong]
    valid[at] = valid[at][:-1]
    for op in (getattr(reference, name), getattr(ops, name)):
        with pytest.raises(ValueError):
            op(*valid)


@pytest.mark.parametrize("name", ["causal_conv1d", "causal_conv1d_int8"])
def test_a_convolution_has_taps(name):
    x, weight, *rest = argument_variants()[name][0]
    with pytest.raises(ValueError, match="conv width 0 is under 1"):
        getattr(ops, name)(x, weight[:, :0], *rest[:-1], None)


def test_sizes_that_would_overflow_are_refused():
    huge = 2**63 - 1
    for name in ("linear_w4a16", "linear_w4a8"):
        *tensors, _, group_size = argument_variants()[name][0]
        with pytest.raises(ValueError, match="outputs"):
            getattr(ops, name)(*tensors, huge, group_size)
    x, counts, sums, _, bits = argument_variants()["magnitude_histogram"][0]
    with pytest.raises(ValueError, match="first_bin"):
        ops.magnitude_histogram(x, counts, sums, -huge, bits)
