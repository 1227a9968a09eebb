"""The command line on Mamba2's own options and on mixed precision, from end to end."""

import json
from pathlib import Path

import pytest

import main
import quamba
from quamba.__main__ import main as quamba_main
from quamba.checkpoint import recipe_of, resolve_checkpoint
from quamba.commands.quantize import run
from quamba.commands.quantize import texts as run_texts
from quamba.study.logs.result_log import find_log, read_logs
from tests.test_main import QUANTIZE, VOCABULARY, fails, place, process_state, read_log, write_tiny  # noqa: F401 (fixtures)
from tests.tiny_hybrids import tiny_bamba

GROUPS = ["--group_heads", "--head_groups", "2", "--channel_groups", "3", "--state_bits", "8"]
SHORT = ["--datasets", "text.txt", "--max_length", "16", "--resamples", "50"]


@pytest.fixture(params=["mamba", "mamba2"])
def family(request) -> str:
    return request.param


@pytest.fixture
def tiny(tmp_path, family, tiny_mamba, tiny_mamba2, tiny_tokenizer) -> list[str]:
    """The options of a run on a tiny float model and a small text: `tiny`, `text.txt`."""
    build = {"mamba": tiny_mamba, "mamba2": tiny_mamba2}[family]
    return write_tiny(tmp_path, build(vocab_size=VOCABULARY), tiny_tokenizer)


only_mamba2 = pytest.mark.parametrize("family", ["mamba2"], indirect=True)
only_mamba = pytest.mark.parametrize("family", ["mamba"], indirect=True)


# --- groups and states ---


@only_mamba2
def test_groups_and_integer_states_are_saved_and_measured_again(tiny, capsys):
    assert main.main([*tiny, *QUANTIZE, *GROUPS, "--pretrained_dir", "models"]) == 0
    assert "grouped heads, int8 SSM states" in capsys.readouterr().out
    before = read_log("tiny_w8a8")
    taps = before["calibration"]["taps"]
    assert len(taps["layers.0.x"]["scale"]) == 2 * 2 * 3
    assert len(taps["layers.0.state"]["scale"]) == 4 * 16  # of every channel
    assert before["recipe"]["state_bits"] == 8 and before["recipe"]["reordered"]
    assert "orders" not in before["calibration"]
    assert before["ppl"]["text.txt"] == pytest.approx(before["float"]["ppl"]["text.txt"], rel=0.1)
    (compared,) = read_logs(["logs/tiny_w8a8.json"])
    assert compared.calibration.sqnr_db["layers.0.x"] > 20
    assert main.main(["models/tiny-w8a8", *tiny[1:]]) == 0
    after = read_log("tiny_w8a8")
    assert (after["ppl"], after["size"], after["recipe"]) == (before["ppl"], before["size"], before["recipe"])


@only_mamba2
def test_a_calibration_of_groups_is_written_and_reused(tiny, capsys):
    run = [*tiny, *QUANTIZE, *GROUPS, "--calibration", "tiny.json", "--skip_float"]
    assert main.main(run) == 0
    first = read_log("tiny_w8a8")
    assert main.main(run) == 0
    assert "reusing an earlier result" in capsys.readouterr().out
    assert read_log("tiny_w8a8")["ppl"] == first["ppl"]
    assert read_log("tiny_w8a8")["calibration"] == first["calibration"]
    assert main.main([*run, "--channel_groups", "2"]) == 2
    assert "or to other transforms of it" in capsys.readouterr().err


@only_mamba2
def test_activations_of_groups_and_states_are_saved_and_compared(tiny, capsys):
    options = ["--save_activations", "acts", "--observer", "x=percentile", "--skip_float"]
    assert main.main([*tiny, *QUANTIZE, *GROUPS, *options]) == 0
    assert quamba_main(["observers", "--activations", "acts", "--taps", "x,state,B", "--observer", "mse"]) == 0
    assert "state" in capsys.readouterr().out


# --- mixed precision ---


