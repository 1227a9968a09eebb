"""A single token as one op over all blocks: what the blocks compute one by one, on every instruction set."""

import pytest
import torch
from transformers import DynamicCache

from quamba import ops
from quamba.nn.mamba1_step import Mamba1Step
from quamba.ops import reference
from tests.scheme_variants import TABLES, VARIANTS, calibrates, quantize_variant

OPTIONS = [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}, {"state_size": 16}]


def quantized(model, variant, **options):
    return quantize_variant(model, variant, **({"observer": "all=minmax"} if calibrates(variant) else {}) | options)


def prefilled(model, tokens):
    """A cache that has read the tokens."""
    cache = DynamicCache(config=model.config)
    model(tokens, cache_params=cache, use_cache=True)
    return cache


def prefilled_without(tiny_mamba, tokens):
    """States of a model of the same shape whose layers have no multipliers."""
    return prefilled(quantized(tiny_mamba(), "w8a8"), tokens)


def states(cache) -> tuple[list, list]:
    return [layer.conv_states[0] for layer in cache.layers], [layer.recurrent_states[0] for layer in cache.layers]


def mixers(model) -> list:
    return [layer.mixer for layer in model.backbone.layers]


@torch.inference_mode()
def blocks_one_by_one(model, hidden, cache):
    for layer in model.backbone.layers:
        hidden = layer(hidden[:, None], cache_params=cache)[:, 0]  # [B, H]
    return hidden


