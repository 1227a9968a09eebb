"""A sequence in pieces, padded, beside others, on any number of threads: what agrees bit for bit, and what nearly.

As docs/numerics.md says under "What agrees bit for bit": what our kernels make of int8 activations does, hidden states,
recurrent states and a quantized head's logits, but where Mamba2's scan begins its chunks elsewhere. Float heads, float
mixers and float activations hold products of torch's BLAS, whose sums have another order for another number of rows.
"""

from itertools import chain
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from quamba import ops
from quamba.architectures.convert import install_float_mixers
from quamba.nn.embedding import QuantHead
from quamba.nn.mamba2 import SCAN_CHUNK
from tests.nn.steps import INT8_STATES, quantized, relative_error, states
from tests.scheme_variants import TABLES, VARIANTS, calibrates
from tests.tiny_falcon_mamba import tiny_falcon_mamba

TOLERANCE = 1e-5
# An int8 activation that lies between two integers may fall to either, and what follows differs by its step. That is up
# to a third of the largest of a few logits, whatever the kernels' accuracy, but little of the norm of all.
TIPPED = 2e-2
CUTS = [[13], [1] * 13, [6, 7], [1, 11, 1], [3, 1, 1, 8]]
FAMILIES = {
    "mamba": [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}],
    "falcon_mamba": [{}, {"use_bias": True}],
    "mamba2": [
        {},
        {"use_bias": True, "time_step_limit": (0.2, 0.9)},
        {"use_conv_bias": False, "n_groups": 1},
        {"conv_kernel": 3, "n_groups": 4},
    ],
}
INT8 = [variant for variant in VARIANTS if calibrates(variant)]
WITH_TABLES = [f"{variant} with tables" for variant in INT8]
KINDS = ["float", *VARIANTS, *WITH_TABLES]
by_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(params=torch.ops.quamba.cpu_capabilities())
def capability(request):
    with ops.force_cpu_capability(request.param):
        yield request.param


@pytest.fixture
def build(tiny_mamba, tiny_mamba2):
    """A function that builds a tiny model of a family and a kind."""
    builders = {"mamba": tiny_mamba, "falcon_mamba": tiny_falcon_mamba, "mamba2": tiny_mamba2}

    def built(family: str, kind: str, **options) -> PreTrainedModel:
        model = builders[family](**options)
        if kind == "float":
            install_float_mixers(model)
            return model
        return quantized(model, kind.removesuffix(" with tables"), **(TABLES["both"] if kind in WITH_TABLES else {}))

    return built


class Reading(NamedTuple):
    """What a model makes of tokens: the final norm's output [B, L, H], logits [B, L, V], the states of every layer."""

    hidden: Tensor
    logits: Tensor
    states: list[Tensor]


@torch.inference_mode()
def read(model: PreTrainedModel, tokens: Tensor, cuts: list[int] | None = None, **options) -> Reading:
    """Tokens [B, L] in pieces of these lengths, or in one."""
    cache, pieces = DynamicCache(config=model.config), []
    for piece in tokens.split(cuts or [tokens.shape[1]], dim=1):
        given = {"cache_params": cache, "use_cache": True, "output_hidden_states": True} | options
        pieces.append(model(piece, **given))
    hidden = torch.cat([piece.hidden_states[-1] for piece in pieces], dim=1)
    return Reading(hidden, torch.cat([piece.logits for piece in pieces], dim=1), [*chain(*states(cache))])


def assert_same(actual: Reading, expected: Reading, exact_logits: bool) -> None:
    """Bit for bit, but for a float head's logits."""
    assert torch.equal(actual.hidden, expected.hidden)
    assert all(torch.equal(*pair) for pair in zip(actual.states, expected.states, strict=True))
    if exact_logits:
        assert torch.equal(actual.logits, expected.logits)
    else:
        assert relative_error(actual.logits, expected.logits) < TOLERANCE


