"""The argparse types that commands share: what they take, and what they refuse."""

import argparse

import pytest

from quamba.commands.arguments import names, positive_int, seed, share


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (positive_int, "1", 1),
        (positive_int, " 12 ", 12),
        (seed, "0", 0),
        (seed, "4294967295", 2**32 - 1),
        (share, "0.99", 0.99),
        (share, "1e-9", 1e-9),
        (names, "x", ["x"]),
        (names, "x, out,,B", ["x", "out", "B"]),
    ],
)
def test_what_is_taken(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((positive_int, text) for text in ("0", "-3", "2.5", "many", "")),
        *((seed, text) for text in ("-1", "4294967296", "1.0", "nan", "")),
        *((share, text) for text in ("0", "1", "-0.5", "2", "nan", "inf", "half", "")),
        *((names, text) for text in ("", ",", " , ")),
    ],
)
def test_what_is_refused(kind, text, capsys):
    """As argparse calls it: the message names the option and the value, and the status is 2."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--option", type=kind)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args([f"--option={text}"])
    assert exit_.value.code == 2
    err = capsys.readouterr().err
    assert "argument --option: " in err
    assert text.strip() in err
    assert "invalid" not in err  # argparse's own words name the function, and not what is asked for
