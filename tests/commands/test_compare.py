"""`python -m quamba compare`: models on the same windows, in pairs."""

import json
import weakref

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quamba
from quamba.__main__ import main
from quamba.checkpoint import saved_dtype
from quamba.checkpoint.load_float import quiet_transformers
from quamba.commands import compare
from quamba.evaluation.sliding import joined_stream, sliding_perplexity, sliding_windows
from quamba.study.models import sources
from quamba.study.models.sources import ModelSource, find_models
from quamba.text.data import text_sha256

from ..checkpoint.test_state_spaces import MAMBA1, original_tensors, write_original

TEXT = " ".join(f"w{(i * i + 3 * i) % 50}" for i in range(1, 90))
SHORT = ["--datasets", "text.txt", "--max_length", "16", "--stride", "6", "--resamples", "200"]


@pytest.fixture(autouse=True)
def process_state(monkeypatch, tmp_path):
    """Runs in a folder of its own; what a run changes in its process is undone."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)


@pytest.fixture
def save(tmp_path, tiny_tokenizer):
    """A function that saves a model beside the tokenizer as a folder of that name."""

    def write(name: str, model, tokenizer=tiny_tokenizer):
        if getattr(model.config, "quantization_config", None):
            quamba.save(model, tokenizer, tmp_path / name)
            return
        with quiet_transformers():  # whose bars would stand among what the command prints
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)

    return write


@pytest.fixture
def models(save, tiny_mamba):
    """The float model `a`, another one `b` that differs from it a little, and `a` quantized: `a-w8a16`."""
    save("a", tiny_mamba())
    other = tiny_mamba()
    other.backbone.norm_f.weight *= 1.1
    save("b", other)
    save("a-w8a16", quamba.quantize(tiny_mamba(), None, "w8a16", progress=False))


def tiny_llama(**options) -> LlamaForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, **options)).eval()


def report(capsys, *options: str) -> dict:
    assert main(["compare", *options, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def mistake(capsys, *options: str) -> str:
    """The one line that a run ends with."""
    assert main(["compare", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quamba compare: error: ")
    assert err.count("\n") == 1
    return err


# --- what is measured ---


def test_figures_are_those_of_the_models_on_the_sliding_windows(models, capsys):
    data = report(capsys, "a", "b", *SHORT)
    assert [model["label"] for model in data["models"]] == ["a", "b"]
    assert (data["base"], data["max_length"], data["stride"], data["resamples"]) == ("a", 16, 6, 200)
    for model in data["models"]:
        loaded, tokenizer = quamba.load(model["path"])
        windows = sliding_windows(joined_stream([TEXT], tokenizer), 16, 6)
        expected = sliding_perplexity(loaded, windows, progress=False)
        figures = model["texts"]["text.txt"]
        assert figures["ppl"] == pytest.approx(expected.ppl)
        assert figures["tokens"] == expected.tokens == 89
        assert figures["window_nll"] == pytest.approx(expected.window_nll.tolist())
    (text,) = data["texts"]
    assert (text["name"], text["tokens"], text["windows"]) == ("text.txt", 90, len(windows))


def test_the_difference_is_a_ratio_with_an_interval_from_pairs_of_windows(models, capsys):
    first, second = report(capsys, "a", "b", *SHORT)["models"]
    ratio = second["texts"]["text.txt"]["ratio"]
    assert ratio["estimate"] == pytest.approx(second["texts"]["text.txt"]["ppl"] / first["texts"]["text.txt"]["ppl"])
    assert ratio["low"] < ratio["estimate"] < ratio["high"]
    assert first["texts"]["text.txt"]["ratio"] is None


def test_a_model_does_not_differ_from_itself(models, capsys):
    data = report(capsys, "a", "a", *SHORT)
    assert [model["label"] for model in data["models"]] == ["a #1", "a #2"]
    assert data["models"][1]["texts"]["text.txt"]["ratio"] == {"estimate": 1, "low": 1, "high": 1}


def test_quantized_models_and_transformers_take_part(models, save, capsys):
    save("llama", tiny_llama(max_position_embeddings=64))
    data = report(capsys, "llama", "a", "a-w8a16", *SHORT)
    assert [(model["label"], model["scheme"]) for model in data["models"]] == [
        ("llama", None),
        ("a", None),
        ("a-w8a16", "w8a16"),
    ]
    ppl = [model["texts"]["text.txt"]["ppl"] for model in data["models"]]
    assert ppl[2] == pytest.approx(ppl[1], rel=0.05) and ppl[2] != ppl[1]


def test_a_folder_stands_in_for_the_texts_that_it_can(models, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "test.txt").write_text(TEXT)
    options = ["--datasets", "text.txt,wikitext2", "--data_dir", "texts", *SHORT[2:]]
    data = report(capsys, "a", "b", *options)
    assert [(text["name"], text["sha256"]) for text in data["texts"]] == [
        ("text.txt", text_sha256([TEXT])),
        ("wikitext2", text_sha256([f"{TEXT}\n"])),
    ]
    assert set(data["models"][0]["texts"]) == {"text.txt", "wikitext2"}


def test_several_texts_have_columns_of_their_own(models, tmp_path, capsys):
    (tmp_path / "more.txt").write_text(TEXT[: len(TEXT) // 2])
    assert main(["compare", "a", "b", *SHORT[2:], "--datasets", "text.txt,more.txt", "--labels", "x,y"]) == 0
    header, _, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "perplexity",
        "format",
        "text.txt",
        "vs x",
        "more.txt",
        "vs x",
    ]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [(row[0], row[1]) for row in cells] == [("x", "float32"), ("y", "float32")]
    assert cells[0][3] == "" and cells[1][3].startswith("x")


def test_markdown_states_the_windows_and_the_interval(models, capsys):
    assert main(["compare", "a", "b", *SHORT, "--confidence", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "Windows of 16 tokens, one every 6; " in out
    assert "text.txt: 89 tokens predicted in 14 windows." in out
    assert "the 90 % interval of a bootstrap over the pairs of windows (200 resamples, seed 0)" in out


def test_one_window_gives_no_interval(models, capsys):
    data = report(capsys, "a", "b", *SHORT, "--n_samples", "1")
    ratio = data["models"][1]["texts"]["text.txt"]["ratio"]
    assert (ratio["low"], ratio["high"]) == (None, None)
    assert data["texts"][0]["windows"] == 1
    assert data["models"][0]["texts"]["text.txt"]["window_tokens"] == [15]


def test_the_same_command_prints_the_same(models, capsys):
    assert report(capsys, "a", "b", *SHORT) == report(capsys, "a", "b", *SHORT)


def test_output_goes_to_a_file(models, tmp_path, capsys):
    assert main(["compare", "a", "b", *SHORT, "--output", "out/table.md"]) == 0
    assert (tmp_path / "out" / "table.md").read_text().startswith("| perplexity")
    assert capsys.readouterr() == ("", "report  out/table.md\n")


def test_only_one_model_is_in_memory_at_a_time(models, monkeypatch, capsys):
    loaded, load = [], ModelSource.load

    def watched(source):
        assert all(reference() is None for reference in loaded), "the model before it is still there"
        model = load(source)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(ModelSource, "load", watched)
    report(capsys, "a", "b", "a-w8a16", *SHORT)
    assert len(loaded) == 3


def test_a_broken_model_is_infinitely_perplexed(models, save, tiny_mamba, capsys):
    broken = tiny_mamba()
    broken.backbone.norm_f.weight.fill_(1e30)  # finite, as is the loss: its exponential is not
    save("broken", broken)
    figures = report(capsys, "a", "broken", *SHORT)["models"][1]["texts"]["text.txt"]
    assert (figures["ppl"], figures["ratio"]["estimate"], figures["ratio"]["low"]) == (None, None, None)


# --- defaults ---


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"torch_dtype": "torch.bfloat16"}, torch.bfloat16),
        ({}, torch.float32),
        ({"dtype": None}, torch.float32),
        ({"dtype": "float32", "quantization_config": {"quant_method": "quamba"}}, None),
    ],
)
def test_the_dtype_is_the_one_that_config_json_states(tmp_path, config, dtype):
    checkpoint = quamba.checkpoint.Checkpoint("m", tmp_path, config, "directory")
    assert saved_dtype(checkpoint) is dtype


def test_models_are_measured_as_they_were_saved_or_as_asked(save, tiny_mamba, capsys):
    save("half", tiny_mamba().to(torch.bfloat16))
    save("full", tiny_mamba())
    saved = report(capsys, "half", "full", *SHORT)
    assert [model["dtype"] for model in saved["models"]] == ["bfloat16", "float32"]
    asked = report(capsys, "half", "full", *SHORT, "--dtype", "float32")
    assert [model["dtype"] for model in asked["models"]] == ["float32", "float32"]
    assert saved["models"][0]["texts"] != asked["models"][0]["texts"]


def test_the_default_text_is_the_embedded_one_beside_an_embedded_model(models):
    assert compare._default_text(find_models(["mamba-tiny", "a"])) == "stdlib"
    assert compare._default_text(find_models(["a", "b"])) == "wikitext2"


def test_windows_are_as_long_as_every_model_has_positions(models, save, capsys):
    save("llama", tiny_llama(max_position_embeddings=24))
    data = report(capsys, "a", "llama", "--datasets", "text.txt")
    assert (data["max_length"], data["stride"]) == (24, 6)
    data = report(capsys, "a", "b", "--datasets", "text.txt")
    assert (data["max_length"], data["stride"]) == (2048, 512)
    assert "llama has 24 positions" in mistake(capsys, "a", "llama", "--datasets", "text.txt", "--max_length", "25")


def test_models_of_one_name_are_told_apart_by_their_folders(models, save, tiny_mamba):
    save("x/m.1", tiny_mamba())
    save("y/m.1", tiny_mamba())
    assert [source.label for source in find_models(["x/m.1", "y/m.1"])] == ["x", "y"]
    assert [source.label for source in find_models(["x/m.1", "a"])] == ["m.1", "a"]


def test_a_lone_tokenizer_json_has_the_end_token_that_quamba_load_gives_it(tmp_path, tiny_mamba, tiny_tokenizer):
    """The stream begins with it: the original format comes without a tokenizer, and config.json without its roles."""
    write_original(tmp_path / "original", MAMBA1, original_tensors(tiny_mamba()))
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "original" / "tokenizer.json"))
    source = find_models(["original", "original"])[0]
    assert source.tokenizer().eos_token_id == quamba.load("original")[1].eos_token_id == 0


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a"], "takes two models or more, not 1"),
        (["a", "empty"], "has no config.json"),
        (["a", "b", "--labels", "x"], "--labels names 1 (x) for 2 models"),
        (["a", "b", "--labels", "x,x"], "--labels names 'x' twice"),
        (["a", "b", "--stride", "17", "--max_length", "16"], "stride is 17: give 1 to max_length, which is 16"),
        (["a", "b", "--max_length", "1"], "max_length is 1"),
        (["a", "b", "--datasets", "missing.txt"], "unknown text 'missing.txt'"),
        (["a", "b", "--datasets", "text.txt,text.txt"], "the text 'text.txt' is given twice"),
        (["a", "b", "--datasets", "text.txt,c4", "--data_dir", "empty"], "--data_dir empty has no test split of c4"),
        (["a", "b", "--datasets", "text.txt,stdlib", "--data_dir", "empty"], "not for the texts 'text.txt', 'stdlib'"),
        (["a", "b", "--output", "a"], "--output a is a folder"),
        (["a", "b", "--output", "text.txt/x"], "cannot write to --output text.txt/x: Not a directory"),
        (["a", "foreign"], "was quantized with 'gptq'"),
        (["a", "small"], "text.txt has token 48, and the embedding of small 20 rows"),
        (["a", "words"], "the tokenizers of a and words give different tokens of text.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_a_model_is_loaded(
    models, save, tiny_mamba, tmp_path, monkeypatch, capsys, options, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    config = {"model_type": "mamba", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "foreign" / "config.json").write_text(json.dumps(config))
    save("small", tiny_mamba(vocab_size=20))
    save("words", tiny_mamba())
    vocabulary = json.loads((tmp_path / "words" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["w4"], words["w8"] = words["w8"], words["w4"]
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(vocabulary))
    monkeypatch.setattr(sources, "load_checkpoint", lambda *_: pytest.fail("a model was loaded"))
    defaults = [] if "--datasets" in options else ["--datasets", "text.txt"]
    assert message in mistake(capsys, *options, *defaults)


@pytest.mark.parametrize(
    "option",
    [
        "--confidence=1",
        "--resamples=0",
        "--seed=-1",
        "--format=csv",
        "--labels=,",
        "--n_samples=0",
        "--stride=0",
        "--dtype=int8",
    ],
)
def test_options_out_of_range_are_refused(models, capsys, option):
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", option])
    assert option.partition("=")[0] in capsys.readouterr().err
