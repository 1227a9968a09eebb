"""Every command on models that are no Mamba, float and quantized: what needs no Mamba block runs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import main
import quamba
from quamba.__main__ import main as quamba_main

VOCABULARY = 60


@pytest.fixture
def models(tmp_path, monkeypatch, tiny_tokenizer) -> dict[str, str]:
    """Folders of a float Llama, of its weights in 8 bits, and of a float GPT-2; the working directory has a text."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    llama = LlamaConfig(
        **sizes, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16
    )
    gpt2 = GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    tokenizer = tiny_tokenizer
    for name, model in (("llama", LlamaForCausalLM(llama)), ("gpt2", GPT2LMHeadModel(gpt2))):
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)
    model = quamba.quantize(quamba.load("llama")[0], None, "w8a16", progress=False)
    quamba.save(model, tokenizer, "llama-w8a16")
    Path("text.txt").write_text(" ".join(f"w{i * i % 50}" for i in range(400)))
    return {"llama": "llama", "quantized": "llama-w8a16", "gpt2": "gpt2"}


@pytest.mark.parametrize("name", ["llama", "quantized", "gpt2"])
def test_generate_and_profile(models, name, capsys):
    assert quamba_main(["generate", models[name], "--prompt", "w1 w2 w3", "--max_new_tokens", "5"]) == 0
    assert "prompt: 3 tokens" in capsys.readouterr().err
    options = ["--prompt_len", "8", "--gen_len", "2", "--repeats", "1", "--json", "p.json"]
    assert quamba_main(["profile", models[name], *options]) == 0
    figures = json.loads(Path("p.json").read_text())["models"][0]
    assert figures["label"] == ("w8a16" if name == "quantized" else "float")
    assert set(figures) >= {"size", "ttft", "tpot", "ttlt"}


def test_generated_tokens_are_those_of_transformers(models, capsys):
    model, tokenizer = quamba.load(models["quantized"])
    ids = tokenizer("w1 w2 w3", return_tensors="pt")["input_ids"]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    quamba_main(["generate", models["quantized"], "--prompt", "w1 w2 w3", "--max_new_tokens", "5"])
    assert capsys.readouterr().out.strip() == text.strip()


@pytest.mark.parametrize("command", ["compare", "diagnose"])
def test_compare_and_diagnose(models, command, capsys):
    data = {"compare": ["--datasets", "text.txt", "--max_length", "32"], "diagnose": ["--dataset", "text.txt"]}
    options = [*data[command], "--format", "json"] + (["--seqlen", "32"] if command == "diagnose" else [])
    assert quamba_main([command, models["llama"], models["quantized"], *options]) == 0
    json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["llama", "quantized", "gpt2"])
def test_main_measures_by_token_too(models, name):
    assert main.main([models[name], "--ppl_dataset", "text.txt"]) == 0
    assert main.main([models[name], "--ppl_dataset", "text.txt", "--ppl_by_token", "--log_dir", "by_token"]) == 0
    scheme = "w8a16" if name == "quantized" else "fp"
    whole, by_token = (
        json.loads(next(Path(folder).glob(f"*_{scheme}.json")).read_text())["ppl"]["text.txt"]
        for folder in ("logs", "by_token")
    )
    assert by_token == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_needs_mamba_blocks_is_refused_by_name(models, name, capsys):
    assert quamba_main(["observers", "--model", models[name], "--calib_dataset", "text.txt"]) == 2
    assert f"the activations of models of type '{name}' cannot be quantized" in capsys.readouterr().err
    assert main.main([models[name], "--quantize", "--calib_dataset", "text.txt"]) == 2
    assert f"the activations of models of type '{name}' cannot be quantized" in capsys.readouterr().err
