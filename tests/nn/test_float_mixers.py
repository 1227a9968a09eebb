"""The float mixers compute the recurrences of the papers, however the tokens come; where transformers does not."""

import pytest
import torch
from transformers import DynamicCache

from quamba.architectures.convert import install_float_mixers
from tests.nn.plain_recurrence import plain_logits

LIMITS = {"time_step_limit": (0.2, 0.9)}  # of dt, which the tiny model's biases let lie between 0.05 and 1.3
OPTIONS = [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}, {"expand": 4}]
MAMBA2_OPTIONS = [{"n_groups": groups} | options for groups in (1, 2, 4) for options in ({}, LIMITS)]
MAMBA2_OPTIONS += [{"num_heads": 2, "state_size": 5}, {"use_bias": True} | LIMITS, {"num_heads": 8, "n_groups": 8}]


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def continued(model, tokens, cuts) -> torch.Tensor:
    """Logits [B, L, V] of tokens that come in pieces of these lengths, on one cache."""
    cache = DynamicCache(config=model.config)
    pieces = [model(piece, cache_params=cache, use_cache=True).logits for piece in tokens.split(cuts, dim=1)]
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [6, 7], [1, 11, 1], [3, 1, 1, 8]], ids=str)
@torch.inference_mode()
def test_the_mixers_compute_the_recurrence_in_pieces_of_any_length(tiny_ssm, tokens, options, cuts):
    model = tiny_ssm(**options)
    expected = plain_logits(model, tokens)
    install_float_mixers(model)
    assert_same(continued(model, tokens, cuts), expected)


@pytest.mark.parametrize("options", MAMBA2_OPTIONS, ids=str)
@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 1, 7]], ids=str)
@torch.inference_mode()
def test_mamba2_with_groups_of_heads_and_limits_of_dt(tiny_mamba2, tokens, options, cuts):
    model = tiny_mamba2(**options)
    expected = plain_logits(model, tokens)
    install_float_mixers(model)
    assert_same(continued(model, tokens, cuts), expected)


@torch.inference_mode()
def test_limits_of_dt_that_matter(tiny_mamba2, tokens):
    """What the tests above compare is not the same without them."""
    with_limits, without = plain_logits(tiny_mamba2(**LIMITS), tokens), plain_logits(tiny_mamba2(), tokens)
    assert (with_limits - without).abs().max() > 0.02


@pytest.mark.parametrize("options", [*OPTIONS, LIMITS], ids=str)
@torch.inference_mode()
def test_a_whole_sequence_is_what_transformers_computes(tiny_ssm, tokens, options):
    expected = tiny_ssm(**options)(tokens).logits
    model = tiny_ssm(**options)
    install_float_mixers(model)
    assert_same(model(tokens).logits, expected)


@pytest.mark.parametrize("use_bias", [False, True])
@torch.inference_mode()
def test_a_left_padded_row_has_the_logits_it_has_alone(tiny_ssm, tokens, use_bias):
    model = tiny_ssm(use_bias=use_bias)
    expected = plain_logits(model, tokens)
    install_float_mixers(model)
    padded = torch.cat([torch.full((2, 4), 7), tokens], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    output = model(padded, attention_mask=mask, use_cache=True)
    assert_same(output.logits[:, 4:], expected)
    more = torch.tensor([[7], [9]])
    after = model(more, cache_params=output.cache_params, use_cache=True).logits
    assert_same(after, plain_logits(model, torch.cat([tokens, more], dim=1))[:, -1:])


def test_the_parameters_keep_their_names(tiny_ssm):
    model = tiny_ssm(use_bias=True)
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    install_float_mixers(model)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


# --- errors of transformers' own mixers: comparisons with them have to go round these ---


@torch.inference_mode()
def test_transformers_mamba_forgets_the_state_between_pieces(tiny_mamba, tokens):
    model = tiny_mamba()
    expected = plain_logits(model, tokens)
    assert_same(continued(model, tokens, [13]), expected)
    assert (continued(model, tokens, [6, 7]) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_transformers_mamba2_has_no_limits_of_dt_in_single_steps(tiny_mamba2, tokens):
    model = tiny_mamba2(**LIMITS)
    expected = plain_logits(model, tokens)
    assert_same(continued(model, tokens, [6, 7]), expected)
    assert (continued(model, tokens, [6, *[1] * 7]) - expected).abs().max() > 1e-2


@torch.inference_mode()
def test_a_bias_leaks_into_the_convolution_of_transformers_padded_rows(tiny_ssm, tokens):
    """It masks before in_proj, whose bias then makes a padded position one of the convolution's inputs."""
    mask = torch.ones(2, 17, dtype=torch.int64)
    mask[:, :4] = 0
    padded = torch.cat([torch.full((2, 4), 7), tokens], dim=1)
    for use_bias, leaks in ((False, False), (True, True)):
        model = tiny_ssm(use_bias=use_bias)
        error = (model(padded, attention_mask=mask).logits[:, 4:] - plain_logits(model, tokens)).abs().max()
        assert (error > 1e-3) == leaks
