"""Placing weights changes where they lie, and nothing that can be computed or saved."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import MambaForCausalLM

import quamba
from quamba.nn.placement import ALIGNMENT, HUGE_PAGE, place_weights
from quamba.nn.weight import QuantWeight
from tests.scheme_variants import TABLES, VARIANTS, quantize_variant

LARGE = {"hidden_size": 256, "vocab_size": 16384}  # more than a huge page of weights


@torch.inference_mode()
def logits(model, tokens):
    return model(tokens).logits


def copied(state_dict) -> dict:
    return {name: tensor.clone() for name, tensor in state_dict.items()}


@pytest.mark.parametrize("sizes", [{}, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_saved_tensors_stay(tiny_ssm, tokens, variant, sizes):
    model = quantize_variant(tiny_ssm(**sizes), variant, **TABLES["both"])
    saved = copied(model.state_dict())
    expected = logits(model, tokens)
    place_weights(model)
    place_weights(model)  # the second time does nothing
    assert torch.equal(logits(model, tokens), expected)
    placed = model.state_dict()
    assert list(placed) == list(saved)
    assert all(
        placed[name].dtype == tensor.dtype and torch.equal(placed[name], tensor) for name, tensor in saved.items()
    )


def test_the_weights_lie_in_one_piece_in_the_order_of_the_blocks(tiny_mamba):
    model = quantize_variant(tiny_mamba(**LARGE), "w8a8", **TABLES["both"])
    place_weights(model)
    addresses = [
        layer.mixer.get_buffer(name).data_ptr()
        for layer in model.backbone.layers
        for name in ("in_proj.weight", "x_proj.weight", "out_proj.weight")
    ]
    assert addresses == sorted(addresses)
    assert all(address % ALIGNMENT == 0 for address in addresses)
    total = sum(buffer.nbytes for buffer in model.buffers())
    assert addresses[-1] - addresses[0] < total + HUGE_PAGE


def test_a_shared_table_stays_one(tiny_mamba):
    model = quantize_variant(tiny_mamba(**LARGE), "w4a8", **TABLES["both"])
    place_weights(model)
    assert model.lm_head.table is model.backbone.embeddings


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_nothing_of_a_checkpoints_file_stays_mapped(tiny_mamba, tiny_tokenizer, tokens, tmp_path):
    """One scalar that is a view of the mapped file would keep every page of it in memory."""
    model = quantize_variant(tiny_mamba(**LARGE), "w4a8", **TABLES["both"])
    expected = logits(model, tokens)
    folder = str(quamba.save(model, tiny_tokenizer, tmp_path / "model"))
    loaded, _ = quamba.load(folder)
    place_weights(loaded)
    assert folder not in Path("/proc/self/maps").read_text()
    assert torch.equal(logits(loaded, tokens), expected)


def misplaced(model) -> set[str]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name for name, x in tensors.items() if x.is_floating_point() and x.data_ptr() % ALIGNMENT}


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_floats_of_a_mapped_file_lie_where_torch_puts_new_ones(tiny_mamba, tiny_tokenizer, tmp_path, variant):
    """Elsewhere a BLAS may add in another order, and a model have other logits once it is saved and loaded."""
    tiny_mamba(hidden_size=40).save_pretrained(tmp_path / "float")
    floats = MambaForCausalLM.from_pretrained(tmp_path / "float")
    assert misplaced(floats)
    model = quantize_variant(floats, variant)
    folder = str(quamba.save(model, tiny_tokenizer, tmp_path / "model"))
    for each in (model, quamba.load(folder)[0], MambaForCausalLM.from_pretrained(folder)):
        assert not misplaced(each)


def test_a_state_dict_loads_into_a_model_that_has_run(tiny_mamba, tokens):
    """What is saved are rows: they replace the kernels' tiles."""
    first, second = (quantize_variant(tiny_mamba(seed=seed), "w4a8", **TABLES["both"]) for seed in (0, 1))
    expected, before = logits(first, tokens), logits(second, tokens)
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(second, tokens), expected)
    assert not torch.equal(expected, before)
    assert all(module.tiled for module in second.modules() if isinstance(module, QuantWeight))
