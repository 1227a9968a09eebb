"""The original state-spaces format gives the same model as the transformers one."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import Mamba2ForCausalLM

import quamba
from quamba.checkpoint import load_float, resolve_checkpoint
from quamba.checkpoint.state_spaces import convert_config
from quamba.errors import QuambaError
from quamba.nn.mamba2 import Mamba2Mixer
from tests.checkpoint.same_model import assert_same_model

MAMBA1 = {"d_model": 32, "n_layer": 2, "vocab_size": 93, "ssm_cfg": {"d_state": 4, "dt_rank": 3}}
MAMBA1 |= {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
MAMBA2 = {"d_model": 32, "d_intermediate": 0, "n_layer": 2, "vocab_size": 93, "attn_layer_idx": [], "attn_cfg": {}}
MAMBA2 |= {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2, "chunk_size": 4}}
MAMBA2 |= {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "tie_embeddings": True}


def original_tensors(model) -> dict[str, torch.Tensor]:
    """The tensors as mamba_ssm names them, a tied head included."""
    return {name.replace("embeddings", "embedding"): tensor.clone() for name, tensor in model.state_dict().items()}


def write_original(folder: Path, config: dict, tensors: dict, tokenizer=None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(tensors, folder / "pytorch_model.bin")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def load(tmp_path, tiny_tokenizer):
    """A function that writes an original checkpoint and loads it: (config, tensors) -> model."""

    def write_and_load(config, tensors, **options):
        folder = write_original(tmp_path / "original", config, tensors, tiny_tokenizer)
        return load_float(resolve_checkpoint(str(folder)), **options)[0]

    return write_and_load


@pytest.mark.parametrize("tied", [True, False])
def test_mamba_logits_are_the_same_bit_for_bit(load, tiny_mamba, tokens, tied):
    model = tiny_mamba(tie_word_embeddings=tied)
    loaded = load(MAMBA1 | {"tie_embeddings": tied}, original_tensors(model))
    assert type(loaded) is type(model)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert (loaded.lm_head.weight is loaded.backbone.embeddings.weight) == tied


def test_mamba2_logits_are_the_same_bit_for_bit(load, tiny_mamba2, tokens):
    model = tiny_mamba2()
    loaded = load(MAMBA2, original_tensors(model))
    assert type(loaded) is Mamba2ForCausalLM
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_mamba2s_biases_sizes_and_limits_follow_ssm_cfg(load, tiny_mamba2, tokens):
    options = {
        "d_conv": 3,
        "expand": 4,
        "bias": True,
        "conv_bias": False,
        "dt_limit": [0.2, 0.9],
        "A_init_range": [1, 2],
    }
    sizes = {"ngroups": 4, "headdim": 16, "d_state": 5, "norm_before_gate": False, "rmsnorm": True}
    limits = {"time_step_limit": (0.2, 0.9), "use_conv_bias": False, "use_bias": True}
    model = tiny_mamba2(conv_kernel=3, expand=4, num_heads=8, n_groups=4, state_size=5, **limits)
    loaded = load(MAMBA2 | {"ssm_cfg": MAMBA2["ssm_cfg"] | options | sizes}, original_tensors(model))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_weights_may_be_safetensors_and_shards(tmp_path, tiny_mamba, tiny_tokenizer, tokens, suffix, shards):
    model = tiny_mamba()
    tensors = original_tensors(model)
    folder = write_original(tmp_path / "original", MAMBA1, {}, tiny_tokenizer)
    (folder / "pytorch_model.bin").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    files = [f"{stem}.{suffix}"] if shards == 1 else [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    names = [list(tensors)[start::shards] for start in range(shards)]
    for file, held in zip(files, names, strict=True):
        part = {name: tensors[name] for name in held}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    if shards > 1:
        weight_map = {name: file for file, held in zip(files, names, strict=True) for name in held}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_float(resolve_checkpoint(str(folder)))[0]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    (folder / files[-1]).write_bytes(b"damaged")
    with pytest.raises(QuambaError, match=f"{files[-1]} is truncated or damaged"):
        load_float(resolve_checkpoint(str(folder)))


def test_the_published_mamba2_configs_say_little_and_mean_the_defaults():
    """As state-spaces/mamba2-130m has it."""
    original = {"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": "Mamba2"}}
    original |= {"attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True}
    original |= {"fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    config = convert_config(original, Path("config.json"))
    assert (config.num_heads, config.head_dim, config.n_groups, config.state_size) == (24, 64, 1, 128)
    assert (config.conv_kernel, config.chunk_size, config.vocab_size) == (4, 256, 50288)
    assert (config.use_bias, config.use_conv_bias, config.tie_word_embeddings) == (False, True, True)
    assert tuple(config.time_step_limit) == (0.0, float("inf"))


def test_an_original_mamba2_is_quantized_like_any_other(tmp_path, tiny_mamba2, tiny_tokenizer, tokens):
    model = tiny_mamba2()
    folder = write_original(tmp_path / "original", MAMBA2, original_tensors(model), tiny_tokenizer)
    loaded, tokenizer = quamba.load(str(folder))
    assert type(loaded.backbone.layers[0].mixer) is Mamba2Mixer
    quamba.quantize(loaded, tokenizer, calibration=tokens, progress=False)
    same = quamba.quantize(model, tokenizer, calibration=tokens, progress=False)
    again, _ = quamba.load(str(quamba.save(loaded, tokenizer, tmp_path / "quantized")))
    with torch.inference_mode():
        assert torch.equal(again(tokens).logits, same(tokens).logits)


def test_biases_and_sizes_follow_ssm_cfg(load, tiny_mamba, tokens):
    options = {"d_conv": 3, "expand": 3, "bias": True, "conv_bias": False, "dt_init": "random", "use_fast_path": True}
    model = tiny_mamba(conv_kernel=3, expand=3, use_bias=True, use_conv_bias=False)
    loaded = load(MAMBA1 | {"ssm_cfg": MAMBA1["ssm_cfg"] | options}, original_tensors(model))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    ("config", "rows"),
    [
        (MAMBA1, 96),
        (MAMBA1 | {"pad_vocab_size_multiple": 64}, 128),
        ({key: value for key, value in MAMBA1.items() if key != "pad_vocab_size_multiple"} | {"vocab_size": 97}, 104),
        (MAMBA2 | {"vocab_size": 97}, 112),
    ],
)
def test_the_vocabulary_is_padded_up_to_its_multiple(config, rows):
    assert convert_config(config, Path("config.json")).vocab_size == rows


def test_an_unpadded_embedding_gets_rows_of_zeros(load, tiny_mamba, tokens):
    model = tiny_mamba()
    tensors = original_tensors(model)
    tensors["backbone.embedding.weight"] = tensors["lm_head.weight"] = tensors["lm_head.weight"][:93]
    loaded = load(MAMBA1, tensors)
    assert loaded.backbone.embeddings.weight.shape == (96, 32)
    assert torch.equal(loaded(tokens).logits[..., :93], model(tokens).logits[..., :93])
    assert not loaded(tokens).logits[..., 93:].any()


def test_special_tokens_are_those_of_gpt_neox(load, tiny_mamba):
    config = load(MAMBA1, original_tensors(tiny_mamba())).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 0, 0)


def test_the_loaded_model_saves_as_a_transformers_checkpoint(load, tiny_mamba, tokens, tmp_path, tiny_tokenizer):
    model = load(MAMBA1, original_tensors(tiny_mamba()))
    model.save_pretrained(tmp_path / "converted")
    tiny_tokenizer.save_pretrained(tmp_path / "converted")
    again, _ = load_float(resolve_checkpoint(str(tmp_path / "converted")))
    assert_same_model(again, model, tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_layer_idx": [1]}, r"attn_layer_idx is \[1\]"),
        ({"d_intermediate": 64}, "d_intermediate is 64"),
        ({"rms_norm": False}, "rms_norm is false"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer is 'Mamba3'"),
        ({"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate = True is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.1]}}, r"dt_limit is \[0.1\], not two numbers"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 48}}, "describes no valid model"),
        ({"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}}, "ssm_cfg.rmsnorm = False is not supported, only True"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "ssm_cfg.D_has_hdim = True is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 32}}, "ssm_cfg.d_ssm = 32 is not supported"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "dt_rank": 3}},
            "ssm_cfg.dt_rank is an option that this package does not know",
        ),
        ({"ssm_cfg": {"colour": 3}}, "ssm_cfg.colour is an option that this package does not know"),
        ({"ssm_cfg": {"d_state": 0}}, "d_state is 0, not a positive integer"),
        ({"ssm_cfg": [1]}, r"ssm_cfg is \[1\], not an object"),
        ({"d_model": "wide"}, "d_model is 'wide', not a positive integer"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple is 0"),
        ({"tie_embeddings": "yes"}, "describes no valid model"),
        ({"vocab_size": 70}, r"backbone.embeddings.weight has shape \[96, 32\].* has 72 rows"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(load, tiny_mamba, change, message):
    with pytest.raises(QuambaError, match=message):
        load(MAMBA1 | change, original_tensors(tiny_mamba()))


def test_missing_extra_and_misshapen_tensors_are_named(load, tiny_mamba):
    tensors = original_tensors(tiny_mamba())
    tensors["backbone.layers.0.mixer.E"] = tensors.pop("backbone.layers.0.mixer.D")
    tensors["backbone.layers.1.mixer.D"] = torch.zeros(3)
    with pytest.raises(QuambaError) as caught:
        load(MAMBA1, tensors)
    assert "missing: backbone.layers.0.mixer.D" in str(caught.value)
    assert "not part of the model: backbone.layers.0.mixer.E" in str(caught.value)
    assert "of the wrong shape: backbone.layers.1.mixer.D [3] instead of [64]" in str(caught.value)


def test_a_gated_norm_without_its_weight_is_named(load, tiny_mamba2):
    tensors = original_tensors(tiny_mamba2())
    del tensors["backbone.layers.1.mixer.norm.weight"]
    with pytest.raises(QuambaError, match=r"missing: backbone\.layers\.1\.mixer\.norm\.weight"):
        load(MAMBA2, tensors)


def test_a_tied_head_that_differs_is_refused(load, tiny_mamba):
    with pytest.raises(QuambaError, match=r"lm_head\.weight differs from the embedding"):
        load(MAMBA1, original_tensors(tiny_mamba(tie_word_embeddings=False)))


def test_an_untied_checkpoint_needs_a_head(load, tiny_mamba):
    tensors = original_tensors(tiny_mamba())
    del tensors["lm_head.weight"]
    with pytest.raises(QuambaError, match=r"missing: lm_head\.weight"):
        load(MAMBA1 | {"tie_embeddings": False}, tensors)


def test_damaged_weights_are_named(tmp_path, tiny_mamba, tiny_tokenizer):
    folder = write_original(tmp_path / "original", MAMBA1, original_tensors(tiny_mamba()), tiny_tokenizer)
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        file.write_bytes(content)
        with pytest.raises(QuambaError, match=r"pytorch_model\.bin is truncated or damaged"):
            load_float(resolve_checkpoint(str(folder)))
    torch.save([1, 2], file)
    with pytest.raises(QuambaError, match=r"pytorch_model\.bin does not hold named tensors"):
        load_float(resolve_checkpoint(str(folder)))
    file.unlink()
    with pytest.raises(QuambaError, match=r"holds no weights.*pytorch_model\.bin"):
        load_float(resolve_checkpoint(str(folder)))


class Planted:
    """Unpickled, it would call a function of the checkpoint's choice."""

    def __reduce__(self):
        return (Path.touch, (Path("planted"),))


