"""The options of mixed precision: what they mean, and which combinations are mistakes."""

import argparse
import json
from pathlib import Path

import pytest

from quamba import QuambaError
from quamba.calibration.channel_groups import ChannelGroups
from quamba.commands.quantize import mixed_precision_options, recipe_options
from quamba.commands.quantize.parser import build_parser

CONFIG = {"model_type": "mamba", "num_hidden_layers": 4}
FILE = {"1-2": "w4a8", "default": "w8a8"}


@pytest.fixture
def file(tmp_path):
    """A function that writes a file of schemes and gives the options that read it."""

    def write(content) -> list[str]:
        path = tmp_path / "schemes.json"
        path.write_text(json.dumps(content))
        return ["--hybrid_blocks", "--hybrid_blocks_config", str(path)]

    return write


def parse(*options) -> argparse.Namespace:
    return build_parser().parse_args(["model", "--quantize", *options])


def test_without_options_all_layers_have_one_scheme():
    args = parse()
    assert not mixed_precision_options.is_mixed_precision(args)
    assert mixed_precision_options.requested_search(args) is None
    assert mixed_precision_options.layer_schemes(args, CONFIG) == ()
    assert recipe_options.run_name(args) == "w8a8"


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
def test_a_file_gives_every_layer_a_scheme(file, key):
    args = parse(*file(FILE))
    assert mixed_precision_options.layer_schemes(args, {key: 4}) == ("w8a8", "w4a8", "w4a8", "w8a8")
    assert mixed_precision_options.layer_schemes(args, None) == ()
    assert recipe_options.recipe_arguments(args, {key: 4})["layer_schemes"] == ("w8a8", "w4a8", "w4a8", "w8a8")
    assert recipe_options.run_name(args) == "w8a8-hybrid"


def test_options_may_be_for_some_of_the_layers(file):
    """That 8-bit weights, the default, have no groups says nothing of the layers."""
    args = parse(*file(FILE), "--group_size", "64", "--dynamic")
    recipe_options.recipe_arguments(args)
    schemes = recipe_options.recipe(args, tied=True, config=CONFIG).layers
    assert [scheme.weight.group_size for scheme in schemes] == [None, 64, 64, None]
    with pytest.raises(QuambaError, match="group_size 64 needs layers of 4 or 3-bit weights"):
        recipe_options.recipe_arguments(parse(*file(["w8a8"] * 4), "--group_size", "64"), CONFIG)


@pytest.mark.parametrize(
    ("options", "schemes"),
    [
        ([], ("w4a8", "w8a8")),
        (["--a_bits", "16"], ("w4a16", "w8a16")),
        (["--hybrid_schemes", "W3A8, w8a8,w8a16"], ("w3a8", "w8a8", "w8a16")),
    ],
    ids=str,
)
def test_a_search_chooses_from_two_schemes_or_those_named(options, schemes):
    args = parse("--hybrid_search", "5.5", *options)
    search = mixed_precision_options.requested_search(args)
    assert (search.schemes, search.budget.text) == (schemes, "5.5")
    standing_in = mixed_precision_options.layer_schemes(args, CONFIG)  # until the search has run
    assert len(standing_in) == 4 and set(standing_in) == set(schemes)
    assert recipe_options.run_name(args).endswith("-hybrid")


def test_a_search_knows_the_rest_of_the_recipe():
    args = parse("--hybrid_search", "20MB", "--group_size", "32", "--dynamic", "--rotate_residual", "--group_heads")
    search = mixed_precision_options.requested_search(args, recipe_options.channel_groups(args))
    assert (search.group_size, search.dynamic, search.rotate_residual) == (32, True, True)
    assert search.group_heads == ChannelGroups(4, 4)


def test_what_a_search_found_goes_beside_the_logs_or_where_it_is_told(tmp_path):
    args = parse("--hybrid_search", "5.5", "--log_dir", "out")
    assert mixed_precision_options.schemes_file(args, "mamba-tiny") == Path("out/mamba-tiny.hybrid.json")
    named = parse("--hybrid_search", "5.5", "--hybrid_blocks_config", "mine.json")
    assert mixed_precision_options.schemes_file(named, "mamba-tiny") == Path("mine.json")


