"""Where the weights of a quantized model lie: one mapping on huge pages, in the order in which a token reads them.

A token reads every weight once, which takes as long as memory takes. Huge pages (2 MB) spare the walk of the page table
every 4 KB and let prefetching run across it: reading is about a third faster.
"""

import ctypes
import gc
import logging
import mmap

import torch
from torch import Tensor, nn

from .module import FIRST_USE, QuantModule
from .weight import QuantWeight

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes: a cache line, and a vector of AVX-512
HUGE_PAGE = 2 << 20
SMALL = 4 << 10  # scalars and short scales stay where they are


def place_weights(model: nn.Module) -> None:
    """Tiles the weights of a quantized CPU model (`QuantWeight.tile`) and moves them into one mapping on huge pages.

    Values and names stay. Without huge pages to ask the system for, weights are tiled where they lie. Several threads
    may place one model, and others run it meanwhile: one of them does it, and a tensor is replaced, never changed.
    """
    with FIRST_USE:
        _place(model)


def align_floats(model: nn.Module) -> None:
    """Copies the float tensors that lie at no multiple of 64 bytes, as in a mapped file, to where torch puts new ones.

    The order in which a BLAS adds may depend on it: a model would have other logits once it is saved and loaded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.detach().clone()


def _place(model: nn.Module) -> None:
    modules = [module for module in model.modules() if isinstance(module, QuantModule)]
    for module in modules:
        if isinstance(module, QuantWeight):
            module.tile()
    if getattr(model, "_quamba_placed", False) or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    slots = [(module, name) for module in modules for name, tensor in module._buffers.items() if _is_large(tensor)]
    size = sum(_aligned(module._buffers[name].nbytes) for module, name in slots)
    memory = _huge_pages(size) if size >= HUGE_PAGE else None
    if memory is None:
        return
    offset = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    for module, name in slots:  # one by one: what a tensor leaves is free before the next one moves
        tensor = module._buffers[name]
        view = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        module._buffers[name] = view.view(tensor.shape).copy_(tensor)
        offset += _aligned(tensor.nbytes)
    _leave_files(model, {id(module._buffers[name]) for module, name in slots})
    model._quamba_placed = True
    logger.info("%.1f MB of weights on huge pages", size / 1e6)


def _leave_files(model: nn.Module, placed: set[int]) -> None:
    """Copies every tensor but those of these ids, and gives freed memory back.

    One small tensor of a mapped file, or a view of one, would keep all of the file's pages.
    """
    copies: dict[int, Tensor] = {}  # what modules share stays shared
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                module._parameters[name] = copies.setdefault(id(tensor), _copied(tensor))
        for name, tensor in module._buffers.items():
            if tensor is not None and id(tensor) not in placed:
                module._buffers[name] = copies.setdefault(id(tensor), tensor.detach().clone())
    gc.collect()  # loading leaves cycles that hold tensors
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc keeps what the rows and their tiles took, against later allocations
        libc.malloc_trim(0)


def _copied(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _huge_pages(size: int) -> mmap.mmap | None:
    """Anonymous memory of that many bytes and an aligned start, None where the system refuses."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError as error:
        logger.info("no huge pages for the weights: %s", error)
        return None
    return memory


def _is_large(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.device.type == "cpu" and tensor.nbytes >= SMALL


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
