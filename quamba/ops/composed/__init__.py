"""The ops that are several others in turn, one token through every block: as a reference, and on devices where a graph
of launches serves them as well as a kernel of their own would.

`ops` is where the others come from: the reference, or torch.ops.quamba, whose dispatcher picks the device's kernels.
"""

from .mamba1_step import mamba1_step
from .mamba2_step import mamba2_step

COMPOSED = {"mamba1_step": mamba1_step, "mamba2_step": mamba2_step}  # (ops, the op's arguments)

__all__ = ["COMPOSED", "mamba1_step", "mamba2_step"]
