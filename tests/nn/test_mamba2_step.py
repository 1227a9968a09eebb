"""A single token as one op over all Mamba2 blocks: what the blocks compute one by one, on every instruction set."""

import pytest
import torch
from transformers import DynamicCache

from quamba import ops
from quamba.nn.mamba2_step import Mamba2Step
from quamba.ops import reference
from tests.scheme_variants import TABLES, VARIANTS, calibrates, quantize_variant

ODD_CHANNELS = {"hidden_size": 12, "num_heads": 2}  # 24 channels: the convolution's begin within a block of outputs
OPTIONS = [
    {},
    {"use_bias": True, "time_step_limit": (0.2, 0.9)},
    {"use_conv_bias": False, "n_groups": 1, "state_size": 16},
    {"conv_kernel": 3, "n_groups": 4},
    ODD_CHANNELS,
]
INT8_STATES = [f"{variant} int8 states" for variant in VARIANTS if calibrates(variant)]


def quantized(model, variant, **options):
    """The model in a variant, which may say `int8 states` too."""
    if variant in INT8_STATES:
        variant, options = variant.removesuffix(" int8 states"), {"state_bits": 8} | options
    return quantize_variant(model, variant, **({"observer": "all=minmax"} if calibrates(variant) else {}) | options)


def tolerance(variant: str) -> float:
    """Of a relative difference to the reference: an int8 value between two integers may fall to either."""
    return 1e-4 if variant.endswith("a16") else 2e-2


def ids(batch: int) -> torch.Tensor:
    return torch.randint(0, 60, (batch, 13), generator=torch.Generator().manual_seed(batch))


@torch.inference_mode()
def prefilled(model, tokens):
    """A cache that has read the tokens."""
    cache = DynamicCache(config=model.config)
    model(tokens, cache_params=cache, use_cache=True)
    return cache


def states(cache) -> tuple[list, list]:
    return [layer.conv_states[0] for layer in cache.layers], [layer.recurrent_states[0] for layer in cache.layers]


def mixers(model) -> list:
    return [layer.mixer for layer in model.backbone.layers]


@torch.inference_mode()
def blocks_one_by_one(model, hidden, cache):
    for layer in model.backbone.layers:
        hidden = layer(hidden[:, None], cache_params=cache)[:, 0]  # [B, H]
    return hidden


