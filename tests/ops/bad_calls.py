"""Random bad calls of every op: each raises a Python exception or returns; none reads or writes where it must not.

python -m tests.ops.bad_calls --calls 2000 --seed 0 [--only mamba1_step] [--namespace quamba_emulated]

Every call is valid arguments (arguments.py) with one to three of them replaced: other dtypes, ranks, sizes, strides,
values, None, lists too short, numbers out of range. What is called is printed before: the last line of a process that
dies says what killed it. The same seed makes the same calls. `make sanitize` runs this under AddressSanitizer.
"""

import argparse
import copy
import faulthandler
import random
import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from quamba import ops

from .arguments import argument_variants

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
DTYPES += (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)
INTEGERS = (0, -1, 1, 2, 3, 16, 17, 32, 33, 2**31 - 1, 2**31, 2**32, 2**40 + 1, 2**62, 2**63 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-45, 1e38, 1e300, float("inf"), float("-inf"), float("nan"))
MOST_VALUES = 1 << 16  # of a replaced tensor


def random_like(x: Tensor, shape: list[int]) -> Tensor:
    """Other values in another shape, of the same dtype."""
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return torch.randn(shape).to(x.dtype)
    return torch.randint(0, 100, shape).to(x.dtype)


def other_dtype(x: Tensor, rng: random.Random) -> Tensor:
    """The values in another dtype."""
    return x.to(rng.choice(DTYPES))


def other_size(x: Tensor, rng: random.Random) -> Tensor:
    """One dimension of another size, zero among them."""
    shape = list(x.shape)
    if not shape:
        return random_like(x, [rng.choice([0, 2, 5])])
    at = rng.randrange(len(shape))
    shape[at] = rng.choice([0, 0, 1, max(shape[at] - 1, 0), shape[at] + 1, 2 * shape[at], shape[at] + 15])
    return random_like(x, shape)


def other_rank(x: Tensor, rng: random.Random) -> Tensor:
    """A dimension more or less."""
    ways = [x.unsqueeze(0), x.unsqueeze(-1), x.flatten(), x.new_empty(0), random_like(x, [])]
    if x.dim() > 1:
        ways += [x[0] if len(x) else x.flatten(), x.transpose(0, -1), x.squeeze()]
    return rng.choice(ways)


def other_strides(x: Tensor, rng: random.Random) -> Tensor:
    """The same shape, laid out otherwise: transposed, every second value, expanded, beginning within a storage."""
    if x.dim() == 0:
        return torch.stack([x, x])[1]
    spread = torch.stack([x, x], -1)[..., 0]
    offset = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
    ways = [spread, offset, x.transpose(0, -1).contiguous().transpose(0, -1)]
    if x.numel():
        ways.append(x[:1].expand(x.shape))
    return rng.choice(ways)


def other_values(x: Tensor, rng: random.Random) -> Tensor:
    """The same shape and dtype, full of one value: zero, the least, the greatest, no number."""
    if x.dtype.is_complex or x.dtype == torch.bool:
        return x
    values = [0, 1]
    if x.dtype.is_floating_point:
        values += [float("nan"), float("inf"), -1, torch.finfo(x.dtype).min, torch.finfo(x.dtype).max]
    else:
        values += [torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max]
    return torch.full_like(x, rng.choice(values))


TENSOR_WAYS = (other_dtype, other_size, other_size, other_rank, other_strides, other_values)


def mutated_tensor(x: Tensor, rng: random.Random):
    """A tensor in place of x, or None."""
    if rng.random() < 0.07:
        return None
    mutant = rng.choice(TENSOR_WAYS)(x, rng)
    return mutant if mutant.numel() <= MOST_VALUES else None


def mutated(value, rng: random.Random):
    """Something of the same kind, most of the time, that may be wrong."""
    if isinstance(value, Tensor):
        return mutated_tensor(value, rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*INTEGERS, value + 1, value - 1, -value, 2 * value])
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, list):
        if value and rng.random() < 0.75:  # one of its elements
            at = rng.randrange(len(value))
            return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
        return rng.choice([[], value[:-1], [*value, *value[:1]], value[::-1], [None] * len(value), value + value])
    return rng.choice([torch.randn(3), torch.ones(2, 2, dtype=torch.int8), torch.tensor(0.5), 7, 0.5])  # for None


def described(value) -> str:
    """A value in a few characters."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}/{list(value.stride())}"
    if isinstance(value, list):
        return f"[{', '.join(map(described, value))}]"
    return repr(value)


def bad_call(args: tuple, rng: random.Random) -> tuple:
    """The arguments with one to three of them replaced."""
    args = list(copy.deepcopy(args))
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(args))
        args[at] = mutated(args[at], rng)
    return tuple(args)


def run(name: str, op: Callable, args: tuple) -> str:
    """What became of a call: `returned`, or the exception's type. Raises where an error shows one of ours behind it."""
    try:
        op(*args)
    except Exception as error:
        if "INTERNAL ASSERT" in str(error) or isinstance(error, SystemError):
            raise AssertionError(f"{name} fails within, not at its checks: {error}") from error
        return type(error).__name__
    return "returned"


def main() -> None:
    """Makes the calls, and counts what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000, help="in all, the ops and instruction sets in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one op")
    parser.add_argument("--namespace", choices=["quamba", "quamba_emulated"], default="quamba")
    parser.add_argument("--quiet", action="store_true", help="print the counts alone; a sanitizer says what it found")
    args = parser.parse_args()
    faulthandler.enable()
    torch.manual_seed(args.seed)
    if args.namespace == "quamba_emulated":
        from quamba.ops import emulated  # noqa: F401

    rng, became = random.Random(args.seed), Counter()
    capabilities = torch.ops.quamba.cpu_capabilities()
    variants = [(name, valid) for name, all_valid in argument_variants().items() for valid in all_valid]
    if args.only:
        variants = [(name, valid) for name, valid in variants if name == args.only]
    for number in range(args.calls):
        name, valid = variants[number % len(variants)]
        capability = rng.choice(capabilities)
        call = bad_call(valid, rng)
        if not args.quiet:
            print(f"{number} {capability} {name}({', '.join(map(described, call))})", flush=True)
        with ops.force_cpu_capability(capability):
            became[run(name, getattr(getattr(torch.ops, args.namespace), name), call)] += 1
    print(f"{args.calls} calls: " + ", ".join(f"{count} {what}" for what, count in became.most_common()))


if __name__ == "__main__":
    sys.exit(main())
