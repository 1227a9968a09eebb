"""The command line from end to end: what it prints, writes and saves, and how it ends on a mistake."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import main
import quamba
from quamba.calibration.recording import open_activations
from quamba.calibration.run import CalibrationResult
from quamba.checkpoint import recipe_of
from quamba.commands.quantize import run
from quamba.study.logs.result_log import read_logs
from quamba.text.data import load_text, text_sha256

ROOT = Path(main.__file__).parent
VOCABULARY = 50


@pytest.fixture(scope="module", autouse=True)
def process_state():
    """What runs change in their process is undone after the last one."""
    level, random_state = logging.getLogger("quamba").level, torch.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield
    logging.getLogger("quamba").setLevel(level)
    torch.set_rng_state(random_state)


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    """Files go to the test's own folder, and the hub is never asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # a wide terminal
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def write_tiny(folder: Path, model, tokenizer) -> list[str]:
    """The options of a run on a tiny float model and a small text, which are written there: `tiny`, `text.txt`."""
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    (folder / "text.txt").write_text(" ".join(f"w{1 + number * number % 49}" for number in range(300)))
    return ["tiny", "--ppl_dataset", "text.txt"]


@pytest.fixture
def tiny(tmp_path, tiny_mamba, tiny_tokenizer) -> list[str]:
    """See `write_tiny`."""
    return write_tiny(tmp_path, tiny_mamba(vocab_size=VOCABULARY), tiny_tokenizer)


QUANTIZE = ["--quantize", "--calib_dataset", "text.txt", "--calib_data_num", "8", "--calib_seqlen", "16"]


def read_log(name: str, folder: str | Path = "logs") -> dict:
    return json.loads((Path(folder) / f"{name}.json").read_text())


def fails(capsys, options: list[str]) -> str:
    """The one message of a run that ends with status 2: nothing else on stderr, no traceback, no log."""
    assert main.main(options) == 2
    err = capsys.readouterr().err
    assert err.startswith("main.py: error: ")
    assert "Traceback" not in err
    assert not list(Path().glob("logs/*"))
    return err.removeprefix("main.py: error: ").removesuffix("\n")


def test_without_quantize_the_float_model_is_measured(tiny, capsys):
    assert main.main(tiny) == 0
    log = read_log("tiny_fp")
    assert set(log) == {
        "args",
        "env",
        "model",
        "scheme",
        "recipe",
        "kernels",
        "ppl",
        "ppl_text_sha256",
        "ppl_tokens",
        "lm_eval",
        "size",
    }
    assert (log["model"], log["scheme"], log["recipe"]) == ("tiny", "fp", None)
    assert list(log["ppl"]) == ["text.txt"]
    assert log["ppl_tokens"] == {"text.txt": 300}  # behind the end-of-text token
    assert log["ppl_text_sha256"] == {"text.txt": text_sha256(load_text("text.txt"))}
    assert log["lm_eval"] == {}
    assert log["size"]["disk_bytes"] == (Path("tiny") / "model.safetensors").stat().st_size
    out = capsys.readouterr().out
    assert "perplexity, text.txt" in out
    assert "log         logs/tiny_fp.json" in out


def test_a_quantizing_run_logs_both_models(tiny, capsys):
    assert main.main([*tiny, *QUANTIZE]) == 0
    log = read_log("tiny_w8a8")
    assert set(log["float"]) == {"ppl", "lm_eval", "size"}
    assert log["ppl"]["text.txt"] == pytest.approx(log["float"]["ppl"]["text.txt"], rel=0.02)
    assert log["ppl"] != log["float"]["ppl"]
    assert log["saved"] is None
    assert log["recipe"]["scheme"]["name"] == "w8a8"
    out = capsys.readouterr().out
    for part in [
        "Calibrating: 8 sequences of 16 tokens of text.txt, seed 0",
        "tiny  w8a8",
        "change (95 % interval)",
        "size on disk, MB",
        "observers   percentile: in, conv_in, z; mse: x, out; minmax: dt_rank, B, C",
        "calibrated  on 128 tokens in ",
        f"kernels     {log['env']['instruction_set']}: ",
        "saved to    nowhere: give --pretrained_dir DIR",
        "log         logs/tiny_w8a8.json",
    ]:
        assert part in out
    assert not list(Path("logs").glob("*_fp.json"))


