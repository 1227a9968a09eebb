"""Formats of a simulation: what a name and a file mean, and what is said about those that mean nothing."""

import json

import pytest

from quamba.errors import QuambaError
from quamba.scheme.formats import DYNAMIC, FLOAT, SCHEMES, STATIC, TensorSpec, get_scheme
from quamba.scheme.simulation import Simulation


@pytest.mark.parametrize("name", SCHEMES)
def test_a_format_that_has_kernels_is_the_one_that_they_run(name):
    formats, scheme = Simulation.parse(name), get_scheme(name)
    assert (formats.weight, formats.act, formats.taps) == (scheme.weight, scheme.act, {})


def test_a_name_gives_any_bits():
    formats = Simulation.parse("W6A4", group_size=48, per_token=True)
    assert formats.weight == TensorSpec(6, symmetric=False, granularity="per_group", group_size=48)
    assert formats.act == TensorSpec(4, granularity="per_token")
    assert (formats.name, formats.title) == ("w6a4", "simulated-w6a4")
    assert formats.describe() == "weights uint6 per group of 48, activations int4 per token"
    assert Simulation.parse("w16a8") == Simulation("w16a8", FLOAT, STATIC)
    assert Simulation.parse("w8a8", per_token=True).act == DYNAMIC


@pytest.mark.parametrize(
    ("fields", "described"),
    [
        ({"weights": {"bits": 2, "group_size": 16}}, "weights uint2 per group of 16, activations float"),
        (
            {"weights": {"bits": 8}, "activations": {"bits": 4}, "taps": {"x": {"bits": 8}, "z": {"bits": 16}}},
            "weights int8 per channel, activations int4 per tensor, x int8 per tensor, z float",
        ),
        (
            {"weights": {"bits": 16}, "activations": {"bits": 16}, "taps": {"in": {"bits": 5, "per_token": True}}},
            "weights float, activations float, in int5 per token",
        ),
    ],
)
def test_a_file_gives_a_format_to_every_tap(tmp_path, fields, described):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(fields))
    formats = Simulation.parse(str(file))
    assert (formats.title, formats.describe()) == ("simulated-mine", described)
    assert formats.quantizes_activations == ("activations float" not in described or "in int5" in described)
    assert Simulation.from_dict(json.loads(json.dumps(formats.to_dict()))) == formats


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("int4", {}, "'int4' names no formats: write w4a4, or the name of a .json file"),
        ("w9a4", {}, "weights of 9 bits cannot be simulated: choose 2 to 8, or 16 (float)"),
        ("w4a1", {}, "activations of 1 bits cannot be simulated"),
        ("w16a4", {"group_size": 32}, "group_size 32 does nothing for float weights"),
        ("w4a4", {"group_size": 0}, "a group of weights has at least one column, not 0"),
        ("w4a16", {"per_token": True}, "activations of 16 bits are float"),
        ("none.json", {}, "cannot read none.json: "),
        ("none.json", {"group_size": 32}, "stand in none.json: drop the option"),
    ],
)
def test_a_name_that_means_nothing_is_refused(text, options, message):
    with pytest.raises(QuambaError) as error:
        Simulation.parse(text, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read "),
        ("[]", "the file is '[]', where an object is expected"),
        ("{}", "there are no 'weights'"),
        ('{"weights": {"bits": 4}, "heads": 3}', "the file has 'heads': known are activations, taps, weights"),
        ('{"weights": {"bit": 4}}', "'weights' has 'bit': known are bits, group_size"),
        ('{"weights": {}}', "'weights' has no 'bits'"),
        ('{"weights": {"bits": true}}', "weights of True bits cannot be simulated"),
        ('{"weights": {"bits": 4}, "taps": ["x"]}', "'taps' is \"['x']\", where an object is expected"),
        ('{"weights": {"bits": 4}, "taps": {"x": {"bits": 99}}}', "activations of 99 bits cannot be simulated"),
    ],
)
def test_a_file_that_means_nothing_is_refused_by_its_name(tmp_path, content, message):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(QuambaError) as error:
        Simulation.parse(str(file))
    assert str(file) in str(error.value) and message in str(error.value)