def assert_near(actual: Reading, expected: Reading, tolerance: float) -> None:
    pairs = [*zip(actual[:2], expected[:2], strict=True), *zip(actual.states, expected.states, strict=True)]
    for own, other in pairs:
        assert own.dtype == other.dtype
        assert relative_error(own, other) < tolerance


def compare(actual: Reading, expected: Reading, model: PreTrainedModel, kind: str, exact: bool) -> None:
    """`exact`: whether int8 activations agree bit for bit."""
    if kind not in INT8 + WITH_TABLES + INT8_STATES:
        assert_near(actual, expected, TOLERANCE)
    elif exact:
        assert_same(actual, expected, isinstance(model.lm_head, QuantHead))
    else:
        assert_near(actual, expected, TIPPED)


@pytest.mark.parametrize(
    ("family", "kind", "options"),
    [(family, kind, options) for family in FAMILIES for kind in KINDS for options in FAMILIES[family]],
    ids=str,
)
def test_a_sequence_may_come_in_pieces_and_single_tokens(build, capability, tokens, family, kind, options):
    """transformers' own float mixer forgets the SSM state between pieces; ours does not."""
    model = build(family, kind, **options)
    whole = read(model, tokens)
    for cuts in CUTS:
        compare(read(model, tokens, cuts), whole, model, kind, exact=family != "mamba2")


@pytest.mark.parametrize("kind", INT8 + WITH_TABLES)
def test_pieces_of_whole_chunks_agree_bit_for_bit_in_mamba2_too(build, capability, kind):
    """The last piece is no shorter than 16 tokens: fewer are summed one by one with AMX."""
    model, tokens = build("mamba2", kind), ids(2, 2 * SCAN_CHUNK + 16)
    whole = read(model, tokens)
    for cuts in ([SCAN_CHUNK, SCAN_CHUNK + 16], [SCAN_CHUNK, SCAN_CHUNK, 16], [2 * SCAN_CHUNK, 16]):
        compare(read(model, tokens, cuts), whole, model, kind, exact=True)


@by_family
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_left_padded_row_is_the_row_alone(build, capability, tokens, family, kind, use_bias):
    """The tokens after it too, which see the states that the row left."""
    model = build(family, kind, use_bias=use_bias)
    padded, more = torch.cat([torch.full((2, 4), 7), tokens], dim=1), torch.tensor([[7], [9]])
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    alone, together = read(model, tokens), read(model, padded, attention_mask=mask)
    together = Reading(together.hidden[:, 4:], together.logits[:, 4:], together.states)
    compare(together, alone, model, kind, exact=True)
    with torch.inference_mode():
        after = [
            model(more, cache_params=model(given, use_cache=True, **options).cache_params, use_cache=True).logits
            for given, options in ((tokens, {}), (padded, {"attention_mask": mask}))
        ]
    assert relative_error(after[1], after[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in FAMILIES for kind in KINDS] + [("mamba2", kind) for kind in INT8_STATES],
)
def test_rows_of_a_batch_do_not_see_each_other(build, capability, tokens, family, kind):
    model = build(family, kind)
    rows = [read(model, row[None]) for row in tokens]
    one_by_one = Reading(
        torch.cat([row.hidden for row in rows]),
        torch.cat([row.logits for row in rows]),
        [torch.cat(parts) for parts in zip(*(row.states for row in rows), strict=True)],
    )
    compare(one_by_one, read(model, tokens), model, kind, exact=True)


@by_family
@pytest.mark.parametrize("kind", ["w8a8", "w4a8 dynamic with tables"])
def test_the_number_of_threads_changes_nothing(build, capability, family, kind):
    sizes = {"hidden_size": 96} | ({"num_heads": 6} if family == "mamba2" else {})
    model, tokens, threads = build(family, kind, **sizes), ids(3, 151), torch.get_num_threads()
    try:
        readings = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            readings.append(read(model, tokens))
    finally:
        torch.set_num_threads(threads)
    for reading in readings:
        compare(reading, readings[0], model, kind, exact=True)


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(0, 60, (batch, length), generator=torch.Generator().manual_seed(length))
