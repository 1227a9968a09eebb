"""What a token needs at least, and what the machine row is made of."""

import time

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.speed import floors, machine, process_memory
from benchmarks.speed.floor_worker import INPUTS, MOST_ROWS, OUTPUTS, Floor, rows_for
from benchmarks.speed.make_model import random_model
from benchmarks.speed.memory import limit_bytes
from benchmarks.speed.shapes import SHAPES, VOCAB, Case, cases_of


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


def test_the_fastest_pass_over_the_values_is_taken():
    def slow(values):
        time.sleep(0.01)

    fast = floors.best_of((slow, torch.sum), torch.ones(1024))
    assert fast() == 1024


@pytest.mark.parametrize("read", floors.READ_PASSES)
def test_every_pass_reads_all_values(read):
    values = torch.full((4096,), 2.0)
    before = read(values).sum()
    values[[0, 1500, -1]] = 3.0
    assert read(values).sum() != before


@pytest.mark.parametrize("rows", [1, 700, MOST_ROWS, MOST_ROWS + 3])
def test_products_are_as_many_as_the_operations(rows):
    assert sum(rows_for(2 * INPUTS * OUTPUTS * rows)) == rows


def test_prefill_counts_the_head_once_a_prompt():
    shape = SHAPES["130m"]
    macs = 100 * shape.block_macs + shape.head_macs
    bound = floors.prefill_bound("w8a8", shape, Case("130m", 1, 100), {"int8": 1e12})
    assert bound == pytest.approx(1e12 / (2 * macs / 100))


def test_a_step_is_bound_by_reading_or_by_its_products_whichever_is_slower(monkeypatch):
    floor = Floor(SHAPES["130m"], "w8a8", weights_bytes=1 << 16)
    floor.read = lambda: time.sleep(0.005)
    monkeypatch.setattr(floor.products, "run", lambda operations: None)
    floor.reset(batch=1, prompt=1, steps=1)
    assert floor.step_bound is floor.read
    monkeypatch.setattr(floor.products, "run", lambda operations: time.sleep(0.02))
    floor.reset(batch=8, prompt=1, steps=1)
    assert floor.step_bound is not floor.read


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
