"""Checkpoints: finding one by name, and reading the formats it may have."""

from .load_float import load_float
from .resolve import Checkpoint, resolve_checkpoint
from .state_spaces import read_state_spaces
from .tokenizer import load_tokenizer

__all__ = ["Checkpoint", "load_float", "load_tokenizer", "read_state_spaces", "resolve_checkpoint"]
