"""Schemes and recipes are data that survives a checkpoint's config.json."""

import json
from dataclasses import asdict, replace

import pytest

from quamba.errors import QuambaError
from quamba.scheme.formats import (
    DYNAMIC,
    GROUP_SIZES,
    SCHEMES,
    STATIC,
    fitting_scheme,
    get_scheme,
    scheme_from_dict,
    variants,
)
from quamba.scheme.recipe import QuantizationRecipe, create_recipe

BOTH = {"quantize_embedding": True, "quantize_lm_head": True}


# --- schemes ---


def test_the_schemes_of_the_table():
    assert list(SCHEMES) == ["w8a8", "w4a8", "w3a8", "w8a16", "w4a16", "w3a16"]
    for name, scheme in SCHEMES.items():
        assert name == scheme.name == f"w{scheme.weight.bits}a{scheme.act.bits}"
        assert get_scheme(name) == scheme


def test_8_bit_weights_are_symmetric_per_channel_and_4_bit_ones_asymmetric_per_group():
    weight = get_scheme("w8a8").weight
    assert (weight.symmetric, weight.granularity, weight.group_size) == (True, "per_channel", None)
    weight = get_scheme("w4a8").weight
    assert (weight.symmetric, weight.granularity, weight.group_size) == (False, "per_group", 128)
    assert [get_scheme("w4a16", size).weight.group_size for size in GROUP_SIZES] == [32, 64, 128, 256]


def test_activations_are_int8_per_tensor_or_per_token_or_float():
    assert get_scheme("w4a8").act.granularity == "per_tensor"
    assert get_scheme("w4a8", dynamic=True).act.granularity == "per_token"
    assert get_scheme("w4a16").act.granularity == "none"


def test_the_convolution_is_int8_with_int8_activations_and_float_with_float_ones():
    assert get_scheme("w4a8").conv_weight == get_scheme("w8a8").weight
    assert get_scheme("w8a16").conv_weight == get_scheme("w8a16").act


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w3a3",), "unknown scheme 'w3a3': choose one of w8a8, w4a8, w3a8, w8a16, w4a16, w3a16"),
        (("w8a8", 64), "group_size 64 needs 4 or 3-bit weights: 8-bit ones have a scale per channel"),
        (("w8a16", 128), "group_size 128 needs 4 or 3-bit weights"),
        (("w4a8", 48), "group_size 48 has no kernels: choose of 32, 64, 128, 256"),
        (("w4a8", 0), "group_size 0 has no kernels"),
        (("w4a8", 64.0), "group_size 64.0 has no kernels"),
        (("w4a16", 64, True), "dynamic scales are those of 8-bit activations: scheme w4a16 leaves activations float"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(arguments, message):
    with pytest.raises(QuambaError) as error:
        get_scheme(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "scheme", list(variants()), ids=lambda scheme: f"{scheme.weight.describe()}, {scheme.act.describe()}"
)
def test_every_variant_is_read_back(scheme):
    assert scheme_from_dict(json.loads(json.dumps(asdict(scheme)))) == scheme


def test_there_are_as_many_variants_as_there_are_combinations():
    found = list(variants())
    assert len(set(found)) == len(found) == (2 + 1) + 2 * 4 * (2 + 1)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("weight", {"group_size": 48}),
        ("weight", {"bits": 8}),
        ("weight", {"symmetric": True}),
        ("weight", {"granularity": "per_channel"}),
        ("act", {"bits": 16}),
        ("act", {"granularity": "per_group"}),
        ("act", {"group_size": 32}),
    ],
    ids=str,
)
def test_a_scheme_that_no_kernel_runs_is_refused(part, changes):
    fields = asdict(get_scheme("w4a8"))
    fields[part] |= changes
    with pytest.raises(QuambaError, match=r"is not one this version runs \(w8a8, w4a8, w3a8, w8a16, w4a16, w3a16\)"):
        scheme_from_dict(fields)