@pytest.mark.parametrize("layers", [["w4a8", "w8a8"], ["w8a8", "w4a16"]], ids="+".join)
def test_a_file_of_schemes_is_quantized_saved_and_measured_again(tiny, capsys, layers):
    Path("schemes.json").write_text(json.dumps(layers))
    file = ["--hybrid_blocks", "--hybrid_blocks_config", "schemes.json", "--group_size", "32"]
    assert main.main([*tiny, *QUANTIZE, *file, "--pretrained_dir", "models"]) == 0
    name = "+".join(sorted(layers))
    out, before = capsys.readouterr().out, read_log(f"tiny_{name}")
    assert before["saved"] == "models/tiny-w8a8-hybrid"
    assert (before["model"], before["scheme"]) == ("tiny", name)
    assert f"1 of 2 layers {layers[0]}" in out
    assert read_logs([f"logs/tiny_{name}.json"])[0].scheme == name
    assert main.main(["models/tiny-w8a8-hybrid", *tiny[1:]]) == 0
    after = read_log(f"tiny_{name}")  # the same name: that of the model it was made from
    assert (after["ppl"], after["size"], after["recipe"]) == (before["ppl"], before["size"], before["recipe"])
    assert run_texts.model_name(resolve_checkpoint("models/tiny-w8a8-hybrid", None)) == "tiny"


def test_a_search_writes_what_it_found_and_the_file_gives_the_same_model(tiny, capsys):
    search = ["--hybrid_search", "10", "--weight_method", "gptq"]  # rows of 32 columns: scales take a bit a weight
    assert main.main([*tiny, *QUANTIZE, *search, "--pretrained_dir", "models"]) == 0
    out = capsys.readouterr().out
    assert "Searching schemes of the layers, w4a8 or w8a8 within 10: " in out
    assert "schemes     logs/tiny.hybrid.json, " in out
    found = json.loads(Path("logs/tiny.hybrid.json").read_text())
    recipe = recipe_of(quamba.load("models/tiny-w8a8-hybrid")[0])
    assert [scheme.name for scheme in recipe.layers] == found["layers"]
    assert found["search"]["budget"] == "10" and found["search"]["mean_bits"] <= 10
    log = find_log("logs")  # the file of the schemes is none
    first = json.loads(log.read_text())
    file = ["--hybrid_blocks", "--hybrid_blocks_config", "logs/tiny.hybrid.json", "--weight_method", "gptq"]
    assert main.main([*tiny, *QUANTIZE, *file, "--skip_float"]) == 0
    again = json.loads(log.read_text())
    assert (again["ppl"], again["recipe"]) == (first["ppl"], first["recipe"])


@only_mamba2
def test_a_search_goes_together_with_the_other_options(tiny):
    options = ["--dynamic", "--group_size", "32", "--rotate_residual", "--quantize_lm_head", *GROUPS]
    options += ["--hybrid_search", "7", "--hybrid_blocks", "--hybrid_blocks_config", "new/found.json", "--skip_float"]
    assert main.main([*tiny, *QUANTIZE, *options]) == 0
    assert set(json.loads(Path("new/found.json").read_text())["layers"]) <= {"w4a8", "w8a8"}


@only_mamba
def test_a_search_of_weights_alone(tiny):
    options = ["--a_bits", "16", "--hybrid_search", "10", "--weight_method", "rtn", "--skip_float"]
    assert main.main([*tiny, *QUANTIZE, *options]) == 0
    assert "calibration" not in json.loads(find_log("logs").read_text())


@only_mamba
def test_a_search_may_leave_all_activations_float(tiny, capsys):
    options = ["--hybrid_search", "10", "--hybrid_schemes", "w4a8,w8a16", "--skip_float", "--observer", "mse"]
    assert main.main([*tiny, *QUANTIZE, *options]) == 0
    assert "Activations stay float" in capsys.readouterr().out
    assert read_log("tiny_w8a16")["recipe"]["layers"][0]["name"] == "w8a16"


