"""A config.json that asks for more than its weight files hold is refused before anything of that size is made."""

import json
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, MixtralConfig

import quamba
from quamba.checkpoint import sizes
from quamba.checkpoint.sizes import bounded_modules, check_sizes
from quamba.errors import QuambaError
from tests.checkpoint.test_quantized import build_quantized, write_config

HUGE = {
    "vocab_size": (10**8, r"96 .*backbone\.embeddings\.weight \[100000000, 32\], stored \[96, 32\]|parameters"),
    "hidden_size": (10**6, "describes a model of .* parameters"),
    "state_size": (10**7, "describes a model of .* parameters"),
    "conv_kernel": (10**8, "describes a model of .* parameters"),
    "num_hidden_layers": (10**9, r"num_hidden_layers is 1000000000, but the weight files hold \d+ tensors"),
    "num_labels": (10**9, "num_labels is 1000000000"),
}


@pytest.fixture
def never_loaded(monkeypatch):
    """Fails where transformers is asked for the model: it makes what the config says."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("too late"))


@pytest.fixture(params=["float", "quantized", "state-spaces"])
def folder(request, tiny_mamba, tiny_tokenizer, tmp_path):
    """A checkpoint in each format."""
    if request.param == "quantized":
        return quamba.save(build_quantized(tiny_mamba), tiny_tokenizer, tmp_path / "model")
    model = tiny_mamba()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    if request.param == "state-spaces":
        (tmp_path / "model" / "model.safetensors").unlink()
        tensors = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        torch.save(tensors, tmp_path / "model" / "pytorch_model.bin")
        original = {"d_model": 32, "n_layer": 2, "vocab_size": 96, "ssm_cfg": {"d_state": 4, "dt_rank": 3}}
        (tmp_path / "model" / "config.json").write_text(json.dumps(original))
    return tmp_path / "model"


ORIGINAL = {"hidden_size": "d_model", "num_hidden_layers": "n_layer", "vocab_size": "vocab_size"}


@pytest.mark.parametrize("field", HUGE)
def test_a_size_that_the_files_do_not_hold_is_refused_before_the_model_is_made(folder, never_loaded, field):
    value, message = HUGE[field]
    config = json.loads((folder / "config.json").read_text())
    if "d_model" in config:
        if field not in ORIGINAL:
            pytest.skip("the original format has no such field")
        field, message = ORIGINAL[field], r"is 1000000000, but|parameters|padded to its multiple"
    changed = config | {field: value}
    if "quantization_config" in config:
        write_config(folder, changed)
    else:
        (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(QuambaError, match=message) as error:
        quamba.load(str(folder))
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 1000


def shapes_of(config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}


SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
NEO = {"vocab_size": 64, "hidden_size": 32, "num_heads": 4, "num_layers": 2, "attention_types": [[["global"], 2]]}


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), MixtralConfig(**SMALL), GPTNeoConfig(**NEO)], ids=type)
def test_configs_that_fit_pass(tmp_path, config):
    check_sizes(config, tmp_path, shapes_of(config))


@pytest.mark.parametrize(
    ("kind", "options", "changes", "message"),
    [
        (MixtralConfig, SMALL, {"num_local_experts": 10**6}, r"parameters.*experts"),
        (LlamaConfig, SMALL, {"intermediate_size": 10**9}, r"parameters.*mlp\.\w+_proj"),
        (LlamaConfig, SMALL, {"head_dim": 10**9}, r"parameters.*self_attn"),
        (GPTNeoConfig, NEO, {"max_position_embeddings": 10**6}, r"parameters|values in tables"),
    ],
)
def test_any_familys_sizes_are_compared(tmp_path, kind, options, changes, message):
    stored = shapes_of(kind(**options))
    with pytest.raises(QuambaError, match=message):
        check_sizes(kind(**options | changes), tmp_path / "config.json", stored)


def test_a_table_that_no_file_holds_is_bounded_too(tmp_path, monkeypatch):
    """GPT-Neo's mask of positions by positions."""
    stored = shapes_of(GPTNeoConfig(**NEO, max_position_embeddings=4096))
    check_sizes(GPTNeoConfig(**NEO, max_position_embeddings=4096), tmp_path, stored)
    monkeypatch.setattr(sizes, "SMALL", 1 << 20)
    with pytest.raises(QuambaError, match=r"values in tables.*bias \[1, 1, 4096, 4096\]"):
        check_sizes(GPTNeoConfig(**NEO, max_position_embeddings=4096), tmp_path, stored)


def test_more_modules_than_the_files_can_have_tensors_for_end_the_building(tmp_path):
    with pytest.raises(QuambaError, match=r"more than .* modules, but the weight files hold 10 tensors"):
        check_sizes(
            LlamaConfig(**SMALL | {"num_hidden_layers": 10**7, "layer_types": None}),
            tmp_path,
            dict.fromkeys("0123456789", (1,)),
        )


def test_other_threads_build_what_they_like(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "FEW_MODULES", 3)
    built = []

    def build():
        built.append(torch.nn.Sequential(*(torch.nn.Identity() for _ in range(10))))

    with bounded_modules(tmp_path, {}):
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
        with pytest.raises(QuambaError, match="more than 3 modules"):
            build()
    build()
    assert len(built) == 2


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 7, None])
def test_an_index_that_leads_elsewhere_is_refused(tiny_mamba, tiny_tokenizer, tmp_path, name):
    folder = tmp_path / "model"
    tiny_mamba().save_pretrained(folder)
    tiny_mamba().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
    with pytest.raises(QuambaError, match=r"index\.json (names|cannot be read)"):
        quamba.load(str(folder))
