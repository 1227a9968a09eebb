"""Checkpoints: finding one by name, reading the formats it may have, writing and verifying quantized ones."""

from .dequantized import check_new_folder, save_dequantized
from .load import DTYPES, load, load_checkpoint, saved_dtype
from .load_float import load_float
from .quantized import METHOD, check_replaceable, load_quantized, recipe_of, save_quantized
from .resolve import Checkpoint, resolve_checkpoint
from .savable import check_savable
from .tokenizer import load_tokenizer

__all__ = [
    "DTYPES",
    "METHOD",
    "Checkpoint",
    "check_new_folder",
    "check_replaceable",
    "check_savable",
    "load",
    "load_checkpoint",
    "load_float",
    "load_quantized",
    "load_tokenizer",
    "recipe_of",
    "resolve_checkpoint",
    "save_dequantized",
    "save_quantized",
    "saved_dtype",
]
