"""Granite-4-H without experts: the blocks of Bamba, under the same names."""

from dataclasses import replace

from .bamba import ARCHITECTURE as BAMBA

ARCHITECTURE = replace(BAMBA, model_types=("granitemoehybrid",))
