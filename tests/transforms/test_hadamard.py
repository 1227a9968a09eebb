"""The fast product with a Hadamard matrix, the fusion into weights, and the rotation of out_proj's input."""

import pytest
import torch

from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import install_float_mixers
from quamba.errors import QuambaError
from quamba.hadamard import hadamard_base, hadamard_matrix
from quamba.transforms import apply_hadamard, fuse_gated_norm, rotate_out_proj
from quamba.transforms.hadamard import rotate_inputs, rotate_outputs


@pytest.mark.parametrize("n", [5120, 7168, 8192])
def test_large_sizes_rotate_orthonormally_without_a_matrix(n):
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = apply_hadamard(x)
    torch.testing.assert_close(y @ y.T, x @ x.T)
    k, base = hadamard_base(n)
    e = torch.zeros(1, n, dtype=torch.float64)
    e[0, -1] = 1  # picks the last row: the parity of each index's bits, times the base's last row
    parity = torch.tensor([(-1.0) ** (index.bit_count()) for index in range(2**k)])
    torch.testing.assert_close(apply_hadamard(e)[0] * n**0.5, torch.kron(parity, base[-1]).double())


@pytest.mark.parametrize("n", [1, 16, 12, 40, 56, 96])
def test_the_fast_product_is_the_product_with_the_matrix(n):
    x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(0))
    expected = (x.double() @ hadamard_matrix(n).double() / n**0.5).float()
    torch.testing.assert_close(apply_hadamard(x), expected)


@pytest.mark.parametrize("n", [16, 12, 20, 28, 96])
def test_rotated_activations_and_weights_give_the_old_product(n):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, n, dtype=torch.float64, generator=generator)
    weight = torch.randn(7, n, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(apply_hadamard(x) @ rotate_inputs(weight).T, x @ weight.T)

    writer = torch.randn(n, 7, dtype=torch.float64, generator=generator)
    y = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(y @ rotate_outputs(writer).T, apply_hadamard(y @ writer.T))


def test_the_product_keeps_dtype_and_shape():
    x = torch.randn(2, 5, 24).to(torch.bfloat16)
    assert apply_hadamard(x).dtype == torch.bfloat16
    assert apply_hadamard(x).shape == x.shape


def prepare(model) -> None:
    """What goes before the rotation of out_proj: mixers of ours, and in Mamba2 a gated norm without a weight."""
    install_float_mixers(model)
    if model.config.model_type == "mamba2":
        fuse_gated_norm(Anatomy.of(model).slots)


@pytest.mark.parametrize("hidden_size", [32, 48, 40])  # d_inner 64, 96 = 12 * 8 and 80 = 20 * 4
@pytest.mark.parametrize("use_bias", [False, True])
def test_rotating_out_proj_keeps_the_logits(tiny_ssm, tokens, hidden_size, use_bias):
    model = tiny_ssm(hidden_size=hidden_size, use_bias=use_bias)
    expected = model(tokens).logits
    prepare(model)
    before = model.backbone.layers[0].mixer.out_proj.weight.clone()
    rotate_out_proj(Anatomy.of(model).slots)
    assert not torch.allclose(model.backbone.layers[0].mixer.out_proj.weight, before)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_mixers_that_cannot_rotate_at_run_time_are_refused(tiny_ssm):
    with pytest.raises(QuambaError, match=r"layer 0 has a Mamba2?Mixer.*install_float_mixers"):
        rotate_out_proj(Anatomy.of(tiny_ssm()).slots)


def test_rotating_out_proj_twice_is_refused(tiny_ssm):
    model = tiny_ssm()
    prepare(model)
    rotate_out_proj(Anatomy.of(model).slots)
    with pytest.raises(QuambaError, match="layer 0's out_proj is rotated already"):
        rotate_out_proj(Anatomy.of(model).slots)


def test_a_gated_norms_weight_has_to_be_in_out_proj_by_then(tiny_mamba2):
    model = tiny_mamba2()
    install_float_mixers(model)
    before = [layer.mixer.out_proj.weight.clone() for layer in model.backbone.layers]
    with pytest.raises(QuambaError, match=r"gated norm of layer 0 still has a weight.* call fuse_gated_norm\(slots\)"):
        rotate_out_proj(Anatomy.of(model).slots)
    assert all(
        torch.equal(layer.mixer.out_proj.weight, w) for layer, w in zip(model.backbone.layers, before, strict=True)
    )
    fuse_gated_norm(Anatomy.of(model).slots)
    rotate_out_proj(Anatomy.of(model).slots)
    with pytest.raises(QuambaError, match="layer 0's out_proj is rotated already: its columns"):
        fuse_gated_norm(Anatomy.of(model).slots)
