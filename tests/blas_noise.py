"""torch's float products with last bits of their own for every shape, place and number of threads: `--perturb-blas`.

Which order a BLAS adds in depends on the processor, on the shape, on the number of threads, and on where in memory the
operands lie. A test that compares two such products bit for bit passes by luck of the machine: here it fails on every
machine. `--perturb-blas=SEED` draws other bits.
"""

import torch
from torch import Tensor
from torch.library import Library, get_kernel

# what the others (linear, matmul, einsum, the modules, our own C++) come down to on a CPU
PRODUCTS = ["mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "addmv", "dot"]
ATTENTION = ["_scaled_dot_product_flash_attention_for_cpu"]  # its first result is the product, the second for gradients
ALIGNMENT = 64  # bytes, of what torch allocates
NOISE = 2**-21  # of a result: a few of float32's last bits

_library: list[Library] = []  # alive as long as what it registers


def install(seed: int) -> None:
    """Replaces the CPU kernels of these products, for the rest of the process; those of float64 stay as they are."""
    library = Library("aten", "IMPL")
    for name in PRODUCTS + ATTENTION:
        library.impl(name, _perturbed(name, seed), "CPU", with_keyset=True)
    _library.append(library)


def _perturbed(name: str, seed: int):
    """The product in float64, with noise, rounded once: like a float product whose order of sums nobody knows."""
    original = get_kernel(f"aten::{name}", "CPU")

    def product(keys, *args, **options):
        if not args[0].dtype.is_floating_point or args[0].dtype == torch.float64:
            return original.call_boxed(keys, *args, **options)
        wide = {option: _double(value) for option, value in options.items()}
        exact = original.call_boxed(keys, *map(_double, args), **wide)
        key = (seed, torch.get_num_threads(), *(x.data_ptr() % ALIGNMENT for x in args if isinstance(x, Tensor)))
        if name in ATTENTION:
            return _noisy(exact[0], args[0].dtype, key), exact[1].to(args[0].dtype)
        result = _noisy(exact, args[0].dtype, key)
        return args[0].copy_(result) if name.endswith("_") else result

    return product


def _double(argument):
    floats = isinstance(argument, Tensor) and argument.dtype.is_floating_point
    return argument.double() if floats else argument


def _noisy(exact: Tensor, dtype: torch.dtype, key: tuple[int, ...]) -> Tensor:
    """Values that the dtype holds are every BLAS's: sums of small integers, rows of one term."""
    generator = torch.Generator().manual_seed(hash((*exact.shape, *key)) % 2**63)
    noise = NOISE * (2 * torch.rand(exact.shape, generator=generator, dtype=exact.dtype) - 1)
    return torch.where(exact == exact.to(dtype), exact, exact + exact * noise).to(dtype)
