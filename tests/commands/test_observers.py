"""`python -m quamba observers` from its options to its outputs."""

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch

from quamba.__main__ import main
from quamba.calibration.recording import ActivationRecorder, open_activations
from quamba.study.observers.comparison import NORMAL_RATIO, compare_observers
from quamba.study.observers.specs import parse_specs
from quamba.study.observers.verdict import Rule
from quamba.text.data import EMBEDDED_MODELS

from ..markdown_tables import parse_markdown

NAMES = ["minmax", "percentile", "outlier_aware", "outlier_aware_adaptive", "mse"]
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "my_observer.py"
TINY = EMBEDDED_MODELS["mamba-tiny"]
QUICK = ["--calib_data_num", "2", "--calib_seqlen", "64"]
MAMBA_TINY = ["--model", "mamba-tiny", *QUICK]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Files go to the test's own folder, the hub is never asked, and log levels are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    level = logging.getLogger("quamba").level
    yield
    logging.getLogger("quamba").setLevel(level)


def output(capsys, *options: str) -> str:
    """What a run that ends well writes to the standard output."""
    capsys.readouterr()
    assert main(["observers", *options]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys, *options: str) -> dict:
    """The result as strict JSON: neither NaN nor Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(output(capsys, *options, "--format", "json"), parse_constant=refuse)


def fails(capsys, *options: str) -> str:
    """The one line that a run ends with which is refused before any work: status 2, nothing on the standard output."""
    capsys.readouterr()
    assert main(["observers", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quamba observers: error: ")
    assert len(err.splitlines()) == 1
    return err.removeprefix("quamba observers: error: ").removesuffix("\n")


def write_activations(folder: Path) -> str:
    """A folder `acts` with the taps x and out of four layers, the later ones with the longer tails."""
    generator = torch.Generator().manual_seed(0)
    with ActivationRecorder(folder / "acts", "mamba-small") as recorder:
        for layer in range(4):
            for tap in ("x", "out"):
                x = torch.randn(2, 30, 16, generator=generator)
                recorder.update(f"layers.{layer}.{tap}", x * torch.exp(layer * 0.4 * x))
    return "acts"


def write_tiny(model, tokenizer) -> list[str]:
    """The options of a run on a tiny float model and a small text, which are written: `tiny`, `text.txt`."""
    model.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    Path("text.txt").write_text(" ".join(f"w{1 + number * number % 49}" for number in range(3000)))
    return ["--model", "tiny", "--calib_dataset", "text.txt", "--calib_data_num", "4", "--calib_seqlen", "16"]


@pytest.fixture
def acts(tmp_path) -> str:
    """See `write_activations`."""
    return write_activations(tmp_path)


@pytest.fixture
def tiny(tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tiny_mamba(vocab_size=50), tiny_tokenizer)


# --- synthetic values ---


def test_synthetic_values_are_compared_and_decide_nothing(capsys):
    out = output(capsys, "--synthetic")
    assert "synthetic: 10100 values, 100 of them outliers" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1] and line[1:2].isalpha()}
    assert set(NAMES) <= set(rows)
    assert float(rows["minmax"][2]) == 1  # MSE relative to the baseline
    assert float(rows["mse"][2]) < 1 < float(rows["outlier_aware"][2])
    assert f"Rule: {Rule().describe()}." in out
    assert out.count("undecided") == 4
    assert "not adopt" not in out


def test_the_seed_and_the_spread_decide_the_synthetic_values(capsys):
    def scales(*options):
        (tap,) = as_json(capsys, "--synthetic", *options)["taps"]
        return [result["scale"] for result in tap["results"]]

    assert scales() == scales("--seed", "0")
    assert scales() != scales("--seed", "1")
    assert scales("--spread", "0.1")[2] == pytest.approx(scales("--spread", "0.2")[2] / 2, rel=1e-2)  # a quantile


def test_observers_bits_and_baseline_are_those_asked_for(capsys):
    observers = ["--observer", "outlier_aware:normal_ratio=0.999", "--observer", "percentile"]
    data = as_json(capsys, "--synthetic", *observers, "--baseline", "mse", "--bits", "4")
    assert data["observers"] == ["mse", "outlier_aware:normal_ratio=0.999", "percentile"]
    assert data["n_bits"] == 4
    results = data["taps"][0]["results"]
    assert results[0]["relative_mse"] == 1
    assert all(result["outlier_levels"] <= 16 for result in results)
    assert [found["observer"] for found in data["verdicts"]] == data["observers"][1:]


# --- what main.py --save_activations wrote ---


def test_saved_activations_give_what_the_api_gives(capsys, acts):
    data = as_json(capsys, "--activations", acts)
    saved = open_activations(acts)
    compared = compare_observers(
        saved, parse_specs(NAMES, "minmax", 8), source="mamba-small", real=True, progress=False
    )
    assert {key: data[key] for key in compared.to_dict()} == json.loads(json.dumps(compared.to_dict()))
    assert (data["source"], data["real"]) == ("mamba-small", True)
    assert [tap["layer"] for tap in data["taps"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert data["taps"][0]["results"][0]["calibration_sqnr_db"] is not None
    assert data["rule"]["words"] == Rule().describe()
    assert data["end_to_end"] == {}


def test_taps_and_layers_may_be_chosen(capsys, acts):
    data = as_json(capsys, "--activations", acts, "--taps", "x", "--layers", "3,1")
    assert [(tap["tap"], tap["layer"]) for tap in data["taps"]] == [("x", 1), ("x", 3)]


def test_the_normal_ratio_says_what_an_outlier_is(capsys, acts):
    counts = [
        [tap["outliers"] for tap in as_json(capsys, "--activations", acts, *options)["taps"]]
        for options in ([], ["--normal_ratio", str(NORMAL_RATIO)], ["--normal_ratio", "0.5"])
    ]
    assert counts[0] == counts[1] == [10] * 8
    assert counts[2] == [480] * 8


def test_many_taps_are_told_one_by_one_only_where_details_are_asked_for(capsys, acts):
    options = ["--activations", acts, "--observer", "mse"]
    short, long = output(capsys, *options), output(capsys, *options, "--details")
    few = output(capsys, *options, "--taps", "x")
    for out in (short, long):
        for title in ("tap x, all layers compared", "tap out, all layers compared", "all taps and layers"):
            assert title in out
    assert "layers.3.x" not in short
    assert "(8 taps and layers were compared: --details prints each" in short
    for out in (long, few):
        assert "layers.3.x: 960 values, 10 of them outliers" in out
        assert "--details" not in out
    assert "layers.3.out" in long and "layers.3.out" not in few


def test_a_plug_in_brings_an_observer(capsys, acts):
    options = ["--activations", acts, "--plugin", str(EXAMPLE)]
    assert as_json(capsys, *options)["observers"] == [*NAMES, "mine"]
    data = as_json(capsys, *options, "--observer", "mine:clip_ratio=0.5", "--observer", "mine")
    assert data["observers"] == ["minmax", "mine:clip_ratio=0.5", "mine"]
    half, whole = (data["taps"][0]["results"][index]["scale"] for index in (1, 2))
    assert half == pytest.approx(whole / 2)


def test_a_plug_in_that_fails_is_told_with_its_tap(capsys, acts):
    Path("broken.py").write_text(
        "from quamba.observers.per_tensor import Observer, register_observer\n\n\n"
        '@register_observer("broken")\n'
        "class Broken(Observer):\n"
        "    _update = _merge = lambda self, x: None\n"
        "    _parameters = lambda self: 1 / 0\n"
    )
    assert main(["observers", "--activations", acts, "--plugin", "broken.py", "--observer", "broken"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    told = "error: tap layers.0.x: observer 'broken' failed: ZeroDivisionError: division by zero\n"
    assert err.endswith(told)
    assert "Traceback" not in err


# --- where it is written ---


def test_markdown_is_well_formed_tables_and_the_verdict(capsys, acts):
    out = output(capsys, "--activations", acts, "--taps", "x", "--format", "markdown")
    tables, _, verdict = out.partition("Rule: ")
    parsed = [parse_markdown(part.rstrip()) for part in re.split(r"(?m)^(?=\*\*)", tables)[1:]]
    assert [title for title, _ in parsed] == [
        *(f"layers.{layer}.x: 960 values, 10 of them outliers" for layer in range(4)),
        "tap x, all layers compared",
    ]
    assert all([row[0] for row in rows[1:]] == NAMES for _, rows in parsed)
    assert [line.split(":")[0] for line in verdict.splitlines()[1:]] == [f"- {name}" for name in NAMES[1:]]


@pytest.mark.parametrize("format_", ["markdown", "json"])
def test_output_goes_to_a_file_instead(capsys, acts, format_):
    options = ["--activations", acts, "--format", format_]
    printed = output(capsys, *options)
    assert output(capsys, *options, "--output", "new/result.txt") == ""
    assert Path("new/result.txt").read_text("utf-8") == printed
    assert [path.name for path in Path("new").iterdir()] == ["result.txt"]


def test_a_disk_that_fills_up_is_one_line_with_the_file(capsys, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fill)
    assert main(["observers", "--synthetic", "--format", "json", "--output", "result.json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["source"] == "synthetic values, seed 0"  # what was found is not lost with the file
    assert err.endswith("quamba observers: error: cannot write result.json: No space left on device\n")
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_infinite_figures_are_null_in_json(capsys):
    """Where the baseline loses nothing, who loses something is infinitely worse."""
    with ActivationRecorder("exact", "tiny") as recorder:
        recorder.update("layers.0.x", torch.tensor([[127.0, -64.0, 1.0, 0.0]]))
    data = as_json(capsys, "--activations", "exact", "--observer", "mse:clip_ratio=0.5")
    assert [result["relative_mse"] for result in data["taps"][0]["results"]] == [1, None]
    assert data["verdicts"][0]["adopt"] is False


def test_a_figure_shows_the_tap_that_is_named(capsys, acts, monkeypatch):
    shown = []

    class Figure:
        def savefig(self, path, **_):
            Path(path).write_bytes(b"figure")

    def observer_figure(comparison, activations):
        shown.append((len(comparison.taps), activations.name))
        return Figure()

    monkeypatch.setattr("quamba.study.observers.figures.observer_figure", observer_figure)
    options = ["--activations", acts, "--plot", "new/figure.png"]
    assert output(capsys, *options).endswith("figure  new/figure.png\n")
    assert Path("new/figure.png").read_bytes() == b"figure"
    as_json(capsys, *options, "--plot_tap", "layers.2.out")  # the line goes to stderr: the output stays JSON
    assert shown == [(8, "layers.0.x"), (8, "layers.2.out")]
    assert main(["observers", *options, "--plot_tap", "layers.9.x"]) == 2
    assert "--plot_tap 'layers.9.x' is not compared: layers.0.x, layers.0.out, " in capsys.readouterr().err
