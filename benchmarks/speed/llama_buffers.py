"""Where llama.cpp keeps its weights: for several sequences anywhere but in AMX buffers.

llama.cpp 0.3.36's product on AMX tiles writes beyond its output where the activations have a third axis, which Mamba's
have with several sequences: it adds an offset in bytes to a pointer to floats, and the process ends with a segmentation
fault. One sequence is fine, and is measured on AMX. Several get the next best that llama.cpp has: weights repacked for
AVX-512 where it can repack that format, else as they stand in the file.
"""

import ctypes

import llama_cpp
from llama_cpp._ggml import libggml

from .gguf_names import BLOCK_TENSORS

REPACK, AMX = b"CPU_REPACK", b"AMX"
REPACKED_FORMATS = ("Q4_0", "Q4_K_M")
# the products of a block that AMX would take
PRODUCTS = [name for name in BLOCK_TENSORS.values() if name in ("ssm_in.weight", "ssm_x.weight", "ssm_out.weight")]


class _Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def extra_buffer_types() -> dict[bytes, int]:
    """Name -> handle of the buffer types beyond the plain one that the CPU backend offers on this machine."""
    for name in ("ggml_backend_dev_by_type", "ggml_backend_dev_backend_reg", "ggml_backend_reg_get_proc_address"):
        getattr(libggml, name).restype = ctypes.c_void_p
    libggml.ggml_backend_dev_backend_reg.argtypes = (ctypes.c_void_p,)
    libggml.ggml_backend_reg_get_proc_address.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    libggml.ggml_backend_buft_name.argtypes = (ctypes.c_void_p,)
    libggml.ggml_backend_buft_name.restype = ctypes.c_char_p
    device = libggml.ggml_backend_dev_by_type(0)  # the CPU
    registry = libggml.ggml_backend_dev_backend_reg(device)
    address = libggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return {}
    listing = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(device)
    handles = []
    while listing[len(handles)]:
        handles.append(listing[len(handles)])
    return {libggml.ggml_backend_buft_name(handle): handle for handle in handles}


def needs_other_buffers(batch: int) -> bool:
    """Whether AMX would take the products of that many sequences, and fail."""
    return batch > 1 and AMX in extra_buffer_types()


def avoid_amx(parameters: llama_cpp.llama_model_params, scheme: str) -> object:
    """Has a model loaded without AMX buffers. What it returns must live until the model is loaded."""
    parameters.use_extra_bufts = False
    repack = extra_buffer_types().get(REPACK)
    if scheme not in REPACKED_FORMATS or repack is None:
        return None
    patterns = [name.replace(".", r"\.").encode() for name in PRODUCTS]
    overrides = (_Override * (len(patterns) + 1))(*((pattern, repack) for pattern in patterns))  # the last one is empty
    parameters.tensor_buft_overrides = ctypes.addressof(overrides)
    return overrides
