"""What a GGUF file of a Mamba holds, from what transformers' checkpoint holds."""

import numpy as np
import pytest

from benchmarks.speed.gguf_names import BLOCK_TENSORS, MODEL_TENSORS, TIED, convert_tensor, metadata, tensor_name


def test_every_tensor_of_a_mamba_has_a_name_of_its_own(tiny_mamba):
    names = list(tiny_mamba().state_dict())
    renamed = [tensor_name(name) for name in names if name not in TIED]
    assert len(set(renamed)) == len(renamed) == len(MODEL_TENSORS) + 2 * len(BLOCK_TENSORS)


def test_a_layers_tensors_are_named_after_the_layer():
    assert tensor_name("backbone.layers.17.mixer.x_proj.weight") == "blk.17.ssm_x.weight"
    assert tensor_name("backbone.layers.3.mixer.A_log") == "blk.3.ssm_a"


def test_a_tied_head_is_left_out():
    assert tensor_name("lm_head.weight") is None


def test_an_unknown_tensor_is_an_error():
    with pytest.raises(KeyError):
        tensor_name("backbone.layers.0.mixer.surprise")


def test_a_is_minus_the_exponential_of_its_logarithm():
    found = convert_tensor("backbone.layers.0.mixer.A_log", np.log([[1.0, 2.0, 16.0]]))
    np.testing.assert_allclose(found, [[-1, -2, -16]], rtol=1e-6)


def test_the_convolution_loses_its_middle_axis():
    weight = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    np.testing.assert_array_equal(convert_tensor("backbone.layers.0.mixer.conv1d.weight", weight), weight[:, 0])


def test_everything_is_float32():
    assert convert_tensor("backbone.norm_f.weight", np.ones(4, np.float16)).dtype == np.float32


def test_the_keys_hold_the_sizes_of_the_config(tiny_mamba):
    keys = metadata(tiny_mamba().config.to_dict())
    assert keys["mamba.block_count"] == 2
    assert (keys["mamba.embedding_length"], keys["mamba.ssm.inner_size"]) == (32, 64)
    assert (keys["mamba.ssm.state_size"], keys["mamba.ssm.time_step_rank"]) == (4, 3)
    assert keys["mamba.vocab_size"] == 96
    assert isinstance(keys["mamba.attention.layer_norm_rms_epsilon"], float)