@pytest.fixture(params=torch.ops.quamba.cpu_capabilities())
def capability(request):
    with ops.force_cpu_capability(request.param):
        yield request.param


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_step_is_the_blocks_one_by_one(tiny_mamba, tokens, capability, variant, options):
    """Bit for bit, states included; three tokens, so that a wrong state shows."""
    model = quantized(tiny_mamba(**options), variant)
    separate, fused = prefilled(model, tokens), prefilled(model, tokens)
    step = Mamba1Step(mixers(model))
    for _ in range(3):
        hidden = torch.randn(len(tokens), model.config.hidden_size)
        expected = blocks_one_by_one(model, hidden, separate)
        step(hidden, *states(fused))
        assert torch.equal(hidden, expected)
    for actual, expected in zip(states(fused), states(separate), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
@torch.inference_mode()
def test_layers_and_head_may_have_weights_of_different_bits_and_groups(tiny_mamba, capability, tokens, scheme):
    """Layers of 8 bits, of 4 in groups of 32 and of 64, and a head of 3 bits in groups of 128."""
    options = {"scheme": scheme, "layer_schemes": [f"w8{scheme[2:]}", scheme, scheme]}
    options |= {"quantize_lm_head": True, "lm_head_bits": 3}
    sizes = {"num_hidden_layers": 3, "hidden_size": 256}
    model, other = (quantized(tiny_mamba(**sizes), scheme, group_size=size, **options) for size in (32, 64))
    model.backbone.layers[2].mixer = other.backbone.layers[2].mixer
    separate, fused = prefilled(model, tokens), prefilled(model, tokens)
    step = Mamba1Step.create(mixers(model), model.backbone.norm_f, model.lm_head)
    assert step.group_sizes == [0, 32, 64, 128]
    expected = model(tokens[:, :1], cache_params=separate, use_cache=True).logits[:, 0]
    hidden = model.backbone.embeddings(tokens[:, 0]).float()
    assert torch.equal(step(hidden, *states(fused)), expected)


def with_random_multipliers(model, act_bits: int):
    """The model with a vector for the input of each linear layer that takes one."""
    for mixer in mixers(model):
        for name in ("in_proj", "out_proj") if act_bits == 8 else ("in_proj", "x_proj", "dt_proj", "out_proj"):
            linear = getattr(mixer, name)
            linear.input_multiplier = torch.rand(linear.in_features) + 0.5
    return model


@pytest.mark.parametrize("variant", ["w8a8", "w4a8 dynamic", "w4a16"])
@torch.inference_mode()
def test_inputs_are_multiplied_as_in_the_blocks(tiny_mamba, tokens, capability, variant):
    model = with_random_multipliers(quantized(tiny_mamba(), variant), act_bits=8 if calibrates(variant) else 16)
    separate, fused, slow = (prefilled(model, tokens) for _ in range(3))
    step, hidden = Mamba1Step(mixers(model)), torch.randn(len(tokens), model.config.hidden_size)
    expected, by_reference = blocks_one_by_one(model, hidden, separate), hidden.clone()
    step(hidden, *states(fused))
    assert torch.equal(hidden, expected)
    arguments = (step.slots, *states(slow), step.base, *step.sizes, step.dynamic, None, [], None)
    reference.mamba1_step(by_reference, *arguments)
    assert (by_reference - expected).norm() / expected.norm() < (2e-2 if calibrates(variant) else 1e-4)


@torch.inference_mode()
def test_int8_inputs_with_one_scale_take_no_multiplier(tiny_mamba, tokens):
    model = with_random_multipliers(quantized(tiny_mamba(), "w8a8"), act_bits=16)
    step, cache = Mamba1Step(mixers(model)), prefilled_without(tiny_mamba, tokens)
    with pytest.raises(ValueError, match="int8 inputs of x_proj and dt_proj"):
        step(torch.randn(len(tokens), 32), *states(cache))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_step_matches_the_reference(tiny_mamba, tokens, capability, variant):
    """Within a few int8 steps of the largest activation: a value on a rounding boundary may fall to either side."""
    model = quantized(tiny_mamba(state_size=16), variant)
    step, caches = Mamba1Step(mixers(model)), [prefilled(model, tokens) for _ in range(2)]
    hidden = torch.randn(len(tokens), model.config.hidden_size)
    expected = hidden.clone()
    step(hidden, *states(caches[0]))
    arguments = (step.slots, *states(caches[1]), step.base, *step.sizes, step.dynamic, None, [], None)
    reference.mamba1_step(expected, *arguments)
    tolerance = {"rtol": 1e-2, "atol": 2e-2} if calibrates(variant) else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(hidden, expected, **tolerance)
    torch.testing.assert_close(states(caches[0])[1], states(caches[1])[1], **tolerance)


@pytest.mark.parametrize("tables", ["both 8", "both 4", "untied", "head"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_with_the_head_it_gives_the_models_logits(tiny_mamba, tokens, capability, variant, tables):
    """Bit for bit, and the reference's within the tolerance above."""
    options = TABLES[tables] | ({"observer": "all=minmax"} if calibrates(variant) else {})
    model = quantize_variant(tiny_mamba(), variant, **options)
    separate, fused = prefilled(model, tokens), prefilled(model, tokens)
    step, slow = Mamba1Step(mixers(model), model.backbone.norm_f, model.lm_head), prefilled(model, tokens)
    expected = model(tokens[:, :1], cache_params=separate, use_cache=True).logits[:, 0]
    hidden = model.backbone.embeddings(tokens[:, 0]).float()
    by_reference, copy = torch.empty_like(expected), hidden.clone()
    assert torch.equal(step(hidden, *states(fused)), expected)
    arguments = (step.slots, *states(slow), step.base, *step.sizes, step.dynamic, step.norm_weight, step.head)
    reference.mamba1_step(copy, *arguments, by_reference)
    difference = (by_reference - expected).norm() / expected.norm()
    assert difference < (2e-2 if calibrates(variant) else 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(tiny_mamba, tokens, variant):
    model = quantized(tiny_mamba(hidden_size=96), variant)
    step, results, threads = Mamba1Step(mixers(model)), [], torch.get_num_threads()
    hidden = torch.randn(len(tokens), 96)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(1)  # for the prefill, whose float products may depend on it
            cache = prefilled(model, tokens)
            torch.set_num_threads(count)
            result = hidden.clone()
            step(result, *states(cache))
            results.append(result)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@torch.inference_mode()
def test_misfitting_arguments_are_refused_by_name(tiny_mamba, tokens):
    model = quantized(tiny_mamba(), "w8a8")
    step, (conv, ssm) = Mamba1Step(mixers(model)), states(prefilled(model, tokens))
    hidden = torch.randn(2, 32)

    def run(hidden=hidden, slots=step.slots, conv=conv, ssm=ssm):
        ops.mamba1_step(hidden, slots, conv, ssm, step.base, *step.sizes, step.dynamic, None, [], None)

    with pytest.raises(ValueError, match="slots for each of the 1 conv_states"):
        run(conv=conv[:1])
    with pytest.raises(ValueError, match="in_proj must have shape"):
        run(hidden=torch.randn(2, 24))
    with pytest.raises(ValueError, match="ssm_state must have shape"):
        run(ssm=[state[:1] for state in ssm])
    with pytest.raises(ValueError, match="conv_state must be"):
        run(conv=[state.float() for state in conv])
    with pytest.raises(ValueError, match="every layer needs its scales"):
        taps = len(step.slots) - 3
        run(slots=[*step.slots[:taps], None, *step.slots[taps + 1 :]])
    run()
