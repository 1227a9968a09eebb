"""Quantized embedding table and language-model head, apart or as one table. Dims: V vocabulary, H hidden."""

import torch
from torch import Tensor, nn

from .. import ops
from ..scheme.formats import STATIC, TensorSpec
from ..weights.head import head_chunks
from .gradients import without_gradient
from .linear import QuantLinear
from .module import QuantModule
from .weight import QuantWeight


class QuantEmbedding(QuantWeight):
    """A `QuantWeight` [V, H]: 8 bits with a scale per vocabulary row, or 4 bits in groups of a row.

    `dtype`: of the rows that it gives.
    """

    def __init__(self, vocab_size: int, hidden_size: int, spec: TensorSpec, dtype: torch.dtype = torch.float32):
        super().__init__(vocab_size, hidden_size, spec)
        self.dtype = dtype

    @classmethod
    def from_float(cls, embedding: nn.Embedding, spec: TensorSpec) -> "QuantEmbedding":
        """Round-to-nearest rows of `embedding`."""
        quantized = cls(embedding.num_embeddings, embedding.embedding_dim, spec)
        quantized.round_to_nearest(embedding.weight)
        return quantized

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L] -> `dtype` [B, L, H]."""
        self.tile()
        if self.group_size is None:
            rows = ops.embedding_int8(input_ids, self.weight, self.weight_scale, self.in_features)
        else:
            sizes = (self.in_features, self.out_features, self.group_size)
            rows = ops.embedding_int4(input_ids, self.weight, self.weight_scale, self.weight_zero, *sizes)
        return rows.to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.out_features}, {self.in_features}, weight={self.spec.describe()}"


class QuantHead(QuantModule):
    """lm_head with quantized weights; `tied_to` shares an embedding's table instead of owning one.

    `act`: the format of its input: int8 with the static scale `head_in_scale`, int8 with a scale per token, or float.
    `chunks`: of rows, where each has multipliers of its float inputs, `input_multipliers` [C, H]; 0: none.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        spec: TensorSpec,
        act: TensorSpec = STATIC,
        tied_to: QuantEmbedding | None = None,
        chunks: int = 0,
    ):
        super().__init__()
        self.act, self.chunks = act, chunks
        input_scales = torch.ones(chunks, hidden_size, dtype=torch.float32) if chunks else None
        self.register_buffer("input_multipliers", input_scales)
        self.register_buffer("head_in_scale", torch.ones((), dtype=torch.float32) if act.is_static else None)
        if tied_to is None:
            self.linear = QuantLinear(hidden_size, vocab_size, bias=False, spec=spec)
        # not registered as a submodule: the table is stored once, under the embedding's name
        object.__setattr__(self, "tied_to", tied_to)

    @property
    def table(self) -> QuantWeight:
        """The matrix [V, H], its own or the embedding's."""
        return self.linear if self.tied_to is None else self.tied_to

    @property
    def weight(self) -> Tensor:
        """A float32 tensor without values: transformers casts the head's input to `lm_head.weight.dtype`."""
        return torch.empty(0, dtype=torch.float32, device=self.table.weight.device)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """float [..., H] -> float32 logits [..., V]."""
        return without_gradient(self._logits(hidden_states), hidden_states)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        if self.input_multipliers is not None:
            x, rows = hidden_states.float(), head_chunks(self.table.out_features, self.chunks)
            parts = [
                self.table.product(x * multiplier, rows=chunk)
                for multiplier, chunk in zip(self.input_multipliers, rows, strict=True)
            ]
            return torch.cat(parts, dim=-1)
        if self.act.is_float:
            return self.table.product(hidden_states.float())
        if self.head_in_scale is None:
            return self.table.product(*ops.quantize_per_token(hidden_states))
        return self.table.product(ops.quantize(hidden_states, self.head_in_scale), self.head_in_scale)