@only_mamba2
def test_weights_are_rounded_as_the_bits_that_layers_really_have_say(tiny, capsys):
    """To nearest where all have 8, whether a file says so or a search finds it, unless an option is for more."""
    Path("eight.json").write_text('["w8a8", "w8a8"]')
    file, search = ["--hybrid_blocks", "--hybrid_blocks_config", "eight.json"], ["--hybrid_search", "100"]
    assert "--n_grid does nothing with --weight_method rtn" in fails(capsys, [*tiny, *QUANTIZE, *file, "--n_grid", "5"])
    for options in (file, search):
        assert main.main([*tiny, *QUANTIZE, *options, "--skip_float"]) == 0
        assert "2 of 2 layers w8a8" in (out := capsys.readouterr().out) and "Rounding weights" not in out
        assert "weights" not in read_log("tiny_w8a8")
        assert not list(Path("logs").glob("*.partial"))
    assert main.main([*tiny, *QUANTIZE, *search, "--layer_batch_size", "1", "--skip_float"]) == 0
    assert "Rounding weights, gptq" in capsys.readouterr().out
    Path("three.json").write_text('["w3a8", "w8a8"]')
    assert main.main([*tiny, *QUANTIZE, *file[:2], "three.json", "--skip_float"]) == 0
    assert "Rounding weights, gptq, hessian flips" in capsys.readouterr().out


@only_mamba
def test_texts_of_a_search_without_a_calibration_are_checked(tiny, capsys, monkeypatch):
    """With float activations, and weights rounded to nearest, nothing but the search reads calibration text."""
    monkeypatch.setattr(run, "measure", None)
    options = ["--quantize", "--a_bits", "16", "--weight_method", "rtn", "--hybrid_search", "10"]
    Path("few.txt").write_text("w1 w2")
    told = fails(capsys, [*tiny, *options, "--calib_dataset", "few.txt"])
    assert "too short" in told or "tokens" in told
    told = fails(capsys, [*tiny, *options, "--calib_dataset", "wikitext2", "--data_dir", "here"])
    assert "--data_dir here does not exist: name a folder or a file that holds wikitext2" in told


# --- hybrids ---


@only_mamba2
def test_a_hybrid_says_which_of_its_activations_are_quantized(tiny, tiny_tokenizer, capsys):
    tiny_bamba(vocab_size=VOCABULARY).save_pretrained("bamba")
    tiny_tokenizer.save_pretrained("bamba")
    run = ["bamba", *tiny[1:], *QUANTIZE, "--skip_float"]
    capsys.readouterr()  # bars of what was saved
    told = fails(capsys, [*run, "--hybrid_search", "10"])
    assert "a search measures the blocks of Mamba models, not of 'bamba': name the schemes of its layers" in told
    assert main.main([*run, *GROUPS[:-2], "--pretrained_dir", "models"]) == 0
    recipe = "activations int8 per tensor in 2 Mamba blocks, float in the other layers"
    assert f"{recipe}, grouped heads" in capsys.readouterr().out
    assert main.main(["models/bamba-w8a8", *tiny[1:]]) == 0
    assert recipe in capsys.readouterr().out
    Path("schemes.json").write_text('["w4a8", "w8a8", "w8a8"]')
    assert main.main([*run, "--hybrid_blocks", "--hybrid_blocks_config", "schemes.json"]) == 0
    assert "activations int8 per tensor in 1 Mamba block, float in the other layers)" in capsys.readouterr().out


# --- the other commands on such models ---


