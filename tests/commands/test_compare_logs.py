"""`python -m quamba compare-logs` from its options to its outputs."""

import argparse
import errno
import json
import logging
import os

import pytest
import torch

import main
import quamba
from quamba.commands import compare_logs
from quamba.errors import QuambaError
from quamba.evaluation import compare
from quamba.evaluation.log import write_log

from ..study.result_logs import figures, write_result_log


def run(*options) -> None:
    parser = argparse.ArgumentParser()
    compare_logs.add_arguments(parser)
    compare_logs.run(parser.parse_args([str(option) for option in options]))


@pytest.fixture
def logs(tmp_path) -> list:
    """Folders `old` and `new` with a log each; that of `old` has the float model too."""
    write_result_log(tmp_path / "old", base=figures(nll=[1.9, 2.9, 2.4, 1.9]))
    write_result_log(tmp_path / "new", nll=[2.1, 3.1, 2.5, 2.0])
    return [tmp_path / "old", tmp_path / "new"]


def test_markdown_goes_to_the_standard_output(logs, capsys):
    run(*logs)
    out, err = capsys.readouterr()
    assert [cell.strip() for cell in out.splitlines()[0].split("|")] == ["", "", "old", "new", "new vs old", ""]
    assert "| perplexity, stdlib " in out
    assert err == ""


def test_json_is_one_object(logs, capsys):
    run(*logs, "--format", "json", "--confidence", "0.9", "--resamples", "50", "--seed", "4", "--labels", "x,y")
    data = json.loads(capsys.readouterr().out)
    assert (data["confidence"], data["resamples"], data["seed"], data["base"]) == (0.9, 50, 4, "x")
    change = data["rows"][0]["cells"][1]["change"]
    assert change["low"] < change["estimate"] < change["high"]


def test_outputs_go_to_files(logs, tmp_path, capsys):
    run(*logs, "--output", tmp_path / "out" / "table.md", "--plot", tmp_path / "out" / "figure.png")
    assert (tmp_path / "out" / "table.md").read_text().startswith("| ")
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"table   {tmp_path / 'out' / 'table.md'}\nfigure  {tmp_path / 'out' / 'figure.png'}\n"


def test_the_same_command_prints_the_same(logs, capsys):
    outputs = []
    for _ in range(2):
        run(*logs, "--against_float")
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "old (float)" in outputs[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["old"], "two logs or more, or one with --against_float"),
        (["old", "best"], "the log '.*best' does not exist"),
        (["new", "old", "--against_float"], "has no figures of the float model"),
        (["old", "new", "--labels", "x"], "--labels names 1"),
        (["old", "new", "--output", "old"], "--output .*old is a folder"),
        (["old", "new", "--output", "old/m_w8a8.json"], "which is read: name another place"),
        (["old", "new", "--output", "old/m_w8a8.items.json"], "which is read: name another place"),
        (["old", "new", "--output", "old/m_w8a8.json/x"], "cannot write to"),
        (["old", "new", "--output", "x.png", "--plot", "x.png"], "both name x.png"),
        (["old", "new", "--plot", "x.jpg"], "let its name end in one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_and_nothing_is_written(logs, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(QuambaError, match=message):
        run(*options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert capsys.readouterr().out == ""


def test_a_disk_that_fills_up_is_told_with_the_file(logs, tmp_path, monkeypatch, capsys):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fill)
    with pytest.raises(QuambaError, match=r"^cannot write .*out/table\.md: No space left on device$"):
        run(*logs, "--output", tmp_path / "out" / "table.md")
    assert list((tmp_path / "out").iterdir()) == []
    assert capsys.readouterr().out.startswith("|")  # the table all the same


@pytest.mark.parametrize("option", ["--confidence=1", "--resamples=0", "--seed=-1", "--format=csv", "--labels=,"])
def test_options_out_of_range_are_refused(logs, capsys, option):
    with pytest.raises(SystemExit):
        run(*logs, option)
    assert option.partition("=")[0] in capsys.readouterr().err


def test_two_runs_of_the_python_api_compare_as_they_do_in_memory(tmp_path, capsys):
    """From windows and items to the file and back, nothing is lost."""
    results = []
    for name, changed in (("a", False), ("b", True)):
        model, tokenizer = quamba.load("mamba-tiny")
        if changed:
            model.backbone.norm_f.weight.data *= 1.1
        result = quamba.evaluate(
            model, tokenizer, ["stdlib"], ["stdlib_cloze"], ppl_seqlen=32, max_windows=6, limit=6, progress=False
        )
        results.append(result)
        log = {"model": "mamba-tiny", "scheme": "fp", "size": {"disk_bytes": 1, "memory_bytes": 1}, **result}
        log["ppl_text_sha256"] = result.text_sha256
        write_log(log, tmp_path / name, "mamba-tiny_fp", result.item_values())
    run(tmp_path / "a", tmp_path / "b", "--format", "json")
    rows = {row["label"]: row["cells"][1] for row in json.loads(capsys.readouterr().out)["rows"]}
    expected = compare(*results)
    assert list(rows["perplexity, stdlib"]["change"].values()) == list(expected["ppl"]["stdlib"])
    accuracy = [100 * end for end in expected["lm_eval"]["stdlib_cloze"]["acc,none"]]
    assert list(rows["stdlib_cloze, acc"]["change"].values()) == pytest.approx(accuracy)
    assert all(cell["note"] is None for cell in rows.values())


@pytest.fixture
def run_main(monkeypatch):
    """`main.main`, after which what it changes in its process is undone."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal
    level, random_state = logging.getLogger("quamba").level, torch.get_rng_state()
    yield main.main
    logging.getLogger("quamba").setLevel(level)
    torch.set_rng_state(random_state)


def test_the_log_of_main_compares_with_its_own_float_model(run_main, tmp_path, capsys):
    """The table that ends a run has the same figures and intervals."""

    def printed_cells() -> list[str]:
        line = next(line for line in capsys.readouterr().out.splitlines() if "perplexity, stdlib" in line)
        return [cell.strip() for cell in line.replace("│", "|").strip("|").split("|")]

    options = ["--quantize", "--testing", "--ppl_dataset", "stdlib", "--log_dir", str(tmp_path)]
    assert run_main(["mamba-tiny", *options]) == 0
    summary = printed_cells()
    run(tmp_path, "--against_float")
    assert printed_cells() == summary
