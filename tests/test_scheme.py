"""Schemes and recipes are data that survives a checkpoint's config.json."""

import json

import pytest

from quamba.errors import QuambaError
from quamba.scheme import SCHEMES, QuantizationRecipe, get_scheme


def test_w8a8_is_int8_per_channel_weights_and_int8_per_tensor_activations():
    scheme = get_scheme("w8a8")
    assert (scheme.weight.bits, scheme.weight.symmetric, scheme.weight.granularity) == (8, True, "per_channel")
    assert (scheme.act.bits, scheme.act.symmetric, scheme.act.granularity) == (8, True, "per_tensor")


def test_an_unknown_scheme_names_the_known_ones():
    with pytest.raises(QuambaError, match=r"w3a3.*w8a8"):
        get_scheme("w3a3")


@pytest.mark.parametrize("name", SCHEMES)
def test_a_recipe_survives_json(name):
    recipe = QuantizationRecipe(get_scheme(name), quantize_embedding=True, tied_head=True)
    assert QuantizationRecipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_recipe_with_an_unknown_field_or_scheme_is_refused():
    fields = QuantizationRecipe(get_scheme("w8a8")).to_dict()
    with pytest.raises(QuambaError, match="colour"):
        QuantizationRecipe.from_dict({**fields, "colour": "blue"})
    with pytest.raises(QuambaError, match="w1a1"):
        QuantizationRecipe.from_dict({**fields, "scheme": {**fields["scheme"], "name": "w1a1"}})
