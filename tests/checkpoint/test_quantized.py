"""Quantized checkpoints: what is saved comes back bit for bit, and is written whole or not at all."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import quamba
from quamba.checkpoint import quantized, recipe_of
from quamba.checkpoint.verify import CONFIG_HASH, config_sha256, file_sha256
from quamba.errors import QuambaError
from quamba.storage import folders
from tests.scheme_variants import TABLES, VARIANTS, quantize_variant

IN_PROJ, IN_SCALE = "backbone.layers.0.mixer.in_proj.weight", "backbone.layers.0.mixer.in_proj.weight_scale"
WEIGHT = {"bits": 8, "symmetric": True, "granularity": "per_channel", "group_size": None}
OPTIONS = {
    "none": {},
    "embedding": {"quantize_embedding": True},
    "head": {"quantize_lm_head": True},
    "both": {"quantize_embedding": True, "quantize_lm_head": True},
    "rotated": {"rotate_residual": True, "quantize_embedding": True, "quantize_lm_head": True},
}


def build_quantized(tiny_mamba, options: str = "none", tied: bool = True, **sizes):
    """A quantized tiny model; `tied` says whether embedding and head were one table."""
    windows = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(3))
    model = tiny_mamba(tie_word_embeddings=tied, **sizes)
    return quamba.quantize(model, None, calibration=windows, progress=False, **OPTIONS[options])


@pytest.fixture
def build(tiny_mamba):
    """`build_quantized` of that model."""
    return partial(build_quantized, tiny_mamba)


@pytest.fixture
def folder(build, tiny_tokenizer, tmp_path):
    """A saved checkpoint that a test may damage."""
    return quamba.save(build(), tiny_tokenizer, tmp_path / "model")


def quantized_names(model) -> set[str]:
    """Names of the tensors that are buffers of quantized modules."""
    return {name for name, _ in model.named_buffers()}


@torch.inference_mode()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits


def edit_config(folder, **changes):
    """Change fields of config.json's quantization_config, or drop them where the new value is None."""
    config = json.loads((folder / "config.json").read_text())
    fields = config["quantization_config"] | changes
    write_config(folder, config | {"quantization_config": {k: v for k, v in fields.items() if v is not None}})


def write_config(folder, config: dict):
    """Write a config.json that was saved like that: with the hash of what it says."""
    config["quantization_config"][CONFIG_HASH] = config_sha256(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder, **changes):
    """Replace tensors or drop them where the new value is None; the hash is that of the new file."""
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    edit_config(folder, sha256={file.name: file_sha256(file)})


def flatten_weights(folder):
    """Give integer weights the shape that formats before 5 have in files."""
    tensors = load_file(folder / "model.safetensors")
    edit_tensors(folder, **{n: t[..., 0] for n, t in tensors.items() if t.dim() == 3 and not t.is_floating_point()})


# --- saved and loaded ---


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_saved_model_has_the_same_logits_bit_for_bit(build, tiny_tokenizer, tokens, tmp_path, options, tied):
    model = build(options, tied)
    folder = quamba.save(model, tiny_tokenizer, tmp_path / "models" / "mine")
    assert folder == tmp_path / "models" / "mine"
    loaded, tokenizer = quamba.load(str(folder))
    assert type(loaded) is type(model)
    assert recipe_of(loaded) == recipe_of(model)
    assert tokenizer("w1 w2").input_ids == [1, 2]
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    by_transformers = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(by_transformers, tokens), logits(model, tokens))
    assert {name: t.dtype for name, t in loaded.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }


# every scheme, and every kind of table beside one scheme of int8 and one of float activations
SAVED = [*((variant, "both") for variant in VARIANTS), *(("w4a8", tables) for tables in TABLES if tables != "both")]
SAVED += [("w8a16", tables) for tables in TABLES if tables != "both"]


