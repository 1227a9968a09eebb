"""Whether a model's embedding and head are one table: what its tensors say, not its config.

transformers ties by `config.tie_word_embeddings`, but leaves two tables that a checkpoint holds with different values;
a caller may have tied or parted the two since.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same numbers in the same place."""
    return a is b or (
        a.device == b.device
        and a.device.type != "meta"
        and a.data_ptr() == b.data_ptr()
        and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    )


def is_one_table(model: PreTrainedModel) -> bool:
    """Return whether a float model's head is its embedding's table: the same memory, or a copy that its config calls
    tied."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if share_memory(embedding, head):
        return True
    called_tied = getattr(model.config, "tie_word_embeddings", False)
    return bool(called_tied and embedding.shape == head.shape and torch.equal(embedding, head))


@torch.no_grad()
def untie_embedding(model: PreTrainedModel) -> None:
    """Give the head a tensor of its own where it shares the embedding's, and say so in the config; logits unchanged."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if share_memory(head.weight, embedding.weight):
        shared = head.weight
        head.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    _say(model, tied=False)


def state_tying(model: PreTrainedModel) -> None:
    """Make the config say what the tables of a model, float or quantized, are: saved and loaded, they are that again.

    A quantized head that shares a quantized embedding's table is not tied in transformers' sense.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    floats = all(isinstance(getattr(table, "weight", None), torch.nn.Parameter) for table in (head, embedding))
    _say(model, tied=floats and is_one_table(model))


@contextmanager
def truly_tied(model: object) -> Iterator[None]:
    """Make the config say what the tables are, for a block whose code ties by it; what it said stands again after."""
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        yield
        return
    said, keys = getattr(model.config, "tie_word_embeddings", False), model.all_tied_weights_keys
    state_tying(model)
    try:
        yield
    finally:
        model.config.tie_word_embeddings, model.all_tied_weights_keys = said, keys


def _say(model: PreTrainedModel, tied: bool) -> None:
    model.config.tie_word_embeddings = tied
    # what device maps and quantizers take as tied: transformers reads it from the config once, at construction
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=False)
