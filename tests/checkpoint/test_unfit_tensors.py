"""A checkpoint whose tensors hold NaN, infinity or no scales is refused by name, on every way in and out."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import quamba
from quamba import QuambaError
from quamba.checkpoint import save_dequantized
from quamba.weights.method import WeightMethod
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2

WINDOWS = torch.randint(0, 50, (2, 8), generator=torch.Generator().manual_seed(4))
WAYS = {
    "quamba": quamba.load,
    "transformers": AutoModelForCausalLM.from_pretrained,
}


def quantized(model, scheme: str, **options):
    text = {"calibration": WINDOWS} if scheme.endswith("a8") else {}
    return quamba.quantize(model, None, scheme, weights=WeightMethod("rtn"), progress=False, **text, **options)


def set_value(folder, name: str, value: float) -> None:
    """Changes the last value of a tensor in a file that has no hash."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def save_plainly(tmp_path, tiny_tokenizer):
    """Saves a model as transformers does, without hashes; returns the folder."""

    def save(model):
        model.save_pretrained(tmp_path / "model")
        tiny_tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_float_checkpoint_names_the_tensor(save_plainly, value):
    folder = save_plainly(tiny_llama())
    set_value(folder, "model.layers.1.mlp.up_proj.weight", float(value))
    what = "NaN" if value == "nan" else "infinity"
    with pytest.raises(
        QuambaError, match=rf"model, read as torch\.float32: model\.layers\.1\..*up_proj\.weight holds {what}"
    ):
        quamba.load(str(folder))


def test_a_state_matrix_without_decay_is_named(save_plainly):
    folder = save_plainly(tiny_mamba2())
    set_value(folder, "backbone.layers.0.mixer.A_log", 100.0)
    with pytest.raises(
        QuambaError, match=r"backbone\.layers\.0\.mixer\.A_log holds 100, whose exponential is infinite"
    ):
        quamba.load(str(folder))


def test_a_dtype_that_is_too_narrow_is_named(save_plainly):
    model = tiny_llama()
    model.model.norm.weight[3] = 1e5
    folder = save_plainly(model)
    with pytest.raises(QuambaError, match=r"read as torch\.float16: model\.norm\.weight holds infinity.*too narrow"):
        quamba.load(str(folder), dtype=torch.float16)
    quamba.load(str(folder), dtype=torch.bfloat16)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("scheme", "name", "value", "message"),
    [
        ("w8a8", "backbone.layers.1.mixer.in_proj.weight_scale", math.nan, "NaN"),
        ("w4a8", "backbone.layers.1.mixer.in_proj.weight_scale", math.inf, "infinity"),
        ("w4a8", "backbone.layers.0.mixer.in_proj.weight_scale", 0.0, "the scale 0"),
        ("w8a8", "backbone.layers.0.mixer.out_scale", -1.0, "the scale -1"),
        ("w4a8", "backbone.layers.0.mixer.in_proj.weight_zero", 16, "the zero point 16, beyond 15"),
        ("w8a8", "backbone.layers.0.mixer.A", 1.0, "1, where only negative values"),
        ("w8a8", "backbone.layers.0.mixer.dt_bias", math.nan, "NaN"),
        ("w8a8", "backbone.norm_f.weight", math.inf, "infinity"),
        ("w8a16", "backbone.embeddings.weight", math.nan, "NaN"),
    ],
)
def test_a_quantized_checkpoint_names_the_tensor(save_plainly, way, scheme, name, value, message):
    folder = save_plainly(quantized(tiny_mamba2(vocab_size=50), scheme))
    set_value(folder, name, value)
    with pytest.raises(QuambaError, match=rf"model, read as torch\.float32: {name} holds {message}.*damaged"):
        WAYS[way](str(folder))


def test_a_model_with_unfit_tensors_is_not_saved(tiny_tokenizer, tmp_path):
    model = quantized(tiny_llama(), "w4a16")
    model.model.layers[0].mlp.up_proj.weight_scale[2, 0] = math.inf
    with pytest.raises(QuambaError, match=r"not saved: model\.layers\.0\.mlp\.up_proj\.weight_scale holds infinity"):
        quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    model.model.layers[0].mlp.up_proj.to("meta")
    with pytest.raises(QuambaError, match=r"up_proj\.weight has no data"):
        quamba.save(model, tiny_tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_dequantized_weights_that_float16_cannot_hold_are_named(tiny_tokenizer, tmp_path):
    model = tiny_llama()
    model.model.layers[0].mlp.up_proj.weight.mul_(1e6)
    quantized(model, "w8a16")
    with pytest.raises(QuambaError, match=r"not saved as torch\.float16: .*up_proj\.weight holds infinity.* too large"):
        save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.float16)
    assert not (tmp_path / "plain").exists()
    save_dequantized(model, tiny_tokenizer, tmp_path / "plain", torch.bfloat16)
