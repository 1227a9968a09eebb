"""What a GGUF file of a Mamba holds, from what transformers' checkpoint holds."""

import numpy as np
import pytest
from transformers import Mamba2Config, Mamba2ForCausalLM

from benchmarks.speed.gguf_names import BLOCK_TENSORS, MODEL_TENSORS, TIED, convert_tensor, metadata, tensor_name

MAMBA_ALONE = {"mixer.x_proj.weight", "mixer.dt_proj.weight", "mixer.dt_proj.bias"}
MAMBA2_ALONE = {"mixer.dt_bias", "mixer.norm.weight"}


def tiny_mamba2(**options) -> Mamba2ForCausalLM:
    sizes = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 6, "n_groups": 1}
    return Mamba2ForCausalLM(Mamba2Config(vocab_size=32, num_hidden_layers=2, **sizes | options))


def test_every_tensor_of_a_mamba_has_a_name_of_its_own(tiny_mamba):
    names = list(tiny_mamba().state_dict())
    renamed = [tensor_name(name) for name in names if name not in TIED]
    assert len(set(renamed)) == len(renamed) == len(MODEL_TENSORS) + 2 * (len(BLOCK_TENSORS) - len(MAMBA2_ALONE))


def test_so_has_every_tensor_of_a_mamba2():
    names = [name for name in tiny_mamba2().state_dict() if name not in TIED]
    renamed = [tensor_name(name) for name in names]
    assert len(set(renamed)) == len(renamed) == len(MODEL_TENSORS) + 2 * (len(BLOCK_TENSORS) - len(MAMBA_ALONE))


def test_a_layers_tensors_are_named_after_the_layer():
    assert tensor_name("backbone.layers.17.mixer.x_proj.weight") == "blk.17.ssm_x.weight"
    assert tensor_name("backbone.layers.3.mixer.A_log") == "blk.3.ssm_a"


def test_a_tied_head_is_left_out():
    assert tensor_name("lm_head.weight") is None


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(KeyError):
        tensor_name("backbone.layers.0.mixer.surprise")


def test_a_is_minus_the_exponential_of_its_logarithm():
    found = convert_tensor("backbone.layers.0.mixer.A_log", np.log([[1.0, 2.0, 16.0]]), "mamba")
    np.testing.assert_allclose(found, [[-1, -2, -16]], rtol=1e-6)


def test_the_convolution_loses_its_middle_axis():
    weight = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    found = convert_tensor("backbone.layers.0.mixer.conv1d.weight", weight, "mamba")
    np.testing.assert_array_equal(found, weight[:, 0])


def test_what_mamba2_has_per_head_is_a_column_and_its_gated_norm_a_row():
    for name in ("A_log", "D"):
        assert convert_tensor(f"backbone.layers.0.mixer.{name}", np.ones(4), "mamba2").shape == (4, 1)
    assert convert_tensor("backbone.layers.0.mixer.norm.weight", np.ones(6), "mamba2").shape == (1, 6)


def test_mambas_d_is_a_vector():
    """llama.cpp refuses the file otherwise: D is one number a channel there, in both architectures of transformers."""
    assert convert_tensor("backbone.layers.0.mixer.D", np.ones(4), "mamba").shape == (4,)


def test_everything_is_float32():
    assert convert_tensor("backbone.norm_f.weight", np.ones(4, np.float16), "mamba").dtype == np.float32


def test_the_keys_hold_the_sizes_of_the_config(tiny_mamba):
    keys = metadata(tiny_mamba().config.to_dict())
    assert keys["mamba.block_count"] == 2
    assert (keys["mamba.embedding_length"], keys["mamba.ssm.inner_size"]) == (32, 64)
    assert (keys["mamba.ssm.state_size"], keys["mamba.ssm.time_step_rank"]) == (4, 3)
    assert keys["mamba.vocab_size"] == 96
    assert isinstance(keys["mamba.attention.layer_norm_rms_epsilon"], float)


def test_so_do_those_of_mamba2():
    keys = metadata(tiny_mamba2().config.to_dict())
    assert (keys["mamba2.ssm.inner_size"], keys["mamba2.ssm.state_size"]) == (32, 6)
    assert (keys["mamba2.ssm.time_step_rank"], keys["mamba2.ssm.group_count"]) == (4, 1)
    with pytest.raises(ValueError, match="n_groups 2"):
        metadata(tiny_mamba2(n_groups=2).config.to_dict())