@torch.inference_mode()
def assert_steps_are_the_blocks(model, tokens) -> None:
    """Bit for bit, states included; three tokens, so that a wrong state shows."""
    separate, fused, step = prefilled(model, tokens), prefilled(model, tokens), Mamba2Step(mixers(model))
    for _ in range(3):
        hidden = torch.randn(len(tokens), model.config.hidden_size)
        expected = blocks_one_by_one(model, hidden, separate)
        step(hidden, *states(fused))
        assert torch.equal(hidden, expected)
    for actual, expected in zip(states(fused), states(separate), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@torch.inference_mode()
def by_reference(step, hidden, cache, norm_weight=None, head=(), logits=None):
    """What the reference makes of hidden [B, H]."""
    hidden = hidden.clone()
    arguments = (step.slots, *states(cache), step.base, *step.sizes, step.dynamic, norm_weight, list(head), logits)
    reference.mamba2_step(hidden, *arguments)
    return hidden


def relative_error(actual, expected) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


@pytest.fixture(params=torch.ops.quamba.cpu_capabilities())
def capability(request):
    with ops.force_cpu_capability(request.param):
        yield request.param


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", [*VARIANTS, *INT8_STATES])
def test_a_step_is_the_blocks_one_by_one(tiny_mamba2, capability, variant, options):
    model = quantized(tiny_mamba2(**options), variant)
    for batch in (1, 2, 3):
        assert_steps_are_the_blocks(model, ids(batch))


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
def test_layers_may_have_weights_of_different_bits_and_groups(tiny_mamba2, capability, tokens, scheme):
    options, sizes = {"layer_schemes": [f"w8{scheme[2:]}", scheme, scheme]}, {"num_hidden_layers": 3, "hidden_size": 96}
    model, other = (quantized(tiny_mamba2(**sizes), scheme, group_size=size, **options) for size in (32, 64))
    model.backbone.layers[2].mixer = other.backbone.layers[2].mixer
    assert [mixer.scheme.weight.group_size for mixer in mixers(model)] == [None, 32, 64]
    assert_steps_are_the_blocks(model, tokens)


@pytest.mark.parametrize("variant", ["w8a8", "w4a8 dynamic", "w4a16"])
@torch.inference_mode()
def test_inputs_are_multiplied_as_in_the_blocks(tiny_mamba2, tokens, capability, variant):
    model = quantized(tiny_mamba2(), variant)
    for mixer in mixers(model):
        for linear in (mixer.in_proj, mixer.out_proj):
            linear.input_multiplier = torch.rand(linear.in_features) + 0.5
    assert_steps_are_the_blocks(model, tokens)
    step, hidden, cache = Mamba2Step(mixers(model)), torch.randn(2, 32), prefilled(model, tokens)
    expected = by_reference(step, hidden, prefilled(model, tokens))
    step(hidden, *states(cache))
    assert relative_error(hidden, expected) < tolerance(variant)


@pytest.mark.parametrize("variant", [*VARIANTS, *INT8_STATES])
@torch.inference_mode()
def test_a_step_matches_the_reference(tiny_mamba2, tokens, capability, variant):
    model = quantized(tiny_mamba2(use_bias=True, time_step_limit=(0.2, 0.9)), variant)
    step, caches = Mamba2Step(mixers(model)), [prefilled(model, tokens) for _ in range(2)]
    hidden = torch.randn(len(tokens), model.config.hidden_size)
    expected = by_reference(step, hidden, caches[1])
    step(hidden, *states(caches[0]))
    assert relative_error(hidden, expected) < tolerance(variant)
    for actual, wanted in zip(states(caches[0])[1], states(caches[1])[1], strict=True):
        assert relative_error(actual, wanted) < tolerance(variant)


@pytest.mark.parametrize("tables", ["both 8", "both 4", "untied", "head"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_with_the_head_it_gives_the_models_logits(tiny_mamba2, tokens, capability, variant, tables):
    """Bit for bit, and the reference's within the tolerance above."""
    model = quantized(tiny_mamba2(), variant, **TABLES[tables])
    separate, fused = prefilled(model, tokens), prefilled(model, tokens)
    step = Mamba2Step(mixers(model), model.backbone.norm_f, model.lm_head)
    expected = model(tokens[:, :1], cache_params=separate, use_cache=True).logits[:, 0]
    hidden, logits = model.backbone.embeddings(tokens[:, 0]).float(), torch.empty_like(expected)
    by_reference(step, hidden, prefilled(model, tokens), step.norm_weight, step.head, logits)
    assert torch.equal(step(hidden, *states(fused)), expected)
    assert relative_error(logits, expected) < tolerance(variant)


@pytest.mark.parametrize("options", [{"hidden_size": 96, "num_heads": 6}, ODD_CHANNELS], ids=str)
@pytest.mark.parametrize("variant", [*VARIANTS, "w8a8 int8 states"])
@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(tiny_mamba2, variant, options):
    model, tokens = quantized(tiny_mamba2(**options), variant), ids(3)
    step, results, threads = Mamba2Step(mixers(model)), [], torch.get_num_threads()
    hidden = torch.randn(len(tokens), model.config.hidden_size)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(1)  # for the prefill, whose float products may depend on it
            cache = prefilled(model, tokens)
            torch.set_num_threads(count)
            result = hidden.clone()
            step(result, *states(cache))
            results.append((result, *states(cache)[1]))
    finally:
        torch.set_num_threads(threads)
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


# --- what one op can run ---


def test_blocks_of_float_and_of_int8_activations_are_no_step(tiny_mamba2):
    model = quantized(tiny_mamba2(), "w8a8", layer_schemes=["w8a8", "w8a16"])
    assert Mamba2Step.create(mixers(model), model.backbone.norm_f, model.lm_head) is None


@pytest.mark.parametrize(("tables", "fits"), [("float", False), ("both 8", True)])
def test_a_quantized_head_is_a_part_of_the_step(tiny_mamba2, tables, fits):
    model = quantized(tiny_mamba2(), "w8a8", **TABLES[tables])
    step = Mamba2Step.create(mixers(model), model.backbone.norm_f, model.lm_head)
    assert bool(step.head) == fits


def test_a_head_with_other_activations_than_the_blocks_is_none(tiny_mamba2):
    model = quantized(tiny_mamba2(), "w8a8", layer_schemes=["w8a16"] * 2, **TABLES["both 8"])
    assert Mamba2Step.create(mixers(model), model.backbone.norm_f, model.lm_head).head == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": torch.randn(2, 24)}, "in_proj must have shape"),
        ({"conv_states": lambda states: states[:1]}, "slots for each of the 1 conv_states"),
        ({"conv_states": lambda states: [state.float() for state in states]}, "conv_state must be"),
        ({"ssm_states": lambda states: [states[0], states[1][:1]]}, "ssm_state must have shape"),
        ({"ssm_states": lambda states: [state.char() for state in states]}, "ssm_state must be"),
        ({"groups": 3}, "4 heads do not split into 3 groups"),
        ({"dt_limits": (1.0, 0.5)}, "dt_min 1 is over dt_max 0.5"),
        ({"group_sizes": [0]}, "group_sizes must be one of each layer"),
        ({"slot": "tap_scales"}, "every layer needs its scales"),
        ({"slot": "dt_bias"}, "a layer lacks A, D or dt_bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
@torch.inference_mode()
def test_misfitting_arguments_are_refused_by_name(tiny_mamba2, tokens, changed, message):
    model = quantized(tiny_mamba2(), "w8a8")
    step, (conv, ssm) = Mamba2Step(mixers(model)), states(prefilled(model, tokens))
    slots, (groups, eps, *limits, group_sizes) = list(step.slots), step.sizes
    if "slot" in changed:  # the last layer's
        names = ops.schemas.MAMBA2_STEP_SLOTS
        slots[names.index(changed["slot"]) - len(names)] = None
    conv, ssm = (changed.get(name, list)(value) for name, value in (("conv_states", conv), ("ssm_states", ssm)))
    sizes = (changed.get("groups", groups), eps, *changed.get("dt_limits", limits))
    arguments = (slots, conv, ssm, step.base, *sizes, changed.get("group_sizes", group_sizes), False, None, [], None)
    with pytest.raises(ValueError, match=message):
        ops.mamba2_step(changed.get("hidden", torch.randn(2, 32)), *arguments)
