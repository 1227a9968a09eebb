"""Files with a scheme for every layer: what may stand in them, and what is said of those that are wrong."""

import json

import pytest

from quamba.errors import QuambaError
from quamba.mixed_precision.layer_file import (
    check_searchable,
    parse_layer_schemes,
    read_layer_schemes,
    write_layer_schemes,
)
from quamba.scheme.formats import SCHEMES

EXPECTED = ("w8a8", "w4a8", "w4a16", "w8a8")


@pytest.fixture
def file(tmp_path):
    """A function that writes a file and gives its path."""

    def write(content) -> str:
        path = tmp_path / "blocks.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "content",
    [
        ["w8a8", "w4a8", "w4a16", "w8a8"],
        ["W8A8", "W4a8", "W4A16", "w8A8"],
        {"0": "w8a8", "1": "w4a8", "2": "w4a16", "3": "w8a8"},
        {"2": "w4a16", "1": "w4a8", "default": "w8a8"},
        {"default": "w8a8", "1-1": "w4a8", " 2 ": "w4a16"},
        {"layers": ["w8a8", "w4a8", "w4a16", "w8a8"]},
        {"layers": {"default": "w8a8", "1": "w4a8", "2": "w4a16"}, "search": {"budget": "5.5", "losses": [1]}},
    ],
)
def test_every_form_gives_one_scheme_a_layer(file, content):
    assert read_layer_schemes(file(content), 4) == EXPECTED


def test_ranges_hold_both_ends():
    content = {"1-3": "w4a8", "6-7": "w8a16", "default": "w8a8"}
    expected = ("w8a8", "w4a8", "w4a8", "w4a8", "w8a8", "w8a8", "w8a16", "w8a16")
    assert parse_layer_schemes(content, 8, "test") == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_name_here(scheme):
    assert parse_layer_schemes({"default": scheme.upper()}, 3, "test") == (scheme,) * 3