def test_the_values_per_window_lie_beside_the_log(tiny):
    assert main.main([*tiny, *QUANTIZE]) == 0
    log, values = read_log("tiny_w8a8"), read_log("tiny_w8a8.items")
    for logged, side in ((log, values), (log["float"], values["float"])):
        windows = side["ppl"]["text.txt"]
        assert np.exp(np.average(windows["nll"], weights=windows["tokens"])) == pytest.approx(logged["ppl"]["text.txt"])
    assert main.main([*tiny, *QUANTIZE, "--skip_float"]) == 0
    assert set(read_log("tiny_w8a8.items")) == {"ppl", "lm_eval"}


def test_skip_float_measures_the_quantized_model_alone(tiny):
    assert main.main([*tiny, *QUANTIZE, "--skip_float"]) == 0
    assert "float" not in read_log("tiny_w8a8")


def test_the_python_api_gives_the_same_figures(tiny):
    assert main.main([*tiny, *QUANTIZE, "--observer", "mse", "--seed", "3"]) == 0
    model, tokenizer = quamba.load("tiny")
    text = quamba.CalibrationText("text.txt", 8, 16, seed=3)
    quamba.quantize(model, tokenizer, observer="mse", calibration=text, progress=False)
    measured = quamba.evaluate(model, tokenizer, ["text.txt"], progress=False)
    assert measured["ppl"] == read_log("tiny_w8a8")["ppl"]


def test_the_same_command_gives_the_same_figures_and_keeps_the_older_log(tiny):
    for _ in range(2):
        assert main.main([*tiny, *QUANTIZE]) == 0
    paths = list(Path("logs").iterdir())
    logs = [json.loads(path.read_text()) for path in paths if not path.name.endswith(".items.json")]
    assert len(logs) == 2
    assert logs[0]["ppl"] == logs[1]["ppl"]
    assert logs[0]["calibration"]["taps"] == logs[1]["calibration"]["taps"]
    assert any(path.name.startswith("tiny_w8a8.2") for path in Path("logs").iterdir())


def test_use_outlier_aware_is_an_observer(tiny):
    taps = []
    for option in (["--use_outlier_aware"], ["--observer", "outlier_aware"]):
        assert main.main([*tiny, *QUANTIZE, *option]) == 0
        taps.append(read_log("tiny_w8a8")["calibration"]["taps"])
    assert taps[0] == taps[1]
    assert taps[0]["layers.0.x"]["saturated_share"] > 0


def test_percentile_alpha_reaches_the_observer(tiny):
    scales = {}
    for alpha in ("0.9", "0.999"):
        assert main.main([*tiny, *QUANTIZE, "--percentile_alpha", alpha]) == 0
        scales[alpha] = read_log("tiny_w8a8")["calibration"]["taps"]["layers.0.z"]["scale"]
    assert scales["0.9"] < scales["0.999"]


@pytest.mark.parametrize("options", [["--quantize_embedding", "--quantize_lm_head"], ["--rotate_residual"]], ids=str)
def test_a_saved_model_gives_the_same_perplexity(tiny, options):
    assert main.main([*tiny, *QUANTIZE, "--pretrained_dir", "models", *options]) == 0
    before = read_log("tiny_w8a8")
    assert before["saved"] == "models/tiny-w8a8"
    assert main.main(["models/tiny-w8a8", *tiny[1:]]) == 0
    after = read_log("tiny_w8a8")
    assert after["ppl"] == before["ppl"]
    assert after["size"] == before["size"]
    assert after["recipe"] == before["recipe"]
    assert after["recipe"]["rotate_residual"] is ("--rotate_residual" in options)
    assert after["recipe"]["tied_head"] is ("--quantize_lm_head" in options)