def test_the_other_commands_take_such_models(tiny, family, capsys):
    Path("schemes.json").write_text('["w4a8", "w8a8"]')
    options = ["--hybrid_blocks", "--hybrid_blocks_config", "schemes.json", *(GROUPS if family == "mamba2" else [])]
    assert main.main([*tiny, *QUANTIZE, *options, "--pretrained_dir", "models", "--skip_float"]) == 0
    model = "models/tiny-w8a8-hybrid"
    capsys.readouterr()
    assert quamba_main(["compare", "tiny", model, *SHORT]) == 0
    assert "w4a8+w8a8" in capsys.readouterr().out
    assert quamba_main(["profile", model, "--prompt_len", "4", "--gen_len", "2", "--repeats", "1"]) == 0
    assert "w4a8+w8a8" in capsys.readouterr().out
    assert quamba_main(["diagnose", "tiny", model, "--dataset", "text.txt"]) == 0
    assert ("stand in another order" in capsys.readouterr().out) == (family == "mamba2")
    assert main.main(tiny) == 0
    capsys.readouterr()
    assert quamba_main(["compare-logs", "logs/tiny_fp.json", "logs/tiny_w4a8+w8a8.json"]) == 0
    assert "w4a8+w8a8" in capsys.readouterr().out


# --- mistakes ---


@only_mamba
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group_heads"], "group_heads is for Mamba2, whose blocks have heads, not for 'mamba': drop it"),
        (["--state_bits", "8"], "models of type 'mamba' keep float32 states: leave state_bits at 32"),
        (["--head_groups", "2"], "--head_groups does nothing without --group_heads"),
        (["--channel_groups", "2"], "--channel_groups does nothing without --group_heads"),
        (["--a_bits", "16", "--group_heads"], "--group_heads does nothing with --a_bits 16: activations stay float"),
        (["--a_bits", "16", "--state_bits", "8"], "SSM states of 8 bits need 8-bit activations in every layer"),
        (["--observer", "state=mse"], "this model has no tap 'state'"),
        (["--hybrid_blocks"], "--hybrid_blocks needs --hybrid_blocks_config FILE"),
        (["--hybrid_blocks", "--hybrid_blocks_config", "none.json"], "cannot read none.json"),
        (["--hybrid_blocks", "--hybrid_blocks_config", "text.txt"], "text.txt is no JSON"),
        (["--hybrid_search", "2"], "the budget 2 is too small: with every layer at the smallest of w4a8, w8a8"),
        (["--hybrid_search", "10", "--hybrid_blocks_config", "text.txt/a.json"], "text.txt/a.json: Not a directory"),
        (["--hybrid_search", "10", "--hybrid_blocks_config", "."], ". is a folder: name a file"),
        (["--hybrid_search", "10", "--hybrid_blocks_config", "notes.txt"], "notes.txt was not written by a search"),
        (["--hybrid_search", "10", "--group_heads"], "group_heads is for Mamba2"),
        (["--hybrid_search", "10", "--w_bits", "4"], "--w_bits 4 does nothing where layers have schemes of their own"),
        (["--quantize_embedding", "--embedding_bits", "0"], "embedding_bits are 3, 4 or 8, not 0"),
        (["--quantize_lm_head", "--lm_head_bits", "5"], "lm_head_bits are 3, 4 or 8, not 5"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_before_anything_is_measured(tiny, capsys, monkeypatch, options, message):
    monkeypatch.setattr(run, "measure", None)
    Path("notes.txt").write_text("the user's own")
    read = ["--quantize"] if "--a_bits" in options else QUANTIZE  # weights alone need no text
    told = fails(capsys, [*tiny, *read, *options])
    assert message in told
    assert len(told.splitlines()) == 1


@only_mamba2
def test_more_groups_than_a_model_has_are_refused(tiny, capsys, monkeypatch):
    monkeypatch.setattr(run, "measure", None)
    for option, message in (
        ("--head_groups", "head_groups 99 is too many: there are 2 heads in an SSD group, so give 2 at most"),
        ("--channel_groups", "channel_groups 99 is too many: there are 16 channels in a head, so give 16 at most"),
    ):
        assert message in fails(capsys, [*tiny, *QUANTIZE, "--group_heads", option, "99"])


@only_mamba
def test_options_of_mamba2_need_quantize(tiny, capsys):
    for option in (["--group_heads"], ["--state_bits", "8"], ["--hybrid_search", "5"], ["--hybrid_blocks"]):
        assert f"{option[0]} does nothing without --quantize" in fails(capsys, [*tiny, *option])