def test_a_search_that_leaves_all_activations_float_leaves_no_calibration():
    args = parse("--hybrid_search", "6", "--hybrid_schemes", "w4a8,w8a16", "--observer", "mse")
    assert mixed_precision_options.found(args, ("w4a8", "w8a16")) == {"layer_schemes": ("w4a8", "w8a16")}
    found = mixed_precision_options.found(args, ("w8a16", "w8a16"))
    assert found.pop("layer_schemes") == ("w8a16", "w8a16")
    assert {"observer", "calibration", "group_heads"} < set(found) and not any(found.values())
    args.quantize_lm_head = True  # whose input is calibrated
    assert mixed_precision_options.found(args, ("w8a16", "w8a16")) == {"layer_schemes": ("w8a16", "w8a16")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hybrid_blocks"], "--hybrid_blocks needs --hybrid_blocks_config FILE, or --hybrid_search BUDGET"),
        (["--hybrid_blocks_config", "a.json"], "--hybrid_blocks_config a.json does nothing without --hybrid_blocks"),
        (["--hybrid_schemes", "w4a8,w8a8"], "--hybrid_schemes w4a8,w8a8 does nothing without --hybrid_search"),
        (["--hybrid_search", "much"], "the budget 'much' is no positive number"),
        (["--hybrid_search", "5", "--hybrid_schemes", "w4a8"], "a search needs two schemes to choose from, got w4a8"),
        (["--hybrid_search", "5", "--hybrid_schemes", ","], "got none"),
        (["--hybrid_search", "5", "--hybrid_schemes", ""], "got none"),
        (["--hybrid_schemes", ""], "does nothing without --hybrid_search"),
        (["--hybrid_search", ""], "the budget '' is no positive number"),
        (["--hybrid_blocks", "--hybrid_blocks_config", ""], "--hybrid_blocks_config '' names no file"),
        (["--hybrid_search", "5", "--hybrid_blocks_config", " "], "--hybrid_blocks_config ' ' names no file"),
        (["--hybrid_search", "5", "--hybrid_schemes", "w4a8,w5a8"], "unknown scheme 'w5a8'"),
        (["--hybrid_search", "5", "--group_size", "63"], "group_size 63 has no kernels"),
        (
            ["--hybrid_search", "5", "--a_bits", "16", "--hybrid_schemes", "w4a16,w8a8"],
            "--hybrid_schemes has layers of w8a8, whose activations are calibrated: drop --a_bits 16",
        ),
        (
            ["--hybrid_search", "5", "--hybrid_schemes", "w4a16,w8a16"],
            "--hybrid_schemes leaves the activations of every layer float: add --a_bits 16",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_told_without_a_model(options, message):
    args = parse(*options)
    with pytest.raises(QuambaError) as error:
        recipe_options.recipe_arguments(args)
        mixed_precision_options.requested_search(args)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (["w8a8"], [], "lists 1 schemes, the model has 4 layers"),
        ({"0": "w8a8"}, [], "gives no scheme to 3 of 4 layers"),
        (["w8a8", "w4a8", "w8a8", "w8a8"], ["--a_bits", "16"], "has layers of w8a8, whose activations are calibrated"),
        (["w8a16"] * 4, [], "leaves the activations of every layer float: add --a_bits 16"),
        (["w8a8", "w4a16", "w8a8", "w8a8"], ["--state_bits", "8"], "need 8-bit activations in every layer"),
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_is_told_from_the_config_alone(file, content, options, message):
    with pytest.raises(QuambaError) as error:
        recipe_options.recipe_arguments(parse(*file(content), *options), CONFIG)
    assert message in str(error.value)


def test_a_config_without_a_number_of_layers_is_told(file):
    with pytest.raises(QuambaError, match=r"config\.json does not say how many layers"):
        mixed_precision_options.layer_schemes(parse(*file(FILE)), {"model_type": "mamba"})


def test_the_fewest_bits_that_layers_have(file):
    """By which the weight method is chosen: of a file once the number of layers is known, of a search what may be."""
    of_file, search = parse(*file(FILE)), parse("--hybrid_search", "5")
    assert [mixed_precision_options.lowest_bits(parse("--w_bits", str(bits)), CONFIG) for bits in (8, 4, 3)] == [
        8,
        4,
        3,
    ]
    assert mixed_precision_options.lowest_bits(of_file, None) is None
    assert mixed_precision_options.lowest_bits(of_file, CONFIG) == 4
    assert mixed_precision_options.lowest_bits(parse(*file(["w8a8"] * 4)), CONFIG) == 8
    assert mixed_precision_options.lowest_bits(parse(*file(["w8a8", "w3a8", "w4a8", "w4a8"])), CONFIG) == 3
    assert mixed_precision_options.lowest_bits(search, None) == mixed_precision_options.lowest_bits(search, CONFIG) == 4
    assert (
        mixed_precision_options.lowest_bits(parse("--hybrid_search", "9", "--hybrid_schemes", "w8a8,w8a16"), None) == 8
    )
    assert mixed_precision_options.fewest_bits(("w8a8", "w4a16")) == 4


def test_bits_of_the_weights_beside_a_file_are_those_of_the_tables(file):
    with pytest.raises(QuambaError, match="--w_bits 4 does nothing where layers have schemes of their own: drop it"):
        recipe_options.recipe_arguments(parse(*file(FILE), "--w_bits", "4"))
    with pytest.raises(QuambaError, match="--w_bits 4 does nothing"):
        recipe_options.recipe_arguments(
            parse("--hybrid_search", "5", "--w_bits", "4", "--quantize_lm_head", "--lm_head_bits", "8")
        )
    recipe = recipe_options.recipe(parse(*file(FILE), "--w_bits", "4", "--quantize_lm_head"), tied=True, config=CONFIG)
    assert recipe.lm_head_bits == 4 and recipe.name == "w4a8+w8a8"
