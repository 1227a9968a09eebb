"""A single token as one op over all blocks: what the blocks compute one by one, on every instruction set."""

import pytest
import torch

from quamba import ops
from tests.nn.steps import (
    INT8_STATES,
    assert_steps_are_the_blocks,
    by_reference,
    mixers,
    prefilled,
    quantized,
    relative_error,
    states,
    step_of,
    tolerance,
)
from tests.scheme_variants import TABLES, VARIANTS, calibrates
from tests.tiny_falcon_mamba import tiny_falcon_mamba

FAMILIES = ["mamba", "falcon_mamba", "mamba2"]
CASES = [(family, variant) for family in FAMILIES for variant in VARIANTS]
INT8_STATE_CASES = [("mamba2", variant) for variant in INT8_STATES]
LONG_PARTS = {"state_size": 36, "time_step_rank": 40}  # more of dt, B and C than of anything else: their norms' lanes
ODD_CHANNELS = {"hidden_size": 12, "num_heads": 2}  # 24 channels: the convolution's begin within a block of outputs
OPTIONS = {
    "mamba": [{}, {"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}, {"state_size": 16}],
    "falcon_mamba": [{}, {"use_bias": True, "state_size": 16}, LONG_PARTS],
    "mamba2": [
        {},
        {"use_bias": True, "time_step_limit": (0.2, 0.9)},
        {"use_conv_bias": False, "n_groups": 1, "state_size": 16},
        {"conv_kernel": 3, "n_groups": 4},
        ODD_CHANNELS,
    ],
}


def ids(batch: int) -> torch.Tensor:
    return torch.randint(0, 60, (batch, 13), generator=torch.Generator().manual_seed(batch))


@pytest.fixture
def build(tiny_mamba, tiny_mamba2):
    """A function that builds a tiny random model of a family."""
    builders = {"mamba": tiny_mamba, "falcon_mamba": tiny_falcon_mamba, "mamba2": tiny_mamba2}
    return lambda family, **options: builders[family](**options)


@pytest.fixture(params=torch.ops.quamba.cpu_capabilities())
def capability(request):
    with ops.force_cpu_capability(request.param):
        yield request.param


@pytest.mark.parametrize(
    ("family", "variant", "options"),
    [(*case, options) for case in CASES + INT8_STATE_CASES for options in OPTIONS[case[0]]],
    ids=str,
)
def test_a_step_is_the_blocks_one_by_one(build, capability, family, variant, options):
    model = quantized(build(family, **options), variant)
    for batch in (1, 2, 3):
        assert_steps_are_the_blocks(model, ids(batch))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
@torch.inference_mode()
def test_layers_and_head_may_have_weights_of_different_bits_and_groups(build, capability, tokens, family, scheme):
    """Layers of 8 bits, of 4 in groups of 32 and of 64, and a head of 3 bits in groups of 128."""
    options = {"scheme": scheme, "layer_schemes": [f"w8{scheme[2:]}", scheme, scheme]}
    options |= {"quantize_lm_head": True, "lm_head_bits": 3}
    sizes = {"num_hidden_layers": 3, "hidden_size": 256}
    model, other = (quantized(build(family, **sizes), scheme, group_size=size, **options) for size in (32, 64))
    model.backbone.layers[2].mixer = other.backbone.layers[2].mixer
    assert_steps_are_the_blocks(model, tokens)
    separate, fused = prefilled(model, tokens), prefilled(model, tokens)
    step = step_of(model)
    assert step.group_sizes == [0, 32, 64, 128]
    expected = model(tokens[:, :1], cache_params=separate, use_cache=True).logits[:, 0]
    hidden = model.backbone.embeddings(tokens[:, 0]).float()
    assert torch.equal(step(hidden, *states(fused)), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["w8a8", "w4a8 dynamic", "w4a16"])
@torch.inference_mode()
def test_inputs_are_multiplied_as_in_the_blocks(build, tokens, capability, family, variant):
    model = quantized(build(family), variant)
    names = ["in_proj", "out_proj"]
    if family != "mamba2" and not calibrates(variant):
        names += ["x_proj", "dt_proj"]
    for mixer in mixers(model):
        for linear in (getattr(mixer, name) for name in names):
            linear.input_multiplier = torch.rand(linear.in_features) + 0.5
    assert_steps_are_the_blocks(model, tokens)
    step, hidden = step_of(model), torch.randn(2, 32)
    expected = hidden.clone()
    step(hidden, *states(prefilled(model, tokens)))
    with by_reference():
        step(expected, *states(prefilled(model, tokens)))
    assert relative_error(hidden, expected) < tolerance(variant)


@pytest.mark.parametrize(("family", "variant"), CASES + INT8_STATE_CASES)
@torch.inference_mode()
def test_a_step_matches_the_reference(build, tokens, capability, family, variant):
    limits = {"time_step_limit": (0.2, 0.9)} if family == "mamba2" else {}
    model = quantized(build(family, state_size=16, use_bias=True, **limits), variant)
    step, actual, slow = step_of(model), *(states(prefilled(model, tokens)) for _ in range(2))
    hidden = torch.randn(len(tokens), model.config.hidden_size)
    expected = hidden.clone()
    step(hidden, *actual)
    with by_reference():
        step(expected, *slow)
    assert relative_error(hidden, expected) < tolerance(variant)
    for state, wanted in zip(actual[1], slow[1], strict=True):
        assert relative_error(state, wanted) < tolerance(variant)


@pytest.mark.parametrize("tables", ["both 8", "both 4", "untied", "head"])
@pytest.mark.parametrize(("family", "variant"), CASES)
@torch.inference_mode()
def test_with_the_head_it_gives_the_models_logits(build, tokens, capability, family, variant, tables):
    """Bit for bit, and the reference's within the tolerance above."""
    model = quantized(build(family), variant, **TABLES[tables])
    step, caches = step_of(model), [prefilled(model, tokens) for _ in range(3)]
    expected = model(tokens[:, :1], cache_params=caches[0], use_cache=True).logits[:, 0]
    hidden = model.backbone.embeddings(tokens[:, 0]).float()
    assert torch.equal(step(hidden.clone(), *states(caches[1])), expected)
    with by_reference():
        assert relative_error(step(hidden, *states(caches[2])), expected) < tolerance(variant)


@pytest.mark.parametrize(
    ("family", "variant", "options"),
    [(*case, {"hidden_size": 96} | ({"num_heads": 6} if case[0] == "mamba2" else {})) for case in CASES]
    + [("mamba2", variant, ODD_CHANNELS) for variant in [*VARIANTS, "w8a8 int8 states"]],
    ids=str,
)
@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(build, family, variant, options):
    model, tokens = quantized(build(family, **options), variant), ids(3)
    step, results, threads = step_of(model), [], torch.get_num_threads()
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


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_float_and_of_int8_activations_are_no_step(build, family):
    assert step_of(quantized(build(family), "w8a8", layer_schemes=["w8a8", "w8a16"])) is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tables", "fits"), [("float", False), ("both 8", True)])
def test_a_quantized_head_is_a_part_of_the_step(build, family, tables, fits):
    assert bool(step_of(quantized(build(family), "w8a8", **TABLES[tables])).head) == fits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_with_other_activations_than_the_blocks_is_none(build, family):
    model = quantized(build(family), "w8a8", layer_schemes=["w8a16"] * 2, **TABLES["both 8"])
    assert step_of(model).head == []
