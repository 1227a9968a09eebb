"""Every kind of scheme, as arguments of `quamba.quantize`, and a tiny model quantized with one."""

import torch
from transformers import PreTrainedModel

import quamba
from quamba.architectures.convert import install_float_mixers
from quamba.weights.method import WeightMethod

VARIANTS = {
    "w8a8": {"scheme": "w8a8"},
    "w8a8 dynamic": {"scheme": "w8a8", "dynamic": True},
    "w4a8": {"scheme": "w4a8", "group_size": 32},
    "w4a8 dynamic": {"scheme": "w4a8", "group_size": 64, "dynamic": True},
    "w4a16": {"scheme": "w4a16"},
    "w8a16": {"scheme": "w8a16"},
}
# what of the embedding and the head is quantized beside the blocks
TABLES = {
    "float": {},
    "both": {"quantize_embedding": True, "quantize_lm_head": True},
    "both 8": {"quantize_embedding": True, "quantize_lm_head": True, "embedding_bits": 8, "lm_head_bits": 8},
    "both 4": {"quantize_embedding": True, "quantize_lm_head": True, "embedding_bits": 4, "lm_head_bits": 4},
    "4 and 8": {"quantize_embedding": True, "quantize_lm_head": True, "embedding_bits": 4, "lm_head_bits": 8},
    "untied": {"quantize_embedding": True, "quantize_lm_head": True, "untie": True},
    "head": {"quantize_lm_head": True},
}


def calibrates(variant: str) -> bool:
    """Whether a variant quantizes activations: it needs calibration text, and its blocks hold no float product."""
    return not VARIANTS[variant]["scheme"].endswith("a16")


def quantize_variant(model: PreTrainedModel, variant: str, **options) -> PreTrainedModel:
    """The model, quantized as `VARIANTS` says, weights to nearest; calibrated, where it has to be, on random tokens."""
    if calibrates(variant):
        windows = torch.randint(0, 60, (4, 32), generator=torch.Generator().manual_seed(5))
        options = {"calibration": windows} | options
    return quamba.quantize(
        model, None, progress=False, **VARIANTS[variant] | {"weights": WeightMethod("rtn")} | options
    )


def build_variant(tiny, variant: str):
    """What `tiny` builds, with float mixers of ours, or quantized."""
    model = tiny()
    if variant != "float":
        return quantize_variant(model, variant, **({"observer": "all=minmax"} if calibrates(variant) else {}))
    install_float_mixers(model)
    return model
