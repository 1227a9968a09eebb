"""Falcon-Mamba (arXiv 2410.05355): Mamba with an RMSNorm, without weights, of each of dt, B and C.

Its config has `mixer_rms_eps`, the epsilon of those norms: the mixers of Mamba read it where it is there.
"""

from dataclasses import replace

from .mamba1 import ARCHITECTURE as MAMBA1

ARCHITECTURE = replace(MAMBA1, model_types=("falcon_mamba",))
