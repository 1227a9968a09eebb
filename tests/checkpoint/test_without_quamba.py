"""A process that has not imported quamba cannot open its files: no loader takes integers for a weight's values."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import quamba
from tests.scheme_variants import TABLES, VARIANTS, quantize_variant
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama

OPEN = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError as error:
        assert "ismatch" in str(error), error
    else:
        sys.exit(f"{folder} opens as a float model")
"""


def build(tiny, variant, tables="float"):
    arguments = {} if variant.endswith("a16") else {"observer": "all=minmax"}
    return quantize_variant(tiny(), variant, **arguments | TABLES[tables])


def test_no_model_opens_without_quamba(tiny_mamba, tiny_mamba2, tiny_tokenizer, tmp_path):
    models = {f"llama {tables}": build(tiny_llama, "w8a16", tables) for tables in TABLES}
    models |= {f"llama w4a16 {tables}": build(tiny_llama, "w4a16", tables) for tables in ("float", "both 8")}
    families = {"mamba": tiny_mamba, "mamba2": tiny_mamba2, "bamba": tiny_bamba}
    models |= {f"{family} {v}": build(tiny, v) for family, tiny in families.items() for v in ("w8a16", "w8a8")}
    for name, model in models.items():
        quamba.save(model, tiny_tokenizer, tmp_path / name)
    folders = [str(tmp_path / name) for name in models]
    run = subprocess.run([sys.executable, "-c", OPEN, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tables", ["float", "both", "head"])
def test_integer_weights_have_a_shape_of_their_own_in_files(
    tiny_mamba, tiny_tokenizer, tokens, tmp_path, variant, tables
):
    model = build(tiny_mamba, variant, tables)
    model(tokens)  # tiles the weights
    quamba.save(model, tiny_tokenizer, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    integers = {name: tensor for name, tensor in stored.items() if not tensor.is_floating_point() and "weight" in name}
    weights = {name for name in integers if name.endswith(".weight")}
    assert len(weights) > 2
    assert all(integers[name].dim() == 3 and integers[name].shape[-1] == 1 for name in weights)
    loaded, _ = quamba.load(str(tmp_path / "model"))
    assert_equal(loaded, model)
    quamba.save(loaded, tiny_tokenizer, tmp_path / "again")  # rows that no product has tiled
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert stored.keys() == again.keys() and all(torch.equal(stored[name], again[name]) for name in stored)


def assert_equal(model: PreTrainedModel, expected: PreTrainedModel) -> None:
    tensors, others = model.state_dict(), expected.state_dict()
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
