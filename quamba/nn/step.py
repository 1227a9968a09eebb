"""What the steps of Mamba1 and Mamba2 share: linear layers and the head as their ops take them, and what they take.

Dims: B batch, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from ..hadamard import base_on
from .embedding import QuantHead
from .linear import QuantLinear
from .mixer import QuantMixer
from .norm import FinalNorm


def linear_tensors(linear: QuantLinear) -> list[Tensor | None]:
    """ops.schemas.LINEAR_TENSORS of a layer, which is laid out for the kernels."""
    linear.tile()
    return [linear.weight, linear.weight_scale, linear.weight_zero, linear.bias, linear.input_multiplier]


class Step:
    """A quantized model for one token at a time: its blocks, and with `norm` and `head` the final norm and the
    quantized head too. Holds what a step's op takes beside the sizes of the recurrence; a subclass calls it."""

    def __init__(self, mixers: Sequence[QuantMixer], norm: FinalNorm | None, head: QuantHead | None):
        self.base = base_on(mixers[0].d_inner, mixers[0].A.device)
        self.dynamic = mixers[0].scheme.act.is_per_token
        self.group_sizes = [mixer.scheme.weight.group_size or 0 for mixer in mixers]
        self.norm_weight, self.head, self.vocab_size = None, [], 0
        if head is not None:
            head.table.tile()
            table = head.table
            self.group_sizes.append(table.group_size or 0)
            self.norm_weight = norm.weight.detach().float()  # [H]
            self.head = [table.weight, table.weight_scale, table.weight_zero, head.head_in_scale]
            self.vocab_size = table.out_features

    @classmethod
    def create(cls, mixers: Sequence[QuantMixer], norm: FinalNorm, head: nn.Module) -> Self | None:
        """The step through all blocks, and through the head where one op can be both; None where no op can be all
        blocks: it takes one format of activations."""
        acts = {mixer.scheme.act for mixer in mixers}
        if len(acts) > 1:
            return None
        fits = isinstance(head, QuantHead) and not head.chunks and head.act in acts
        return cls(mixers, norm, head) if fits else cls(mixers)

    def new_logits(self, hidden: Tensor) -> Tensor | None:
        """Room for float32 logits [B, V], where there is a head."""
        return hidden.new_empty(len(hidden), self.vocab_size) if self.head else None
