"""The CUDA kernels on the CPU, for tests: `torch.ops.quamba_emulated.NAME` has the schema of `torch.ops.quamba.NAME`.

The same sources as quamba._C_cuda, compiled by the C++ compiler: argument checks, launches and kernels are those that
run on a GPU, thousands of times slower (csrc/cuda/emulation.h). `import quamba` does not load them.
"""

from functools import partial
from importlib import import_module

import torch

from .composed import COMPOSED
from .schemas import SCHEMAS

# Ops of csrc/cuda/probe.cu, for tests of the emulation itself; the CUDA library has all but `fault`.
PROBES = {
    # c [16, 8] += a [16, K] b [8, K]^T by one tensor-core instruction; K 32, 16, 8
    "mma_s8": "(Tensor a, Tensor b, Tensor(a!) c) -> ()",
    "mma_bf16": "(Tensor a, Tensor b, Tensor(a!) c) -> ()",
    "mma_tf32": "(Tensor a, Tensor b, Tensor(a!) c) -> ()",
    # x [32] -> [7, 32]: four shuffles by `argument` in groups of `width` lanes, a vote, the sum, the maximum
    "warp": "(Tensor x, int argument, int width) -> Tensor",
    # x [blocks, threads] -> each block's values reversed through shared memory
    "reverse": "(Tensor x, bool dynamic) -> Tensor",
    # x [n, 4] through asynchronous copies -> x, zeros from row `valid` on; `early`: read before they are waited for
    "copy": "(Tensor x, int valid, bool early) -> Tensor",
    # something wrong, by number
    "fault": "(Tensor like, int fault, int threads) -> Tensor",
}

_libraries = {name: torch.library.Library(name, "DEF") for name in ("quamba_emulated", "quamba_probe")}
for _name, _schema in SCHEMAS.items():
    _libraries["quamba_emulated"].define(_name + _schema)
for _name, _schema in PROBES.items():
    _libraries["quamba_probe"].define(_name + _schema)

try:
    import_module("quamba._C_emulated")  # registers the kernels
except ImportError as error:
    raise ImportError(
        f"the emulation of the CUDA kernels, which their tests run, is not built or does not load ({error}). Build it "
        "with `make test` or `python -m tools.build_cuda --library _C_emulated`."
    ) from error

for _name, _op in COMPOSED.items():
    _libraries["quamba_emulated"].impl(_name, partial(_op, torch.ops.quamba_emulated), "CPU")


def has_emulated_kernel(name: str) -> bool:
    """Return whether the library has a kernel of the op, or of those that it is composed of."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"quamba_emulated::{name}", "CPU")