def test_a_default_may_stand_beside_entries_for_all_layers():
    assert parse_layer_schemes({"0-1": "w4a8", "default": "w8a8"}, 2, "test") == ("w4a8", "w4a8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # unknown schemes
        (["w8a8", "w5a8", "w8a8", "w8a8"], 'gives layer 1 the unknown scheme "w5a8": choose one of w8a8, w4a8'),
        ({"0-2": "w4a8", "3": "fp16"}, 'gives "3" the unknown scheme "fp16": choose one of w8a8'),
        ({"0-2": "w4a8", "default": ""}, 'gives "default" the unknown scheme "": choose one of'),
        # the number of layers
        (["w8a8"] * 3, 'lists 3 schemes, the model has 4 layers: give one for each layer, or a map with a "default"'),
        ([], "lists 0 schemes, the model has 4 layers"),
        ({"layers": ["w8a8"] * 5}, "lists 5 schemes, the model has 4 layers"),
        # layers named twice, not at all, or out of range
        ({"0-2": "w4a8", "2-3": "w8a8"}, 'names layer 2 twice, in "0-2" and "2-3": keep one of the two'),
        ({"1": "w4a8", "01": "w8a8", "default": "w8a8"}, 'names layer 1 twice, in "1" and "01"'),
        ('{"1": "w4a8", "1": "w8a8", "default": "w8a8"}', 'names "1" twice: keep one of the two'),
        ('{"default": "w4a8", "1": "w8a8", "default": "w8a8"}', 'names "default" twice'),
        ({"1": "w4a8", "3": "w8a8"}, 'gives no scheme to 2 of 4 layers (0, 2): name them, or add a "default"'),
        ({}, "gives no scheme to 4 of 4 layers (0, 1, 2, 3)"),
        ({"4": "w4a8", "default": "w8a8"}, 'names layer 4 ("4"): the model has layers 0 to 3'),
        ({"2-9": "w4a8", "default": "w8a8"}, 'names layer 4 ("2-9"): the model has layers 0 to 3'),
        ({"0-999999999": "w4a8"}, "the model has layers 0 to 3"),
        ({"3-1": "w4a8", "default": "w8a8"}, 'the range "3-1", which is empty: write it as "1-3"'),
        # other keys
        ({"-1": "w4a8", "default": "w8a8"}, 'the key "-1": write a layer as "5", several as "0-3", all others as'),
        ({"layer 1": "w4a8", "default": "w8a8"}, 'the key "layer 1"'),
        ({"0,2": "w4a8", "default": "w8a8"}, 'the key "0,2"'),
        ({"\u0661": "w4a8", "default": "w8a8"}, 'the key "\u0661"'),
        ({"9" * 5000: "w4a8", "default": "w8a8"}, 'the key "9999'),
        ({"search": {}, "default": "w8a8"}, 'gives "search" {}, which is no name of a scheme'),
        ({"layers": ["w8a8"] * 4, "bits": 4, "a": 1}, 'beside "layers" only "search" may stand, not "a", "bits": drop'),
        # wrong types
        (["w8a8", "w8a8", 8, "w8a8"], "gives layer 2 8, which is no name of a scheme: choose one of w8a8"),
        ({"0-3": None}, 'gives "0-3" null, which is no name of a scheme'),
        ({"0-3": ["w8a8"]}, 'gives "0-3" ["w8a8"], which is no name of a scheme'),
        ('"w8a8"', 'holds "w8a8": give a list of scheme names, one a layer, or a map such as'),
        ("5.5", "holds 5.5: give a list"),
        ({"layers": "w8a8"}, 'holds "w8a8": give a list'),
        # no JSON
        ("", "is no JSON: Expecting value"),
        ("w8a8", "is no JSON"),
        ('["w8a8",]', "is no JSON: "),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_entry(file, content, message):
    path = file(content)
    with pytest.raises(QuambaError) as raised:
        read_layer_schemes(path, 4)
    assert message in str(raised.value)
    assert path in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_file_that_is_not_there_or_no_text_is_an_error(tmp_path):
    with pytest.raises(QuambaError, match=r"cannot read .*none.json: No such file"):
        read_layer_schemes(tmp_path / "none.json", 4)
    with pytest.raises(QuambaError, match=r"cannot read .*: Is a directory"):
        read_layer_schemes(tmp_path, 4)
    (tmp_path / "blocks.json").write_bytes(b'["w8a8\xff"]')
    with pytest.raises(QuambaError, match=r"blocks.json is no JSON: it is not text in UTF-8"):
        read_layer_schemes(tmp_path / "blocks.json", 4)


@pytest.mark.parametrize("search", [None, {"budget": "5.5bits", "losses": {"w4a8": [0.25]}, "layers": 4}])
def test_what_is_written_is_read_back_with_the_figures_beside_it(tmp_path, search):
    path = tmp_path / "new" / "blocks.json"
    write_layer_schemes(path, EXPECTED, search)
    assert read_layer_schemes(path, 4) == EXPECTED
    assert json.loads(path.read_text()).get("search") == search
    assert [entry.name for entry in path.parent.iterdir()] == ["blocks.json"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "blocks.json"
    write_layer_schemes(path, EXPECTED)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_layer_schemes(path, EXPECTED[::-1], {"loss": float("nan")})
    with pytest.raises(QuambaError, match="unknown scheme"):
        write_layer_schemes(path, ["w8a8", "w5a5"])
    assert read_layer_schemes(path, 4) == EXPECTED
    with pytest.raises(QuambaError, match="cannot write"):
        write_layer_schemes(path / "below_a_file.json", EXPECTED)


@pytest.mark.parametrize("content", ["", "[]", '["w8a8"]', '{"default": "w8a8"}', '{"layers": ["w8a8"]}', "{", "\xff"])
def test_a_search_replaces_nothing_but_what_a_search_wrote(tmp_path, content):
    path = tmp_path / "schemes.json"
    check_searchable(path)
    write_layer_schemes(path, ["w8a8"], {"budget": "6"})
    check_searchable(path)
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(QuambaError, match=r"schemes\.json was not written by a search, .* name another file"):
        check_searchable(path)
    with pytest.raises(QuambaError, match="is a folder: name the file that the search writes"):
        check_searchable(tmp_path)
