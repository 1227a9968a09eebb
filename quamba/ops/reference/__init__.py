"""The ops in plain torch: slow, obviously right, the oracle that kernels are tested against.

A module for what is shared, one for Mamba2's; see schemas.py for every shape, layout.py for tiles. Ops that are several
others in turn are those of ../composed, of the functions here.
"""

from functools import partial
from types import SimpleNamespace

from ..composed import COMPOSED
from . import mamba2, shared
from .mamba2 import gated_hadamard_quant, gated_rms_norm, ssd_scan, ssd_scan_int8
from .shared import (
    causal_conv1d,
    causal_conv1d_int8,
    embedding_int4,
    embedding_int8,
    hadamard,
    hadamard_quant,
    linear_w4a8,
    linear_w4a8_requant,
    linear_w4a16,
    linear_w8a8,
    linear_w8a8_requant,
    linear_w8a16,
    magnitude_histogram,
    quantize,
    quantize_per_token,
    rms_norm,
    rms_norm_quant,
    selective_scan,
    selective_scan_int8,
)

_FUNCTIONS = SimpleNamespace(**vars(shared) | vars(mamba2))
mamba1_step, mamba2_step = (partial(COMPOSED[name], _FUNCTIONS) for name in ("mamba1_step", "mamba2_step"))

__all__ = [
    "causal_conv1d",
    "causal_conv1d_int8",
    "embedding_int4",
    "embedding_int8",
    "gated_hadamard_quant",
    "gated_rms_norm",
    "hadamard",
    "hadamard_quant",
    "linear_w4a8",
    "linear_w4a8_requant",
    "linear_w4a16",
    "linear_w8a8",
    "linear_w8a8_requant",
    "linear_w8a16",
    "magnitude_histogram",
    "mamba1_step",
    "mamba2_step",
    "quantize",
    "quantize_per_token",
    "rms_norm",
    "rms_norm_quant",
    "selective_scan",
    "selective_scan_int8",
    "ssd_scan",
    "ssd_scan_int8",
]
