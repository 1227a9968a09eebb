"""The ops, reached as `ops.NAME(...)`: PyTorch's dispatcher picks the kernel of the tensors' device.

The plain-torch reference is every op's default implementation. It runs only when asked for (QUAMBA_REFERENCE=1): a
missing extension, or a device without kernels, is an error and never a silent fall back.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch

from ..errors import QuambaError
from . import reference
from .composed import COMPOSED
from .schemas import FAKES, SCHEMAS

_library = torch.library.Library("quamba", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"quamba::{_name}", FAKES[_name], lib=_library)
    globals()[_name] = getattr(torch.ops.quamba, _name)

KERNELS = os.environ.get("QUAMBA_KERNELS")  # another build of quamba._C than the one beside this package
REFERENCE_ONLY = os.environ.get("QUAMBA_REFERENCE") == "1"
CUDA_BUILT = not REFERENCE_ONLY and find_spec("quamba._C_cuda") is not None  # it loads without a GPU
INT8_PRODUCTS = ("library", "own")  # cuBLASLt, and the kernel of csrc/cuda
BUILD_CUDA = "build them with the CUDA toolkit's nvcc on PATH: QUAMBA_CUDA=1 python setup.py build_ext --inplace"


def _refuse(name: str, *_args, **_options):
    raise QuambaError(f"{name} met a cuda tensor, and this build has no cuda kernels: {BUILD_CUDA}")


if not REFERENCE_ONLY:
    try:  # either registers the kernels
        if KERNELS:
            torch.ops.load_library(KERNELS)
        else:
            import_module("quamba._C")
    except (ImportError, OSError) as error:
        raise ImportError(
            f"quamba's kernels are not built or do not load ({error}). Build them with `make build` or "
            "`python setup.py build_ext --inplace`; QUAMBA_REFERENCE=1 runs the slow reference instead."
        ) from error
    if CUDA_BUILT:
        try:
            import_module("quamba._C_cuda")
        except ImportError as error:
            raise ImportError(
                f"quamba's CUDA kernels do not load ({error}). Build them again with `python setup.py build_ext "
                "--inplace`, or remove quamba/_C_cuda*.so to run without them."
            ) from error
        for _name, _op in COMPOSED.items():
            _library.impl(_name, partial(_op, torch.ops.quamba), "CUDA")
    else:
        for _name in SCHEMAS:
            _library.impl(_name, partial(_refuse, _name), "CUDA")


def has_kernel(name: str, device_type: str) -> bool:
    """Return whether a compiled kernel (not the reference) serves the op on that kind of device."""
    if device_type == "cuda" and not CUDA_BUILT:
        return False
    key = torch._C._dispatch_key_for_device(device_type)
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"quamba::{name}", key)


def check_device(device: str | torch.device) -> torch.device:
    """The device, if it exists and has a kernel of every op. Raises QuambaError naming what is missing."""
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise QuambaError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type == "meta":
        raise QuambaError("device 'meta' holds no values: use --device cpu")
    if device.type == "cpu":
        cpu_capability()
    if device.type == "cuda":
        cuda_int8_product()
    missing = [name for name in SCHEMAS if not has_kernel(name, device.type)]
    if missing and not REFERENCE_ONLY:
        advice = "use --device cpu" + (f", or {BUILD_CUDA}" if device.type == "cuda" else "")
        raise QuambaError(f"this build has no {device.type} kernels ({len(missing)} ops missing): {advice}")
    return device


def cpu_capability() -> str:
    """The instruction set that CPU kernels run: avx512_amx, avx512_vnni, avx2, portable; `reference` without kernels.

    Raises QuambaError where QUAMBA_CPU_CAPABILITY names one that this machine does not run.
    """
    if REFERENCE_ONLY:
        return "reference"
    try:
        return torch.ops.quamba.cpu_capability()
    except ValueError as error:
        raise QuambaError(f"QUAMBA_CPU_CAPABILITY: {str(error).splitlines()[0]}") from error


def cuda_int8_product() -> str:
    """Return what multiplies many int8 rows by int8 weights on a GPU: library, own; empty where their sizes decide.

    Raises QuambaError where QUAMBA_CUDA_INT8_PRODUCT names another. Kernels read the variable at every call.
    """
    name = os.environ.get("QUAMBA_CUDA_INT8_PRODUCT", "")
    if name not in ("", *INT8_PRODUCTS):
        raise QuambaError(f"QUAMBA_CUDA_INT8_PRODUCT must be one of {', '.join(INT8_PRODUCTS)}, got {name!r}")
    return name


@contextmanager
def force_cuda_int8_product(name: str) -> Iterator[None]:
    """Have one of INT8_PRODUCTS multiply within the block, as QUAMBA_CUDA_INT8_PRODUCT does for a process."""
    previous = os.environ.get("QUAMBA_CUDA_INT8_PRODUCT")
    os.environ["QUAMBA_CUDA_INT8_PRODUCT"] = name
    try:
        cuda_int8_product()
        yield
    finally:
        if previous is None:
            del os.environ["QUAMBA_CUDA_INT8_PRODUCT"]
        else:
            os.environ["QUAMBA_CUDA_INT8_PRODUCT"] = previous


@contextmanager
def force_cpu_capability(name: str) -> Iterator[None]:
    """Run CPU kernels of a lower instruction set within the block, as QUAMBA_CPU_CAPABILITY does for a process."""
    previous = torch.ops.quamba.cpu_capability()
    torch.ops.quamba.set_cpu_capability(name)
    try:
        yield
    finally:
        torch.ops.quamba.set_cpu_capability(previous)


def backends(device_type: str) -> dict[str, str]:
    """Return what runs each op on that kind of device, for logs: the kernels' instruction set, or `reference`."""
    kernel = cpu_capability() if device_type == "cpu" else device_type
    running = {name: kernel if has_kernel(name, device_type) else "reference" for name in SCHEMAS}
    return running
