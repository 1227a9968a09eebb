"""What a token needs at least, and what the machine row is made of."""

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.speed import floors, machine, process_memory
from benchmarks.speed.make_model import random_model
from benchmarks.speed.memory import limit_bytes
from benchmarks.speed.shapes import SHAPES, VOCAB, Case, cases_of

MACHINE = {
    "read_bytes_s": {"1000": 40.0, "2000": 20.0},
    "operations_s": {"int8": 1e12, "bfloat16": 1e11, "float32": 1e11},
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_parameters_of_a_shape_are_the_matrices_of_its_model(name):
    with torch.device("meta"):
        model = random_model(SHAPES[name])
    matrices = {name: p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight")}
    assert sum(matrices.values()) == SHAPES[name].block_macs
    assert model.lm_head.weight.numel() == SHAPES[name].head_macs


def test_sizes_of_tensors_are_read_from_the_header(tmp_path):
    save_file({"a": torch.zeros(3, dtype=torch.int8), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert floors.tensor_sizes(tmp_path / "model.safetensors") == {"a": 3, "b": 8}


def test_a_table_that_the_head_shares_is_read_at_every_step():
    assert (
        floors.bytes_per_token({"backbone.embeddings.weight": 10 * VOCAB, "lm_head.head_in_scale": 4}) == 10 * VOCAB + 4
    )


def test_an_embedding_beside_a_head_of_its_own_is_not():
    sizes = {"backbone.embeddings.weight": 10 * VOCAB, "lm_head.linear.weight": 5 * VOCAB, "backbone.layers.0.D": 7}
    assert floors.bytes_per_token(sizes) == 5 * VOCAB + 7


@pytest.mark.parametrize(("size", "rate"), [(1, 40.0), (1000, 40.0), (1001, 20.0), (9999, 20.0)])
def test_a_model_is_read_as_fast_as_a_buffer_of_at_least_its_size(size, rate):
    assert floors.read_rate_at(MACHINE["read_bytes_s"], size) == rate


def test_decoding_is_bound_by_reading_the_weights_once_for_all_sequences():
    shape = SHAPES["130m"]
    one = floors.floor_row("w8a8", shape, Case("130m", 1, 128), 2000, MACHINE)
    eight = floors.floor_row("w8a8", shape, Case("130m", 8, 128), 2000, MACHINE)
    assert one["decode_tok_s"] == 20 / 2000
    assert eight["decode_tok_s"] == pytest.approx(8 * one["decode_tok_s"])


def test_decoding_is_never_faster_than_its_products():
    row = floors.floor_row("w8a8", SHAPES["130m"], Case("130m", 8, 128), 1, MACHINE | {"read_bytes_s": {"1": 1e12}})
    assert row["decode_tok_s"] == pytest.approx(1e12 / (2 * SHAPES["130m"].parameters), rel=1e-4)


def test_prefill_counts_the_head_once_a_prompt():
    shape = SHAPES["130m"]
    row = floors.floor_row("w8a8", shape, Case("130m", 1, 100), 1, MACHINE)
    macs = 100 * shape.block_macs + shape.head_macs
    assert row["prefill_tok_s"] == pytest.approx(1e12 / (2 * macs / 100), rel=1e-4)


def test_cases_beyond_a_shapes_bound_are_left_out_unless_all_are_asked_for():
    shape = SHAPES["130m"]  # 2048 tokens
    assert Case("130m", 8, 2048) not in cases_of(shape, [1, 8], [512, 2048])
    assert Case("130m", 8, 2048) in cases_of(shape, [1, 8], [512, 2048], full=True)
    assert cases_of(shape, [8, 1], [512, 2048])[0] == Case("130m", 1, 512)


def test_the_memory_limit_is_a_share_of_the_weights_and_a_constant():
    assert limit_bytes(200 * 10**6) == 294 * 10**6


def test_the_processor_is_named_with_the_instruction_sets_that_matter():
    text = "processor : 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\nprocessor : 1\nmodel name : Other\n"
    assert machine.parse_cpuinfo(text) == ("Some CPU", ["avx2", "avx512_vnni"])


def test_resident_memory_is_read_in_bytes():
    assert process_memory.parse_status("VmHWM:\t  9 kB\nVmRSS:\t  3 kB\n", "VmRSS") == 3072
    with pytest.raises(ValueError, match="VmSwap"):
        process_memory.parse_status("VmRSS: 3 kB\n", "VmSwap")
