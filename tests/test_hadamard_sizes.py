"""Widths of odd parts up to 63 are quantized; those that the kernels do not rotate run as floats alone."""

import pytest
import torch

import quamba
from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.generation.decoder import Decoder


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16"])
@pytest.mark.parametrize("hidden_size", [18, 36, 44, 52, 60, 34, 35])  # half of the channels
def test_prefill_and_steps_of_such_a_model_agree(tiny_mamba, tokens, hidden_size, scheme):
    calibration = tokens if scheme == "w8a8" else None
    model = tiny_mamba(hidden_size=hidden_size)
    weights = quamba.WeightMethod()
    quamba.quantize(model, None, scheme, calibration=calibration, weights=weights, progress=False)
    whole = Decoder(model).prefill(tokens)  # [B, V]
    decoder = Decoder(model)
    decoder.prefill(tokens[:, :5])
    steps = [decoder.step(tokens[:, position]) for position in range(5, tokens.shape[1])]
    torch.testing.assert_close(steps[-1], whole, rtol=1e-4, atol=1e-4)


def test_a_width_without_a_matrix_runs_as_floats(tiny_ssm, tokens):
    model = tiny_ssm(hidden_size=130)
    expected = model(tokens).logits[:, -1]
    install_float_mixers(model)
    torch.testing.assert_close(Decoder(model).prefill(tokens), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(QuambaError, match="no Hadamard rotation of size 260"):
        quamba.quantize(model, None, "w8a16", progress=False)
