"""The GPU benchmark's rows and table, tried on the CPU with a tiny shape."""

import pytest
import torch

from benchmarks import gpu


@pytest.mark.parametrize("system", gpu.SYSTEMS)
def test_a_row_has_every_figure(system):
    row = gpu.measure(system, gpu.GPU_SHAPES["tiny"], [4, 6], 1, torch.device("cpu"))
    assert row.keys() >= {"tpot_ms", "ttft_4_ms", "ttft_6_ms", "gb_s"}
    assert row["gb_s"] == pytest.approx(row["token_bytes"] / row["tpot_ms"] / 1e6)


@pytest.mark.parametrize("system", gpu.FORCED)
def test_a_product_is_forced_while_its_system_is_measured(system, monkeypatch):
    time_run, forced = gpu.time_run, []

    def noting(*args):
        forced.append(gpu.ops.cuda_int8_product())
        return time_run(*args)

    monkeypatch.setattr(gpu, "time_run", noting)
    row = gpu.measure(system, gpu.GPU_SHAPES["tiny"], [4], 1, torch.device("cpu"))
    assert row["system"] == system
    assert row["tpot_ms"] > 0
    assert forced == [gpu.FORCED[system]] * 2
    assert gpu.ops.cuda_int8_product() == ""


def test_a_token_reads_all_weights_but_an_embedding_that_is_no_head():
    shape = gpu.GPU_SHAPES["tiny"]
    vocabulary = gpu.VOCAB * shape.hidden
    model = gpu.decoder_of("w8a8", shape, torch.device("cpu")).model  # one int8 table is embedding and head
    assert vocabulary < gpu.bytes_of_token(model) < 1.2 * vocabulary
    apart = torch.nn.Module()
    apart.table, apart.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
    apart.get_input_embeddings, apart.get_output_embeddings = lambda: apart.table, lambda: apart.head
    assert gpu.bytes_of_token(apart) == 7 * 4 * 4


def test_the_table_sets_each_system_beside_float16_of_its_shape():
    rows = [
        {"shape": "2.8b", "system": "fp16", "tpot_ms": 2.0, "ttft_512_ms": 30.0, "gb_s": 2000.0},
        {"shape": "2.8b", "system": "w8a8", "tpot_ms": 1.0, "ttft_512_ms": 20.0, "gb_s": 2400.0},
    ]
    lines = gpu.markdown(rows, [512], 4000.0).splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        "2.8b",
        "w8a8",
        "1 (2.00x)",
        "20 (1.50x)",
        "2400",
        "60 %",
    ]


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(Exception, match="'w2a2' is none of fp16, w8a8, w4a8, w4a16"):
        gpu.names(gpu.SYSTEMS)("fp16,w2a2")
