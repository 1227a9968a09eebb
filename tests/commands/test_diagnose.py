"""`python -m quamba diagnose`: from two names to the report."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import quamba
from quamba.__main__ import main
from quamba.checkpoint.load_float import quiet_transformers
from quamba.study.models import sources

TEXT = " ".join(f"w{(i * i + 3 * i) % 50}" for i in range(1, 90))
SHORT = ["--dataset", "text.txt", "--n_samples", "3", "--seqlen", "16"]


@pytest.fixture(autouse=True)
def process_state(monkeypatch, tmp_path):
    """Runs in a folder of its own; what a run changes in its process is undone."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)


@pytest.fixture
def save(tmp_path, tiny_tokenizer):
    """A function that saves a float model beside the tokenizer as a folder of that name."""

    def write(name: str, model):
        with quiet_transformers():  # whose bars would stand among what the command prints
            model.save_pretrained(tmp_path / name)
            tiny_tokenizer.save_pretrained(tmp_path / name)

    return write


@pytest.fixture
def models(save, tiny_mamba, tiny_tokenizer, tmp_path):
    """The float model `a`, `b` with another out_proj in layer 1, `a-w8a16`, and the transformer `llama`."""
    save("a", tiny_mamba())
    other = tiny_mamba()
    other.backbone.layers[1].mixer.out_proj.weight *= 1.5
    save("b", other)
    quamba.save(quamba.quantize(tiny_mamba(), None, "w8a16", progress=False), tiny_tokenizer, tmp_path / "a-w8a16")
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=24)
    save("llama", LlamaForCausalLM(config))


def report(capsys, *options: str) -> dict:
    assert main(["diagnose", *options, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_the_changed_layer_and_its_tensor_are_found(models, capsys):
    data = report(capsys, "a", "b", *SHORT)
    assert (data["models"], data["settings"]["windows"]) == (["a", "b"], 3)
    assert data["parting"]["layer"] == 1
    assert [layer["relative"] == 0 for layer in data["layers"]] == [True, True, False]
    assert data["tensors"]["differences"][0]["name"] == "backbone.layers.1.mixer.out_proj.weight"
    assert data["tensors"]["identical"] == data["tensors"]["compared"] - 1
    assert data["logits"]["kl_mean"] > 0
    assert data["logits"]["positions"] == 3 * 16


def test_a_model_does_not_differ_from_itself(models, capsys):
    data = report(capsys, "a", "a", *SHORT, "--tolerance", "0")
    assert (data["logits"]["kl_max"], data["logits"]["agreement"], data["parting"]) == (0, 1, None)
    assert data["tensors"]["identical"] == data["tensors"]["compared"]


def test_a_quantized_model_lies_near_its_float_model(models, capsys):
    data = report(capsys, "a", "a-w8a16", *SHORT, "--top", "100")
    relative = {entry["name"]: entry["relative"] for entry in data["tensors"]["differences"]}
    assert 0 < relative["backbone.layers.0.mixer.in_proj.weight"] < 0.02
    assert 0 < relative["backbone.layers.0.mixer.out_proj.weight"] < 0.02
    assert 0 < data["logits"]["kl_mean"] < 0.01


def test_models_of_different_families_are_compared_by_what_they_predict(models, capsys):
    assert main(["diagnose", "a", "llama", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "Tensors with a counterpart: 1, of which 0 are equal in every value." in out  # the head
    assert "They part" not in out
    assert "Note: the models have 2 blocks of width 32 and 1 of width 32: hidden states are not compared." in out


def test_markdown_goes_to_the_standard_output_or_to_a_file(models, tmp_path, capsys):
    assert main(["diagnose", "a", "b", *SHORT, "--labels", "old,new", "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("old (a) and new (b) on 3 windows of 16 tokens of text.txt, in float32\n")
    assert "They part at layer 1: " in out
    assert main(["diagnose", "a", "b", *SHORT, "--labels", "old,new", "--top", "1", "--output", "out/d.md"]) == 0
    assert (tmp_path / "out" / "d.md").read_text() == out
    assert capsys.readouterr() == ("", "report  out/d.md\n")


def test_the_default_is_eight_windows_of_the_embedded_text(capsys):
    data = report(capsys, "mamba-tiny", "mamba-tiny")
    assert data["settings"] == {"dataset": "stdlib", "windows": 8, "seqlen": 256, "dtype": "float32"}
    assert data["logits"]["positions"] == 8 * 256
    assert (data["logits"]["kl_max"], data["parting"], len(data["layers"])) == (0, None, 1 + 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "empty"], "has no config.json"),
        (["a", "b", "--labels", "x"], "--labels names 1 (x) for 2 models"),
        (["a", "b", "--seqlen", "91"], "the text has 90 tokens, fewer than a window of 91"),
        (["a", "llama", "--seqlen", "25"], "llama has 24 positions"),
        (["a", "b", "--dataset", "missing.txt"], "unknown text 'missing.txt'"),
        (["a", "b", "--output", "a"], "--output a is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(models, tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sources, "load_checkpoint", lambda *_: pytest.fail("a model was loaded"))
    defaults = [] if "--dataset" in options else ["--dataset", "text.txt"]
    assert main(["diagnose", *options, *defaults]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("quamba diagnose: error: ") and err.count("\n") == 1
    assert message in err


def test_models_of_different_vocabularies_are_refused(models, save, tiny_mamba, capsys):
    save("large", tiny_mamba(vocab_size=104))
    assert main(["diagnose", "a", "large", *SHORT]) == 2
    assert "they do not share a vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--tolerance=-1", "--tolerance=nan", "--top=0", "--seqlen=0", "--format=csv"])
def test_options_out_of_range_are_refused(capsys, option):
    with pytest.raises(SystemExit):
        main(["diagnose", "a", "b", option])
    assert option.partition("=")[0] in capsys.readouterr().err