# --- recipes ---


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("options", [{}, BOTH, BOTH | {"embedding_bits": 8, "lm_head_bits": 4}], ids=str)
def test_a_recipe_survives_json(name, options):
    recipe = create_recipe(name, tied=True, **options)
    assert QuantizationRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "options",
    [
        {"layer_schemes": ("w4a8", "w8a8", "w4a8")},
        {"layer_schemes": ("w4a16", "w8a8"), "group_size": 64, "dynamic": True, **BOTH},
        {"layer_schemes": ("w3a8", "w8a8"), "state_bits": 8, "reordered": True},
    ],
    ids=str,
)
def test_so_does_one_with_layers_of_their_own(options):
    recipe = create_recipe("w8a8", tied=True, **options)
    assert [scheme.name for scheme in recipe.layers] == list(options["layer_schemes"])
    assert [recipe.layer_scheme(index) for index in range(len(recipe.layers))] == list(recipe.layers)
    assert QuantizationRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert QuantizationRecipe.from_dict(recipe.to_dict()) == recipe


def test_without_layers_of_their_own_all_have_the_scheme():
    recipe = create_recipe("w4a8", tied=True)
    assert (recipe.layers, recipe.block_schemes, recipe.name) == ((), (recipe.scheme,), "w4a8")
    assert recipe.layer_scheme(7) == recipe.scheme


def test_the_name_says_what_layers_there_are_once():
    assert create_recipe("w8a8", tied=True, layer_schemes=("w8a8", "w4a8", "w8a8")).name == "w4a8+w8a8"
    assert create_recipe("w8a8", tied=True, layer_schemes=("w4a8", "w4a8")).name == "w4a8"


@pytest.mark.parametrize(
    ("scheme", "options", "acts"),
    [
        ("w8a8", {}, [STATIC]),
        ("w8a8", {"dynamic": True}, [DYNAMIC]),
        ("w8a16", {**BOTH}, []),
        ("w8a8", {"layer_schemes": ("w4a16", "w8a16")}, []),
        ("w8a8", {"layer_schemes": ("w4a16", "w8a16"), **BOTH}, [STATIC]),  # of the head
        ("w8a16", {"layer_schemes": ("w4a8", "w8a16"), **BOTH}, [STATIC]),
        ("w8a8", {"layer_schemes": ("w4a8", "w8a16"), "dynamic": True, **BOTH}, [DYNAMIC]),
    ],
    ids=str,
)
def test_activations_are_integers_where_a_layer_or_the_head_has_some(scheme, options, acts):
    recipe = create_recipe(scheme, tied=True, **options)
    assert list(recipe.integer_acts) == acts
    assert recipe.quantizes_activations == bool(acts)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize(("group_size", "dynamic"), [(None, False), (64, True)])
def test_a_fitting_scheme_takes_what_it_has_a_use_for(name, group_size, dynamic):
    found = fitting_scheme(name, group_size, dynamic)
    assert found.weight.group_size == (None if name.startswith("w8") else group_size or 128)
    assert (found.act == DYNAMIC) == (dynamic and name.endswith("a8"))
    assert found.name == name


def test_embedding_and_head_have_the_bits_of_the_weights_or_their_own():
    assert create_recipe("w4a8", tied=True).embedding_bits is create_recipe("w4a8", tied=True).lm_head_bits is None
    recipe = create_recipe("w4a8", tied=True, **BOTH, lm_head_bits=8)
    assert (recipe.embedding_bits, recipe.lm_head_bits) == (4, 8)


def test_a_4_bit_table_has_the_groups_of_4_bit_weights_and_128_beside_8_bit_ones():
    assert create_recipe("w4a8", tied=True, group_size=64).table(4).group_size == 64
    assert create_recipe("w8a8", tied=True).table(4).group_size == 128
    assert create_recipe("w4a8", tied=True, group_size=64).table(8) == get_scheme("w8a8").weight