SCHEMES = {
    "w4a8": ["--w_bits", "4", "--group_size", "32"],
    "w4a8 dynamic": ["--w_bits", "4", "--dynamic", "--quantize_embedding", "--quantize_lm_head"],
    "w8a8 dynamic": ["--dynamic", "--quantize_lm_head", "--lm_head_bits", "4"],
    "w4a16": ["--w_bits", "4", "--a_bits", "16", "--quantize_embedding", "--embedding_bits", "8"],
    "w8a16": ["--a_bits", "16", "--quantize_embedding", "--quantize_lm_head", "--untie_embedding"],
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_runs_is_saved_and_is_measured_again(tiny, capsys, name):
    scheme, calibrated = name.split()[0], not name.endswith("a16")
    quantize = ["--quantize"] if name == "w8a16" else QUANTIZE  # below 8 bits the weights need text
    assert main.main([*tiny, *quantize, "--pretrained_dir", "models", *SCHEMES[name]]) == 0
    out = capsys.readouterr().out
    assert ("Calibrating: 8 sequences" in out) == calibrated == ("observers   percentile" in out)
    assert ("Activations stay float" in out) != calibrated
    before = read_log(f"tiny_{scheme}")
    assert f"recipe      {recipe_of(quamba.load(f'models/tiny-{scheme}')[0]).describe()}\n" in out
    assert ("calibration" in before) == calibrated
    (compared,) = read_logs([f"logs/tiny_{scheme}.json"])  # as `compare-logs` does
    assert (compared.scheme, compared.calibration is not None) == (scheme, calibrated)
    assert before["saved"] == f"models/tiny-{scheme}"
    assert before["ppl"]["text.txt"] == pytest.approx(before["float"]["ppl"]["text.txt"], rel=0.1)
    assert main.main([f"models/tiny-{scheme}", *tiny[1:]]) == 0
    after = read_log(f"tiny_{scheme}")
    assert (after["ppl"], after["size"], after["recipe"]) == (before["ppl"], before["size"], before["recipe"])


def test_a_dtype_is_kept_in_the_saved_model(tiny):
    assert main.main([*tiny, *QUANTIZE, "--pretrained_dir", "models", "--dtype", "bfloat16"]) == 0
    before = read_log("tiny_w8a8")
    assert main.main(["models/tiny-w8a8", *tiny[1:]]) == 0
    assert read_log("tiny_w8a8")["ppl"] == before["ppl"]


def test_a_plug_in_brings_an_observer(tiny):
    plugin = str(ROOT / "examples" / "my_observer.py")
    assert main.main([*tiny, *QUANTIZE, "--plugin", plugin, "--observer", "mine"]) == 0
    assert read_log("tiny_w8a8")["calibration"]["observer"]["x"] == "mine"


def test_a_calibration_is_written_and_then_reused(tiny, capsys):
    command = [*tiny, *QUANTIZE, "--observer", "mse", "--calibration", "kept/tiny.json"]
    assert main.main(command) == 0
    first = read_log("tiny_w8a8")
    written = CalibrationResult.load("kept/tiny.json")
    assert first["calibration"] == json.loads(json.dumps(written.figures()))
    capsys.readouterr()
    for again in (command, [*tiny, "--quantize", "--calibration", "kept/tiny.json"]):
        assert main.main(again) == 0
        assert "Calibrating: reusing an earlier result on 128 tokens of text.txt" in capsys.readouterr().out
        assert read_log("tiny_w8a8")["ppl"] == first["ppl"]
        assert read_log("tiny_w8a8")["calibration"] == first["calibration"]
    assert CalibrationResult.load("kept/tiny.json") == written


def test_activations_are_saved_beside_the_measurement(tiny, capsys):
    assert main.main([*tiny, *QUANTIZE, "--save_activations", "new/acts"]) == 0
    saved = list(open_activations("new/acts"))
    taps = read_log("tiny_w8a8")["calibration"]["taps"]
    assert [tap.name for tap in saved] == list(taps)
    assert all(tap.histogram.count == 8 * 16 * tap.values.shape[-1] for tap in saved)
    assert "activations new/acts (compare scales on them: python -m quamba observers" in capsys.readouterr().out
    assert read_log("tiny_w8a8")["args"]["save_activations"] == "new/acts"
    figures = read_log("tiny_w8a8")["ppl"]
    assert main.main([*tiny, *QUANTIZE]) == 0
    assert "activations new" not in capsys.readouterr().out
    assert read_log("tiny_w8a8")["ppl"] == figures


def test_a_calibration_and_its_activations_may_be_written_together(tiny):
    options = [*tiny, *QUANTIZE, "--skip_float", "--calibration", "tiny.json"]
    assert main.main([*options, "--save_activations", "acts"]) == 0
    assert set(CalibrationResult.load("tiny.json").taps) == {tap.name for tap in open_activations("acts")}
    assert main.main(options) == 0


def wikitext(folder: str, *parts: str) -> str:
    """A folder with those parts of a small WikiText: the option's value, which names it."""
    Path(folder).mkdir()
    for part in parts:
        (Path(folder) / f"{part}.txt").write_text(f" \n = w1 = \n \n w2 {'w3 w4 ' * 90}\n")
    return folder


@pytest.mark.parametrize("options", [[], QUANTIZE, ["--quantize", "--a_bits", "16"]], ids=str)
def test_perplexity_reads_a_folder_in_place_of_the_hub(tiny, options):
    folder = wikitext("texts", "test")
    assert main.main(["tiny", *options, "--ppl_dataset", "wikitext2", "--data_dir", folder]) == 0
    (log,) = [read_log(path.stem) for path in Path("logs").glob("*.json") if not path.name.endswith(".items.json")]
    assert log["ppl_text_sha256"] == {"wikitext2": text_sha256(load_text("wikitext2", "test", folder))}
    assert log["ppl"]["wikitext2"] > 1
    if "--calib_dataset" in options:
        assert log["calibration"]["text"]["data_dir"] is None  # of a file
        assert list(log["float"]["ppl"]) == ["wikitext2"]


def test_calibration_reads_a_folder_beside_another_text_for_perplexity(tiny):
    command = [*tiny, "--quantize", "--calib_dataset", "wikitext2", *QUANTIZE[3:], "--calibration", "tiny.json"]
    command += ["--skip_float", "--data_dir", wikitext("texts", "train")]
    for _ in range(2):  # the second time from the file
        assert main.main(command) == 0
        text = read_log("tiny_w8a8")["calibration"]["text"]
        assert (text["dataset"], text["data_dir"]) == ("wikitext2", "texts")
        assert list(read_log("tiny_w8a8")["ppl"]) == ["text.txt"]


def test_a_folder_without_the_test_split_is_told_before_a_model_is_loaded(tiny, capsys, monkeypatch):
    monkeypatch.setattr(run, "load_checkpoint", lambda *_: pytest.fail("the model was loaded"))
    command = ["tiny", "--quantize", "--calib_dataset", "wikitext2", "--data_dir", wikitext("texts", "train")]
    told = fails(capsys, command)  # wikitext2 is the default of perplexity too
    assert told.startswith("--data_dir texts has no test split of wikitext2: looked in it and in its folders ")


def test_verbose_tells_what_is_going_on(tiny, caplog):
    assert main.main([*tiny, *QUANTIZE, "--verbose"]) == 0
    assert "calibrated on 128 tokens" in caplog.text
    caplog.clear()
    assert main.main([*tiny, *QUANTIZE]) == 0
    assert "calibrated on" not in caplog.text


def test_other_models_are_measured_too(tiny, tiny_tokenizer):
    """Only quantizing needs a Mamba."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=48, num_attention_heads=2))
    model.save_pretrained("llama")
    tiny_tokenizer.save_pretrained("llama")
    assert main.main(["llama", *tiny[1:]]) == 0
    assert read_log("llama_fp")["ppl"]["text.txt"] > 1
