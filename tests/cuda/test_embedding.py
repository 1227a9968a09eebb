"""Rows of int8 and of group-wise uint4 tables: CUDA kernels against the dequantized tables."""

import pytest
import torch

from ..ops.conftest import random_int8
from ..ops.weights import random_int8_weight, random_uint4_weight

IDS = [
    torch.tensor(4),
    torch.tensor([[3, 0], [1, 2]]).T,
    torch.tensor([7, 7], dtype=torch.int32),
    torch.empty(2, 0).long(),
]


@pytest.mark.parametrize(("vocab", "hidden"), [(1, 1), (40, 64), (33, 129), (17, 1100)])
def test_every_int8_row_is_its_integers_times_its_scale(kernels, vocab, hidden):
    table, ids = random_int8_weight(vocab, hidden), torch.arange(vocab)
    assert torch.equal(kernels.embedding_int8(ids, *table.args, hidden), table.dequantized())


@pytest.mark.parametrize("hidden", [1, 31, 100, 256])
@pytest.mark.parametrize("group_size", [32, 128])
def test_every_uint4_row_is_dequantized_group_by_group(kernels, hidden, group_size):
    table, ids = random_uint4_weight(21, hidden, group_size), torch.arange(21)
    assert torch.equal(kernels.embedding_int4(ids, *table.args, hidden, *table.sizes()), table.dequantized())


@pytest.mark.parametrize("ids", IDS, ids=str)
def test_ids_may_have_any_shape_strides_and_integer_type(kernels, ids):
    table = random_int8_weight(11, 9)
    assert torch.equal(kernels.embedding_int8(ids, *table.args, 9), table.dequantized()[ids.long()])
    table = random_uint4_weight(11, 40, 32)
    assert torch.equal(kernels.embedding_int4(ids, *table.args, 40, 11, 32), table.dequantized()[ids.long()])


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_vocabulary_ends_the_launch(token):
    """11 lies within the table's padding. Emulated alone: a GPU's context does not outlive it."""
    ids, kernels = torch.tensor([1, token]), torch.ops.quamba_emulated
    with pytest.raises(RuntimeError, match=f"token id {token} is outside the vocabulary of 11"):
        kernels.embedding_int8(ids, *random_int8_weight(11, 9).args, 9)
    with pytest.raises(RuntimeError, match=f"token id {token} is outside the vocabulary of 11"):
        kernels.embedding_int4(ids, *random_uint4_weight(11, 40, 32).args, 40, 11, 32)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": torch.tensor([1.5])}, "ids must be integers"),
        ({"weight": random_int8(11, 9)}, "weight must have shape"),
        ({"weight": torch.ones(1, 3, 16, 4, dtype=torch.uint8)}, "weight must be"),
        ({"weight": torch.ones(1, 3, 16, 8, dtype=torch.int8)[..., ::2]}, "weight must be contiguous"),
        ({"scale": torch.rand(17)}, "weight must have shape"),
        ({"scale": torch.rand(11, 1)}, "scale must have shape"),
        ({"scale": torch.rand(11).half()}, "scale must be"),
        ({"hidden": 13}, "weight must have shape"),
    ],
)
def test_misfitting_arguments_of_int8_are_refused_by_name(kernels, changed, message):
    arguments = dict(zip(("weight", "scale"), random_int8_weight(11, 9).args, strict=True))
    arguments |= {"ids": torch.tensor([1]), "hidden": 9}
    kernels.embedding_int8(**arguments)
    with pytest.raises(ValueError, match=message):
        kernels.embedding_int8(**arguments | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": torch.tensor([1.5])}, "ids must be integers"),
        ({"weight": torch.ones(11, 20, dtype=torch.uint8)}, "weight must have shape"),
        ({"weight": torch.ones(1, 5, 16, 4, dtype=torch.int8)}, "weight must be"),
        ({"scale": torch.ones(1, 3, 16).half()}, "scale must have shape"),
        ({"scale": torch.ones(1, 2, 16)}, "scale must be"),
        ({"zero": torch.ones(1, 3, 16, dtype=torch.uint8)}, "zero must have shape"),
        ({"hidden": 48}, "weight must have shape"),
        ({"vocab": 17}, "weight must have shape"),
        ({"group_size": 48}, "group_size must be .* got 48"),
    ],
)
def test_misfitting_arguments_of_uint4_are_refused_by_name(kernels, changed, message):
    arguments = dict(zip(("weight", "scale", "zero"), random_uint4_weight(11, 40, 32).args, strict=True))
    arguments |= {"ids": torch.tensor([1]), "hidden": 40, "vocab": 11, "group_size": 32}
    kernels.embedding_int4(**arguments)
    with pytest.raises(ValueError, match=message):
        kernels.embedding_int4(**arguments | changed)
