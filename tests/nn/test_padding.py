"""Padding, wherever it stands: outputs, states and what follows are those of each row without its padding.

Dims: B rows of a batch, L tokens; a row's own tokens are 1 in the mask.
"""

import pytest
import torch
from transformers import DynamicCache

from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.nn.states import real_tokens
from tests.scheme_variants import VARIANTS, build_variant, calibrates, quantize_variant
from tests.tiny_falcon_mamba import tiny_falcon_mamba
from tests.tiny_hybrids import HYBRIDS

LENGTH = 13
MASKS = {  # [B, L], by name: B rows of unlike padding
    "right": [[1] * 13, [1] * 7 + [0] * 6, [1] * 2 + [0] * 11],
    "left, wider than the convolution": [[0] * 9 + [1] * 4, [0] * 1 + [1] * 12, [1] * 13],
    "middle": [[1] * 3 + [0] * 5 + [1] * 5, [0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0], [1] * 13],
    "nothing but padding": [[0] * 13, [1] * 13, [0] * 13],
}
FOLLOWING = torch.randint(0, 60, (3, 5), generator=torch.Generator().manual_seed(2))
TOKENS = torch.randint(0, 60, (3, LENGTH), generator=torch.Generator().manual_seed(3))
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=["mamba", "mamba2", "falcon"])
def tiny(request):
    """A function that builds a tiny Mamba of a family."""
    if request.param == "falcon":
        return tiny_falcon_mamba
    return request.getfixturevalue(f"tiny_{request.param}")


def states(cache) -> list[torch.Tensor]:
    """The states of every layer, of the convolution and of the recurrence in turn."""
    return [state[0] for layer in cache.layers for state in (layer.conv_states, layer.recurrent_states)]


def assert_near(actual, expected, exact: bool) -> None:
    if exact:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, **TOLERANCE)


def assert_alike(actual, expected) -> None:
    """Nearly the same: where float sums come in another order, an int8 activation may fall to the next integer."""
    assert (actual.float() - expected.float()).norm() <= 0.03 * expected.float().norm()


def backbone(model, tokens, cache, mask=None):
    """The hidden states before the head [B, L, H]."""
    return model.base_model(tokens, cache_params=cache, use_cache=True, attention_mask=mask).last_hidden_state


def assert_rows_are_alone(model, mask, exact):
    """Rows of a padded batch, and what continues them, against each row by itself."""
    cache = DynamicCache(config=model.config)
    together = backbone(model, TOKENS, cache, mask)
    after_prefill = [state.clone() for state in states(cache)]
    for last in (FOLLOWING[:, :1], FOLLOWING[:, 1:]):
        after = backbone(model, last, cache)
    for row, real in enumerate(mask.bool()):
        if not real.any():
            assert all(state[row].count_nonzero() == 0 for state in after_prefill)
            continue
        alone = DynamicCache(config=model.config)
        assert_near(together[row, real], backbone(model, TOKENS[None, row, real], alone)[0], exact)
        for actual, expected in zip(after_prefill, states(alone), strict=True):
            assert_near(actual[row : row + 1], expected, exact)
        for last in (FOLLOWING[:, :1], FOLLOWING[:, 1:]):
            expected = backbone(model, last[row : row + 1], alone)
        assert_near(after[row : row + 1], expected, exact)


@pytest.mark.parametrize("variant", ["float", *VARIANTS])
@pytest.mark.parametrize("name", MASKS)
@torch.inference_mode()
def test_a_padded_row_is_what_it_is_alone(tiny, variant, name):
    model = build_variant(tiny, variant)
    assert_rows_are_alone(model, torch.tensor(MASKS[name]), variant != "float" and calibrates(variant))


@pytest.mark.parametrize("variant", ["float", "w8a8"])
@torch.inference_mode()
def test_a_model_with_integer_states_or_limited_steps_is_padded_as_well(tiny_mamba2, variant):
    """Limits of dt keep a step from being 0: a padded position must not be one."""
    model = tiny_mamba2(time_step_limit=(0.05, 0.5))
    if variant == "float":
        install_float_mixers(model)
    else:
        model = quantize_variant(model, variant, observer="all=minmax", state_bits=8)
    assert_rows_are_alone(model, torch.tensor(MASKS["middle"]), exact=variant != "float")


@pytest.mark.parametrize("variant", ["float", "w8a8", "w4a16"])
@pytest.mark.parametrize("cuts", [[6, 7], [2, 3, 8], [12, 1]], ids=str)
@torch.inference_mode()
def test_chunks_continue_padded_rows(tiny, variant, cuts):
    """Pieces under a mask of all tokens so far, and under one of the piece alone; no row is padded in a single token,
    which transformers takes for real."""
    model = build_variant(tiny, variant)
    mask = torch.tensor([[1] * 13, [0] * 3 + [1] * 7 + [0] * 2 + [1], [1] * 4 + [0] * 8 + [1]])
    whole = DynamicCache(config=model.config)
    backbone(model, TOKENS, whole, mask)
    for covering in (True, False):
        cache, end = DynamicCache(config=model.config), 0
        for size in cuts:
            begin, end = end, end + size
            seen = mask[:, :end] if covering else mask[:, begin:end]
            backbone(model, TOKENS[:, begin:end], cache, seen)
        for actual, expected in zip(states(cache), states(whole), strict=True):
            assert_alike(actual, expected)  # Mamba2's sums depend on where its chunks begin


