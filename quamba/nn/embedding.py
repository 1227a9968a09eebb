"""Int8 embedding table and language-model head, apart or as one table. Dims: V vocabulary, H hidden."""

import torch
from torch import Tensor, nn

from .. import numerics, ops
from .linear import QuantLinear
from .module import QuantModule


class QuantEmbedding(QuantModule):
    """weight int8 [V, H] with a scale per vocabulary row [V]."""

    def __init__(self, vocab_size: int, hidden_size: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(vocab_size, hidden_size, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(vocab_size, dtype=torch.float32))

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> "QuantEmbedding":
        """Round-to-nearest rows of `embedding`."""
        quantized = cls(embedding.num_embeddings, embedding.embedding_dim)
        quantized.weight_scale = numerics.per_channel_scale(embedding.weight)  # [V]
        quantized.weight = numerics.quantize(embedding.weight.detach(), quantized.weight_scale[:, None])
        return quantized

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L] -> float32 [B, L, H]."""
        return ops.embedding_int8(input_ids, self.weight, self.weight_scale)

    def extra_repr(self) -> str:
        return "{}, {}, weight=int8 per row".format(*self.weight.shape)


class QuantHead(QuantModule):
    """lm_head on int8 with a static input scale; `tied_to` shares an embedding's table instead of owning one."""

    def __init__(self, hidden_size: int, vocab_size: int, tied_to: QuantEmbedding | None = None):
        super().__init__()
        self.register_buffer("head_in_scale", torch.ones((), dtype=torch.float32))
        if tied_to is None:
            self.linear = QuantLinear(hidden_size, vocab_size, bias=False)
        # not registered as a submodule: the table is stored once, under the embedding's name
        object.__setattr__(self, "tied_to", tied_to)

    @property
    def weight(self) -> Tensor:
        """A float32 tensor: transformers casts the head's input to `lm_head.weight.dtype`."""
        return self.head_in_scale

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float [..., H] -> float32 logits [..., V]."""
        table = self.linear if self.tied_to is None else self.tied_to
        q = ops.quantize(hidden_states, self.head_in_scale)
        return ops.linear_w8a8(q, table.weight, self.head_in_scale * table.weight_scale, None)