def test_a_pickle_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_original(tmp_path / "original", MAMBA1, {"weight": Planted()})
    with pytest.raises(QuambaError, match="truncated or damaged"):
        load_float(resolve_checkpoint(str(folder)))
    assert not (tmp_path / "planted").exists()


@pytest.fixture
def no_tokenizer(tmp_path, monkeypatch, tiny_mamba) -> Path:
    """An original checkpoint without a tokenizer, in an empty working directory, and no hub."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("quamba.checkpoint.resolve.snapshot_download", unreachable)
    return write_original(tmp_path / "original", MAMBA1, original_tensors(tiny_mamba()))


@pytest.mark.parametrize("name", ["gpt-neox-20b", "EleutherAI/gpt-neox-20b"])
@pytest.mark.parametrize("root", ["mine", "pretrained_models"])
def test_the_tokenizer_is_found_locally(no_tokenizer, tiny_tokenizer, root, name):
    tiny_tokenizer.save_pretrained(Path(root) / name)
    _, tokenizer = load_float(resolve_checkpoint(str(no_tokenizer), pretrained_dir="mine"))
    assert tokenizer("w3 w7").input_ids == [3, 7]


def test_a_lone_tokenizer_json_still_ends_texts(no_tokenizer, tiny_tokenizer):
    tiny_tokenizer.backend_tokenizer.save(str(no_tokenizer / "tokenizer.json"))
    _, tokenizer = load_float(resolve_checkpoint(str(no_tokenizer)))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", 0)


def test_a_tokenizer_that_is_nowhere_is_one_message(no_tokenizer):
    with pytest.raises(QuambaError) as caught:
        load_float(resolve_checkpoint(str(no_tokenizer), pretrained_dir="mine"))
    for place in (f"{no_tokenizer}", "mine/gpt-neox-20b", "mine/EleutherAI/gpt-neox-20b", "hub: no connection"):
        assert place in str(caught.value)
    assert "into mine/gpt-neox-20b" in str(caught.value)


def test_a_damaged_tokenizer_is_named(no_tokenizer):
    (no_tokenizer / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(QuambaError, match=r"the tokenizer in .*original cannot be read"):
        load_float(resolve_checkpoint(str(no_tokenizer)))