@pytest.mark.parametrize("variant", ["float", "w8a8", "w4a16"])
@torch.inference_mode()
def test_a_padded_single_token_moves_no_state(tiny, variant):
    model = build_variant(tiny, variant)
    mixer, cache = model.backbone.layers[0].mixer, DynamicCache(config=model.config)
    hidden = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    mixer(hidden, cache_params=cache)
    layer = cache.layers[0]
    before = [state[0].clone() for state in (layer.conv_states, layer.recurrent_states)]
    step, mask = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([[1], [0], [1]])
    y = mixer(step, cache_params=cache, attention_mask=mask)
    for old, new in zip(before, (layer.conv_states[0], layer.recurrent_states[0]), strict=True):
        assert torch.equal(old[1], new[1])
        assert not torch.equal(old[0], new[0]) and not torch.equal(old[2], new[2])
    assert y.isfinite().all()


@pytest.mark.parametrize("variant", ["float", "w8a8"])
@pytest.mark.parametrize("kind", HYBRIDS)
@torch.inference_mode()
def test_a_right_padded_row_of_a_hybrid_goes_on_as_it_does_alone(kind, variant):
    model = build_variant(HYBRIDS[kind], variant)
    mask = torch.tensor(MASKS["right"])
    together, length = DynamicCache(config=model.config), mask.sum(1, keepdim=True)
    model(TOKENS, attention_mask=mask, past_key_values=together, use_cache=True)
    mask, following = torch.cat([mask, torch.ones(3, 5, dtype=torch.int64)], dim=1), length + torch.arange(5)
    options = {"use_cache": True, "attention_mask": mask, "position_ids": following}
    after = model(FOLLOWING, past_key_values=together, **options).logits
    for row in range(3):
        alone = torch.cat([TOKENS[row, : length[row]], FOLLOWING[row]])[None]
        expected = model(alone, use_cache=False).logits[0, length[row] :]
        assert_alike(after[row], expected)


@pytest.mark.parametrize("variant", ["float", "w8a8"])
@torch.inference_mode()
def test_generation_from_padded_prompts_is_what_each_prompt_gives(tiny, variant):
    model = build_variant(tiny, variant)
    greedy = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 8}
    mask = torch.tensor(MASKS["left, wider than the convolution"])
    together = model.generate(TOKENS, attention_mask=mask, **greedy)[:, LENGTH:]
    for row, real in enumerate(mask.bool()):
        alone = TOKENS[None, row, real]
        expected = model.generate(alone, attention_mask=torch.ones_like(alone), **greedy)[:, alone.shape[1] :]
        assert together[row].tolist() == expected[0].tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_a_mask_may_be_of_any_dtype_and_cover_earlier_tokens(dtype):
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 0]], dtype=dtype)
    first, second, third, fourth = real_tokens(mask, 4, 3)
    assert (first, second, fourth) == (slice(0, 1), slice(0, 2), slice(0, 0))
    assert third.tolist() == [0, 2]
    assert real_tokens(mask[:, :0], 4, 0) is None
    assert real_tokens(torch.ones(4, 9, dtype=dtype), 4, 3) is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 1, 3, 3), r"\[2, 3 or more\] of ones and zeros, not \[2, 1, 3, 3\]"),
        (torch.ones(2, 2), r"not \[2, 2\]"),
        (torch.ones(1, 3), r"not \[1, 3\]"),
        (torch.tensor([[0.0, 0.0, -1e4], [0.0, 0.0, 0.0]]), "other values: 1 is a token, 0 is padding"),
        (torch.tensor([[1, 2, 1], [1, 1, 1]]), "other values"),
    ],
    ids=["of attention", "too short", "another batch", "additive", "segments"],
)
def test_other_masks_are_refused(tiny_mamba, mask, message):
    with pytest.raises(QuambaError, match=message):
        real_tokens(mask, 2, 3)
    model = build_variant(tiny_mamba, "w8a8")
    with pytest.raises(QuambaError, match=message):
        model(TOKENS[:2, :3], attention_mask=mask)


@torch.inference_mode()
def test_a_cache_of_another_batch_or_model_is_refused(tiny_mamba):
    model = build_variant(tiny_mamba, "w8a8")
    cache = DynamicCache(config=model.config)
    backbone(model, TOKENS, cache)
    with pytest.raises(QuambaError, match=r"a state \[3, 64, 4\] of torch.int8 .* \[2, 64, 4\] .*: give a new cache"):
        backbone(model, TOKENS[:2], cache)
    with pytest.raises(QuambaError, match=r"torch.int8 for layer 0, where .* torch.float32"):
        backbone(build_variant(tiny_mamba, "float"), TOKENS, cache)
