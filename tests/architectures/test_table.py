"""The table of architectures: what each row promises holds for a tiny model of its type."""

import ast
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from quamba.architectures import families, table
from quamba.architectures.anatomy import Anatomy
from quamba.architectures.convert import HEAD_TAP, check_architecture, install_float_mixers, tap_modules
from quamba.architectures.table import ARCHITECTURES, BLOCK_TAPS
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.errors import QuambaError
from quamba.nn.taps import PER_TOKEN_TAPS, STATE_TAP

# what the original format of Mamba and Mamba2 is read as, which names no type
LOADERS = {Path("checkpoint/load_float.py"), Path("checkpoint/state_spaces.py")}


def test_a_model_has_the_row_of_its_type(tiny_ssm):
    model = tiny_ssm()
    assert Anatomy.of(model).architecture is check_architecture(model) is ARCHITECTURES[model.config.model_type]


def test_a_model_of_another_type_has_none():
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    assert Anatomy.of(model).architecture is None
    with pytest.raises(
        QuambaError,
        match="of type 'llama' cannot be quantized by this version, only those of 'falcon_mamba', 'mamba', '",
    ):
        check_architecture(model)


def test_every_layer_has_every_tap_of_its_row(tiny_ssm):
    model = tiny_ssm()
    install_float_mixers(model)
    taps = Anatomy.of(model).architecture.taps
    assert list(tap_modules(model, head=True)) == [f"layers.{i}.{tap}" for i in range(2) for tap in taps] + [HEAD_TAP]
    assert tuple(tap for tap in model.backbone.layers[0].mixer.taps if tap != STATE_TAP) == taps


def test_taps_run_once_each_in_the_order_of_the_row(tiny_ssm, tokens):
    model, seen = tiny_ssm(), []
    install_float_mixers(model)
    for name, module in tap_modules(model, head=False).items():
        module.register_forward_hook(lambda _m, _args, _out, name=name: seen.append(name))
    with torch.inference_mode():
        model(tokens)
    taps = Anatomy.of(model).architecture.taps
    assert seen == [f"layers.{i}.{tap}" for i in range(2) for tap in taps]


@torch.inference_mode()
def test_every_linear_layer_reads_the_tap_that_the_row_names(tiny_ssm, tokens):
    model = tiny_ssm()
    install_float_mixers(model)
    mixer, inputs, given, read = model.backbone.layers[0].mixer, Anatomy.of(model).architecture.inputs, {}, {}
    assert set(inputs) == {name for name, module in mixer.named_modules() if isinstance(module, nn.Linear)}
    for linear, tap in inputs.items():
        mixer.taps[tap].register_forward_hook(lambda _m, _args, out, tap=tap: given.__setitem__(tap, out))
        if linear != "dt_proj":  # Mamba's is applied without its bias, by its weight alone
            module = mixer.get_submodule(linear)
            module.register_forward_pre_hook(lambda _m, args, linear=linear: read.__setitem__(linear, args[0]))
    model(tokens)
    assert len(read) > 1 and all(torch.equal(value, given[inputs[linear]]) for linear, value in read.items())


def test_every_tap_is_known_and_those_per_token_are_everyones():
    for architecture in ARCHITECTURES.values():
        assert set(PER_TOKEN_TAPS) < set(architecture.taps) <= set(BLOCK_TAPS) <= set(DEFAULT_OBSERVERS)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"conv_kernel": 17}, "conv_kernel 17 has no kernels: up to 16"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' has no kernels"),
    ],
)
def test_what_has_no_kernels_is_refused(tiny_ssm, sizes, message):
    with pytest.raises(QuambaError, match=message):
        check_architecture(tiny_ssm(**sizes))


def test_heads_of_mamba2_have_to_split_into_groups(tiny_mamba2):
    model = tiny_mamba2()
    model.config.n_groups = 3
    with pytest.raises(QuambaError, match="n_groups 3 does not divide the 4 heads"):
        check_architecture(model)


def test_every_file_of_the_families_is_in_the_table():
    """A new file is a new family: nothing else has to name it."""
    folder = Path(families.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    known = {importlib.import_module(f"{families.__name__}.{name}") for name in files}
    rows = [module.ARCHITECTURE for module in known if hasattr(module, "ARCHITECTURE")]
    assert {id(row) for row in rows} == {id(row) for row in ARCHITECTURES.values()}
    assert all(hasattr(module, "ARCHITECTURE") or hasattr(module, "NORM_READERS") for module in known)
    types = [model_type for row in rows for model_type in row.model_types]
    assert sorted(types) == sorted(ARCHITECTURES) and len(set(types)) == len(types)


def test_no_other_file_names_a_family():
    """What a family is like is said in its file: elsewhere its type is a value, not a condition."""
    named = {*ARCHITECTURES, *table._NORM_READERS}
    package = Path(families.__file__).parents[2]
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent.name == "families" or path.relative_to(package) in LOADERS:
            continue
        constants = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
        found += [
            f"{path.relative_to(package)}:{node.lineno}: {node.value}" for node in constants if node.value in named
        ]
    assert not found