@pytest.mark.parametrize(("variant", "tables"), SAVED)
def test_every_scheme_is_saved_bit_for_bit(tiny_ssm, tiny_tokenizer, tokens, tmp_path, variant, tables):
    """Whatever dtype is asked for: scales are of a dtype of their own, float16 for groups, and stay as they are."""
    model = quantize_variant(tiny_ssm(), variant, **TABLES[tables])
    folder = str(quamba.save(model, tiny_tokenizer, tmp_path / "model"))
    loaded, _ = quamba.load(folder)
    assert recipe_of(loaded) == recipe_of(model)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    stored = {name: tensor for name, tensor in model.state_dict().items() if name in quantized_names(model)}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        assert {parameter.dtype for parameter in cast.parameters()} == {dtype}
        for name, tensor in cast.state_dict().items():
            assert name not in stored or (tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]))
        logits(cast, tokens)  # the kernels' own layout is not what is saved
        assert all(torch.equal(cast.state_dict()[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_group_size_is_saved(tiny_mamba, tiny_tokenizer, tokens, tmp_path, group_size):
    options = TABLES["both"] | {"group_size": group_size}
    model = quantize_variant(tiny_mamba(hidden_size=96), "w4a8", **options)
    assert model.backbone.layers[0].mixer.out_proj.weight_scale.shape == (96, -(-192 // group_size))
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sizes", [{"use_bias": True}, {"use_conv_bias": False}, {"conv_kernel": 3}], ids=str)
def test_every_shape_of_the_block_is_saved(tiny_ssm, tiny_tokenizer, tokens, tmp_path, sizes, variant):
    model = quantize_variant(tiny_ssm(**sizes), variant)
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_a_shared_table_is_stored_once(build, tiny_tokenizer, tmp_path):
    stored = {
        options: load_file(quamba.save(build(options), tiny_tokenizer, tmp_path / options) / "model.safetensors")
        for options in ("none", "both", "head")
    }
    assert not any(name.startswith("lm_head") for name in stored["none"])
    assert {name for name in stored["both"] if name.startswith("lm_head")} == {"lm_head.head_in_scale"}
    assert stored["head"]["lm_head.linear.weight"].dtype == torch.int8


def test_the_dtype_is_the_saved_one_or_the_one_asked_for(build, tiny_tokenizer, tokens, tmp_path):
    model = build().to(torch.bfloat16)
    folder = str(quamba.save(model, tiny_tokenizer, tmp_path / "model"))
    loaded, _ = quamba.load(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    wide, _ = quamba.load(folder, dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    for other in (loaded, wide):
        assert {buffer.dtype for buffer in other.buffers()} == {torch.int8, torch.float32}


GENERATION = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "beam search": {"num_beams": 3},
    "without a cache": {"use_cache": False},
}


@pytest.mark.parametrize("options", ["none", "both"])
@pytest.mark.parametrize("way", GENERATION)
def test_a_loaded_model_generates_what_the_saved_one_does(build, tiny_tokenizer, tokens, tmp_path, options, way):
    model = build(options)
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))

    def generate(model):
        torch.manual_seed(1)
        arguments = {"do_sample": False} | GENERATION[way]
        return model.generate(tokens, max_new_tokens=12, min_new_tokens=12, pad_token_id=0, **arguments)

    assert generate(loaded).shape == (2, 25)
    assert torch.equal(generate(loaded), generate(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_is_the_argmax_of_each_prefix(tiny_ssm, tokens, variant):
    """Of Mamba2 up to the order of the scan's sums, which a whole prefix and single steps have of their own."""
    model = quantize_variant(tiny_ssm(), variant)
    near = 0.0 if model.config.model_type == "mamba" else 0.02
    generated = model.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    for length in range(tokens.shape[1], generated.shape[1]):
        expected = logits(model, generated[:, :length])[:, -1].index_fill(1, torch.tensor(0), -torch.inf)  # eos
        best, chosen = expected.amax(dim=-1), expected.gather(1, generated[:, length, None])[:, 0]
        assert (chosen >= best - near * best.abs()).all()


def test_the_format_is_data_and_has_a_version(folder):
    fields = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert fields["quant_method"] == "quamba"
    assert fields["format_version"] == quantized.FORMAT_VERSION == 5
    assert fields["recipe"]["scheme"]["name"] == "w8a8"
    assert fields["recipe"]["scheme"]["weight"] == WEIGHT
    assert fields["files"] == sorted(path.name for path in folder.iterdir())
    assert fields["sha256"] == {"model.safetensors": file_sha256(folder / "model.safetensors")}


@pytest.mark.parametrize("load", [quamba.load, AutoModelForCausalLM.from_pretrained], ids=["quamba", "transformers"])
def test_a_config_that_was_changed_is_told_except_for_what_changes_no_model(folder, load):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    recipe = config["quantization_config"]
    file.write_text(json.dumps(config | {"eos_token_id": 7, "_name_or_path": "mine", "transformers_version": "0"}))
    load(str(folder))
    for changed in (config | {"layer_norm_epsilon": 1e-6}, config | {"quantization_config": recipe | {"sha256": {}}}):
        file.write_text(json.dumps(changed))
        with pytest.raises(QuambaError, match=r"config\.json is not as it was saved.*remove config_sha256"):
            load(str(folder))
    del recipe["config_sha256"]
    file.write_text(json.dumps(config | {"layer_norm_epsilon": 1e-6}))
    load(str(folder))


def test_a_loaded_model_is_saved_again_by_us_or_by_transformers(folder, tiny_tokenizer, tokens, tmp_path):
    """The hashes are those of one folder's files: they do not travel to files that transformers writes."""
    model, _ = quamba.load(str(folder))
    ours = quamba.save(model, tiny_tokenizer, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    tiny_tokenizer.save_pretrained(tmp_path / "theirs")
    for again in (ours, tmp_path / "theirs"):
        assert torch.equal(logits(quamba.load(str(again))[0], tokens), logits(model, tokens))


# --- written whole or not at all ---


def test_a_float_model_is_refused(tiny_mamba, tiny_tokenizer, tmp_path):
    with pytest.raises(QuambaError, match="only quantized models are saved here"):
        quamba.save(tiny_mamba(), tiny_tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_older_model_is_replaced(folder, build, tiny_tokenizer, tokens):
    newer = build("both")
    quamba.save(newer, tiny_tokenizer, folder)
    assert torch.equal(logits(quamba.load(str(folder))[0], tokens), logits(newer, tokens))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("step", [(quantized, "file_sha256"), (folders, "fsync_tree"), (folders, "exchange")], ids=str)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupted"])
def test_a_failure_half_way_leaves_the_older_model(folder, build, tiny_tokenizer, monkeypatch, step, error):
    before, newer = content(folder), build("both")
    monkeypatch.setattr(*step, lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else QuambaError):
        quamba.save(newer, tiny_tokenizer, folder)
    monkeypatch.undo()
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failure_half_way_leaves_nothing_new(build, tiny_tokenizer, tmp_path, monkeypatch):
    model, folders = build(), []

    def save_pretrained(folder):
        folders.append(folder)
        if len(folders) > 1:  # the first is the one that it is tried in
            raise OSError("disk full")

    monkeypatch.setattr(tiny_tokenizer, "save_pretrained", save_pretrained)
    with pytest.raises(QuambaError, match="the tokenizer cannot be saved: OSError: disk full"):
        quamba.save(model, tiny_tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_never_replaced(build, tiny_tokenizer, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(QuambaError, match="thesis holds something else than a quantized model"):
        quamba.save(build(), tiny_tokenizer, tmp_path / "thesis")
    assert content(tmp_path / "thesis") == {"chapter1.txt": b"years of work"}


@pytest.mark.parametrize("saved_by", ["us", "transformers"])
@pytest.mark.parametrize("name", ["notes.txt", "logs/run.json", ".git/HEAD"])
def test_a_users_own_files_beside_a_model_are_never_lost(folder, build, tiny_tokenizer, tmp_path, name, saved_by):
    if saved_by == "transformers":
        folder = tmp_path / "theirs"
        build().save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        quamba.save(build(), tiny_tokenizer, folder)  # without them it is replaced
        build().save_pretrained(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("weeks of work")
    with pytest.raises(QuambaError, match=f"holds files that are not of its model: move {name} away"):
        quamba.save(build(), tiny_tokenizer, folder)
    assert (folder / name).read_text() == "weeks of work"


def test_a_float_checkpoint_is_never_replaced(build, tiny_mamba, tiny_tokenizer, tmp_path):
    tiny_mamba().save_pretrained(tmp_path / "float")
    with pytest.raises(QuambaError, match="float holds something else than a quantized model"):
        quamba.save(build(), tiny_tokenizer, tmp_path / "float")


def test_an_empty_folder_is_filled(build, tiny_tokenizer, tmp_path):
    (tmp_path / "model").mkdir()
    quamba.load(str(quamba.save(build(), tiny_tokenizer, tmp_path / "model")))


def test_a_link_keeps_pointing_where_it_does(folder, build, tiny_tokenizer, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    quamba.save(build("both"), tiny_tokenizer, tmp_path / "latest")
    assert (tmp_path / "latest").resolve() == folder
    assert recipe_of(quamba.load(str(folder))[0]).tied_head


@pytest.mark.parametrize("place", ["file", "file/model"])
def test_a_place_that_is_a_file_is_refused(build, tiny_tokenizer, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuambaError, match=r"is a file|cannot write to"):
        quamba.save(build(), tiny_tokenizer, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_copied_folder_loads(folder, tokens, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    copy, _ = quamba.load(str(tmp_path / "elsewhere" / "copy"))
    assert torch.equal(logits(copy, tokens), logits(quamba.load(str(folder))[0], tokens))
