"""Whose fault an exception is at a border to foreign code, and what the user hears of it."""

import json
import struct

import pytest
import torch

from quamba import borders
from quamba.borders import foreign, is_memory_shortage, one_line
from quamba.errors import QuambaError
from quamba.nn.taps import split_tap_name


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: {}["size"], "KeyError: 'size'"),
        (
            lambda: json.loads("{"),
            "JSONDecodeError: Expecting property name ",
        ),
        (lambda: json.loads("[" * 100_000), "RecursionError: "),
        (lambda: struct.unpack("<Q", b""), "error: unpack requires a buffer of 8 bytes"),
        (lambda: torch.zeros(2) @ torch.zeros(3), "RuntimeError: "),
        (lambda: (_ for _ in ()).throw(AttributeError()), "AttributeError"),
    ],
)
def test_any_exception_of_foreign_code_names_what_was_read_and_what_to_do(call, told):
    with pytest.raises(QuambaError) as error, foreign("x.json cannot be read", "copy it again"):
        call()
    text = str(error.value)
    assert text.startswith(f"x.json cannot be read: {told}")
    assert text.endswith("; copy it again")
    assert "\n" not in text
    assert error.value.__cause__ is not None


def test_a_comprehension_is_part_of_the_function_around_it():
    """Of one in this package, that is: the function is made to look like one."""
    code = "def read(values):\n    with foreign('x.json'):\n        return [value['size'] for value in values]"
    namespace = {"__name__": "quamba.some_module", "foreign": foreign}
    exec(code, namespace)
    with pytest.raises(QuambaError, match=r"^x\.json: TypeError"):
        namespace["read"]([1])


def test_without_an_exception_nothing_happens():
    with foreign("x.json"):
        pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError])
def test_interruptions_and_lack_of_memory_stay_what_they_are(error):
    with pytest.raises(error), foreign("x.json"):
        raise error


def test_torchs_own_lack_of_memory_is_told_apart_from_its_other_errors():
    with pytest.raises(RuntimeError) as error, foreign("x.json"):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_memory_shortage(error.value)
    assert not is_memory_shortage(RuntimeError("another"))


def test_an_error_of_ours_is_not_said_twice():
    with pytest.raises(QuambaError, match=r"^tensor x is damaged$"), foreign("x.json"):
        raise QuambaError("tensor x is damaged")


def test_a_fault_in_this_package_is_never_the_users():
    """Also where foreign code called us, as transformers calls the quantizer."""
    for call in (lambda: split_tap_name(None), lambda: sorted([None], key=split_tap_name)):
        with pytest.raises(AttributeError), foreign("x.json"):
            call()


def test_long_texts_are_cut():
    assert len(one_line(ValueError("word " * 1000))) == borders.LIMIT
