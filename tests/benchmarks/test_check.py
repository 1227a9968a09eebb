"""`python -m benchmarks.speed --check`: every system computes the same logits, of each architecture."""

import pytest

from benchmarks.speed import run
from benchmarks.speed.__main__ import options_of, parse
from benchmarks.speed.shapes import CHECKED
from benchmarks.speed.systems import BENCH_PYTHON


@pytest.mark.parametrize("shape", CHECKED)
def test_the_systems_agree_from_an_empty_cache(shape, tmp_path, capsys):
    """llama.cpp is among them where `make bench` has installed it."""
    systems = "quamba:float,llama.cpp:Q8_0" if BENCH_PYTHON.exists() else "quamba:float"
    arguments = ["--check", "--shapes", shape, "--systems", systems, "--models", str(tmp_path / "models")]
    status = run.check(options_of(parse([*arguments, "--threads", "2"])))
    output = capsys.readouterr()
    assert status == 0, output.out + output.err
    assert f"{shape}  quamba:float " in output.out
    assert ("llama.cpp:F32" in output.out) == BENCH_PYTHON.exists()


def test_a_check_without_llama_cpp_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "BENCH_PYTHON", tmp_path / "absent")
    with pytest.raises(OSError, match=r"make \.venv-bench/installed"):
        run.check(options_of(parse(["--check", "--models", str(tmp_path)])))
