"""The GGUF files that are written for llama.cpp, read back: what its loader asks of mamba and of mamba2.

Dims: H hidden, D d_inner, N d_state, R dt_rank, K conv width, V vocabulary; Mamba2: S heads, X = D + 2 N.
"""

import gguf
import numpy as np
import pytest
from transformers import Mamba2Config, Mamba2ForCausalLM

from benchmarks.speed.make_gguf import write_float

H, D, N, R, K, V, S = 32, 64, 4, 3, 4, 96, 4
X = D + 2 * N

# what llama.cpp's loader creates, in numpy's order of axes: the reverse of ggml's
MODEL = {"token_embd.weight": (V, H), "output_norm.weight": (H,)}
BLOCKS = {
    "mamba": {
        "attn_norm.weight": (H,),
        "ssm_in.weight": (2 * D, H),
        "ssm_conv1d.weight": (D, K),
        "ssm_conv1d.bias": (D,),
        "ssm_x.weight": (R + 2 * N, D),
        "ssm_dt.weight": (D, R),
        "ssm_dt.bias": (D,),
        "ssm_a": (D, N),
        "ssm_d": (D,),
        "ssm_out.weight": (H, D),
    },
    "mamba2": {
        "attn_norm.weight": (H,),
        "ssm_in.weight": (D + X + S, H),
        "ssm_conv1d.weight": (X, K),
        "ssm_conv1d.bias": (X,),
        "ssm_dt.bias": (S,),
        "ssm_a": (S, 1),
        "ssm_d": (S, 1),
        "ssm_norm.weight": (1, D),
        "ssm_out.weight": (H, D),
    },
}


@pytest.fixture(params=BLOCKS)
def written(request, tmp_path, tiny_mamba):
    """(model, its GGUF file as the `gguf` package reads it) of either architecture."""
    if request.param == "mamba":
        model = tiny_mamba()
    else:
        sizes = {"vocab_size": V, "hidden_size": H, "num_hidden_layers": 2, "state_size": N, "conv_kernel": K}
        heads = {"num_heads": S, "head_dim": D // S, "n_groups": 1, "tie_word_embeddings": True}
        model = Mamba2ForCausalLM(Mamba2Config(**sizes, **heads))
    model.save_pretrained(tmp_path / "float")
    write_float(tmp_path / "float", tmp_path / "F32.gguf")
    return model, gguf.GGUFReader(tmp_path / "F32.gguf")


def test_every_tensor_has_the_shape_that_llama_cpp_creates_it_with(written):
    model, reader = written
    blocks = {f"blk.{i}.{name}": shape for i in range(2) for name, shape in BLOCKS[model.config.model_type].items()}
    assert {tensor.name: tensor.data.shape for tensor in reader.tensors} == MODEL | blocks
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def test_values_are_those_of_the_model(written):
    model, reader = written
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    mixer = model.backbone.layers[1].mixer
    np.testing.assert_array_equal(found["blk.1.ssm_d"].reshape(-1), mixer.D.detach().numpy())
    a = found["blk.1.ssm_a"].reshape(mixer.A_log.shape)
    np.testing.assert_allclose(a, -mixer.A_log.detach().exp().numpy(), rtol=1e-6)
    np.testing.assert_array_equal(found["blk.1.ssm_out.weight"], mixer.out_proj.weight.detach().numpy())


def test_the_file_names_its_architecture(written):
    model, reader = written
    architecture = reader.fields["general.architecture"]
    assert bytes(architecture.parts[architecture.data[0]]).decode() == model.config.model_type