@pytest.mark.parametrize(
    ("tied", "options", "expected"),
    [
        (True, BOTH, True),
        (False, BOTH, False),
        (True, BOTH | {"untie": True}, False),
        (True, BOTH | {"rotate_residual": True}, False),
        (True, BOTH | {"lm_head_bits": 8}, False),
        (True, BOTH | {"lm_head_bits": 4}, True),
        (True, {"quantize_lm_head": True}, False),
        (True, {"quantize_embedding": True}, False),
        (True, {}, False),
    ],
    ids=str,
)
def test_a_tied_pair_of_the_same_bits_stays_one_table_unless_asked(tied, options, expected):
    assert create_recipe("w4a8", tied=tied, **options).tied_head is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_bits": 4}, "embedding_bits 4 does nothing without quantize_embedding"),
        ({"lm_head_bits": 8}, "lm_head_bits 8 does nothing without quantize_lm_head"),
        ({"quantize_embedding": True, "embedding_bits": 5}, "embedding_bits are 3, 4 or 8, not 5"),
        ({"quantize_embedding": True, "embedding_bits": 0}, "embedding_bits are 3, 4 or 8, not 0"),
        ({"quantize_lm_head": True, "lm_head_bits": 16}, "lm_head_bits are 3, 4 or 8, not 16"),
        ({"quantize_lm_head": True, "lm_head_bits": 0}, "lm_head_bits are 3, 4 or 8, not 0"),
        ({"state_bits": 16}, "SSM states have 8 or 32 bits, not 16"),
        ({"state_bits": 8, "layer_schemes": ("w8a8", "w8a16")}, "SSM states of 8 bits need 8-bit activations in every"),
        ({"layer_schemes": ("w8a8", "w5a8")}, "unknown scheme 'w5a8'"),
        ({"layer_schemes": "w4a8"}, "a list of names, one a layer, not 'w4a8'"),
        ({"layer_schemes": ("w8a8", "w8a16"), "group_size": 64}, "group_size 64 needs layers of 4 or 3-bit weights"),
        ({"layer_schemes": ("w4a8", "w8a8"), "group_size": 65}, "group_size 65 has no kernels"),
        ({"layer_schemes": ("w4a16", "w8a16"), "dynamic": True}, "every layer leaves activations float"),
        ({"untie": True}, "to untie embedding and head does nothing unless both are quantized"),
        ({"untie": True, "quantize_lm_head": True}, "does nothing unless both are quantized"),
    ],
    ids=str,
)
def test_a_recipe_that_means_nothing_is_refused(options, message):
    with pytest.raises(QuambaError, match=message):
        create_recipe("w8a8", tied=True, **options)


def test_a_recipe_with_an_unknown_field_scheme_or_table_is_refused():
    recipe = create_recipe("w8a8", tied=True, **BOTH)
    fields = recipe.to_dict()
    with pytest.raises(QuambaError, match="colour"):
        QuantizationRecipe.from_dict({**fields, "colour": "blue"})
    with pytest.raises(QuambaError, match="w1a1"):
        QuantizationRecipe.from_dict({**fields, "scheme": {**fields["scheme"], "name": "w1a1"}})
    with pytest.raises(QuambaError, match="embedding_bits are 3, 4 or 8, not True"):
        QuantizationRecipe.from_dict({**fields, "embedding_bits": True})
    with pytest.raises(QuambaError, match="cannot serve an embedding of 8 and a head of 4 bits"):
        replace(recipe, lm_head_bits=4)


def test_a_recipe_describes_itself():
    recipe = create_recipe("w4a8", tied=True, group_size=64, dynamic=True, **BOTH, rotate_residual=True, lm_head_bits=8)
    assert recipe.describe() == (
        "weights uint4 per group of 64, activations int8 per token, embedding uint4 per group of 64, "
        "head int8 per channel, rotated residual"
    )
    assert create_recipe("w8a16", tied=True, **BOTH).describe() == (
        "weights int8 per channel, activations float, one table for embedding and head int8 per channel"
    )
    layers = ("w4a8", "w8a8", "w4a8")
    assert create_recipe("w8a8", tied=True, layer_schemes=layers, state_bits=8, reordered=True).describe() == (
        "2 of 3 layers w4a8 (weights uint4 per group of 128, activations int8 per tensor), "
        "1 of 3 layers w8a8 (weights int8 per channel, activations int8 per tensor), grouped heads, int8 SSM states"
    )


def test_activations_are_those_of_the_layers_that_have_a_mamba_block():
    recipe = create_recipe("w8a8", tied=True)
    assert recipe.describe([True, True]) == recipe.describe()
    assert recipe.describe([True, False, True]) == (
        "weights int8 per channel, activations int8 per tensor in 2 Mamba blocks, float in the other layers"
    )
    assert create_recipe("w8a16", tied=True).describe([False, True]).endswith("activations float")
    layers = ("w8a8", "w4a8", "w8a8", "w8a16")
    assert create_recipe("w8a8", tied=True, layer_schemes=layers).describe([True, False, False, False]) == (
        "2 of 4 layers w8a8 (weights int8 per channel, activations int8 per tensor in 1 Mamba block, float in the "
        "other layers), 1 of 4 layers w4a8 (weights uint4 per group of 128, activations float: no Mamba block), "
        "1 of 4 layers w8a16 (weights int8 per channel, activations float)"
    )
