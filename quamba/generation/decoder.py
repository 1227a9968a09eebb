"""Token by token through a language model, float or quantized: the recurrent states, or the cache, of a batch.

Dims: B sequences, L tokens of each, V vocabulary.
"""

import inspect
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..architectures.anatomy import Anatomy
from ..architectures.convert import check_architecture, install_float_mixers
from ..errors import QuambaError
from ..models.text_config import text_config
from ..nn.placement import place_weights
from .recorded_step import RecordedStep


class Decoder:
    """The state of B sequences of equal length, empty at first; its size does not grow with their length, but for
    attention layers.

    transformers' own mixers in a float model are replaced by ours, which share their parameters: the originals forget
    the SSM state where several tokens continue a sequence. A quantized model's weights are laid out for its kernels,
    and a single token goes through all of its blocks as one op, unless it is a hybrid or its blocks have activations
    of several formats; on a GPU, as a recording of that op's launches. A model that is no Mamba runs as transformers
    runs it, with its own cache. Raises QuambaError for blocks without mixers here, and for a model without a cache.

    `prefill_rows`: tokens of all sequences that a prefill computes at once. Memory does not grow with the prompt then,
    and the weights, read once for each chunk, are still a small part of the work.
    """

    def __init__(self, model: PreTrainedModel):
        self._blocks: Callable | None = None  # all blocks as one op for a single token, where one op can be all
        anatomy = Anatomy.of(model)
        self._has_blocks, self._has_blocks_alone = anatomy.architecture is not None, anatomy.has_blocks_alone
        if not self._has_blocks:
            self._take_any(model)
            return
        try:
            architecture = check_architecture(model)
        except QuambaError as error:
            raise QuambaError(f"this model cannot be decoded token by token here: {error}") from error
        mixers = [slot.mixer for slot in anatomy.slots]
        if all(isinstance(mixer, architecture.quant_mixer) for mixer in mixers):
            place_weights(model)
            if anatomy.has_blocks_alone:
                self._blocks = architecture.step(mixers, model.backbone.norm_f, model.lm_head)
        else:
            install_float_mixers(model)
        self.model, self.prefill_rows, self._scan_chunk = model, architecture.prefill_rows, architecture.scan_chunk
        self.reset()

    def _take_any(self, model: PreTrainedModel) -> None:
        """A model without Mamba blocks that this package knows."""
        accepted = inspect.signature(model.forward).parameters
        if "past_key_values" not in accepted:
            raise QuambaError(
                f"this model cannot be decoded token by token here: {type(model).__name__} takes no past_key_values"
            )
        self.model, self._last_only = model, {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        place_weights(model)
        self.reset()

    def reset(self) -> None:
        """Forgets the sequences; the next ones may be of another number."""
        # a model of any other kind makes a cache of its own kind
        self._cache = DynamicCache(config=self.model.config) if self._has_blocks else None
        self._recorded = RecordedStep(self._step)
        self._batch_size: int | None = None
        self._length = 0  # tokens of each sequence: the positions of a hybrid's attention

    def prefill(self, input_ids: Tensor) -> Tensor:
        """Reads int64 [B, L], a prompt or what follows earlier tokens -> float32 logits [B, V] of the last position.

        Raises QuambaError for no tokens, ids outside of the vocabulary, and another B than that of earlier tokens.
        """
        if input_ids.dim() != 2 or input_ids.numel() == 0:
            raise QuambaError(f"input_ids has shape {list(input_ids.shape)}: [sequences, tokens], one or more of each")
        vocab_size = text_config(self.model).vocab_size
        low, high = (int(limit) for limit in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            outside = low if low < 0 else high
            raise QuambaError(f"token id {outside} is outside of the model's vocabulary of {vocab_size}")
        self._check_batch(input_ids.shape[0])
        return self._forward(input_ids)

    def step(self, ids: Tensor) -> Tensor:
        """Reads one more token of every sequence, int64 [B] -> float32 logits [B, V] of what follows it.

        The ids are not looked at: they come from logits of this vocabulary. Raises QuambaError for another B.
        """
        first = self._batch_size is None
        self._check_batch(len(ids))
        if first or self._blocks is None:
            return self._forward(ids[:, None])  # [B] -> [B, 1]
        return self._recorded(ids, lambda: [*chain(*self._states())])

    def _states(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the states of the convolution and of the recurrence of every layer, which earlier tokens left."""
        layers = self._cache.layers
        return [layer.conv_states[0] for layer in layers], [layer.recurrent_states[0] for layer in layers]

    @torch.inference_mode()
    def _step(self, ids: Tensor) -> Tensor:
        """int64 [B] -> float32 logits [B, V], on the states that earlier tokens left."""
        backbone = self.model.backbone
        hidden = backbone.embeddings(ids).float()  # [B, H]
        logits = self._blocks(hidden, *self._states())
        return self._logits(backbone.norm_f(hidden)) if logits is None else logits

    @torch.inference_mode()
    def _forward(self, input_ids: Tensor) -> Tensor:
        """int64 [B, L] -> float32 logits [B, V], a chunk of tokens after the other."""
        if not self._has_blocks:
            return self._forward_any(input_ids)
        if not self._has_blocks_alone:
            return self._forward_hybrid(input_ids)
        for chunk in self._chunks(input_ids):
            output = self.model.backbone(chunk, cache_params=self._cache, use_cache=True)
        return self._logits(output.last_hidden_state[:, -1])

    def _forward_hybrid(self, input_ids: Tensor) -> Tensor:
        """Run tokens through the whole model, which knows what becomes of its hidden states and its logits."""
        for chunk in self._chunks(input_ids):
            end = self._length + chunk.shape[1]
            positions = torch.arange(self._length, end, device=chunk.device)[None]  # [1, L]
            states = {"past_key_values": self._cache, "use_cache": True}
            logits = self.model(chunk, position_ids=positions, logits_to_keep=1, **states).logits  # [B, 1, V]
            self._length = end
        return logits[:, -1].float()

    def _chunks(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """int64 [B, L] in parts of `prefill_rows` tokens of all sequences, or a little fewer, which change nothing."""
        length = max(1, self.prefill_rows // len(input_ids))
        return input_ids.split(length - length % self._scan_chunk or length, dim=1)

    def _forward_any(self, input_ids: Tensor) -> Tensor:
        """Run tokens through a model of any kind, whose cache knows the positions.

        What continues earlier tokens goes in one by one: some classes forget recurrent states where several come.
        """
        if self._cache is not None and input_ids.shape[1] > 1:
            return [self._forward_any(column) for column in input_ids.split(1, dim=1)][-1]
        output = self.model(input_ids, past_key_values=self._cache, use_cache=True, **self._last_only)
        self._cache = getattr(output, "past_key_values", None)
        if self._cache is None:
            raise QuambaError(f"{type(self.model).__name__} keeps no cache: it cannot be decoded token by token here")
        return output.logits[:, -1].float()  # [B, 1 or L, V] -> [B, V]

    def _logits(self, hidden: Tensor) -> Tensor:
        """The final norm's output [B, H] of the last position -> float32 logits [B, V]."""
        head = self.model.lm_head
        return head(hidden.to(head.weight.dtype)).float()

    def _check_batch(self, batch_size: int) -> None:
        if self._batch_size not in (None, batch_size):
            raise QuambaError(f"{batch_size} sequences cannot continue {self._batch_size}: reset the decoder first")
        self._batch_size = batch_size
