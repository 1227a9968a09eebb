"""Sizes: of the files, of the tensors, and of what the process needed at most."""

import mmap
import sys

import pytest
import torch
from torch import nn

from quamba.models import memory as profile
from quamba.models.memory import checkpoint_bytes, memory_bytes, peak_memory_bytes, reset_peak_memory


def test_a_tensor_that_two_modules_share_is_counted_once():
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=True)})
    model["head"].weight = model["embedding"].weight
    model.register_buffer("scale", torch.ones(3, dtype=torch.float16))
    assert memory_bytes(model) == 10 * 4 * 4 + 10 * 4 + 3 * 2


def test_a_folder_with_both_formats_counts_its_safetensors(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 7)
    assert checkpoint_bytes(tmp_path) == 7
    (tmp_path / "a.safetensors").write_bytes(b"x" * 3)
    (tmp_path / "b.safetensors").write_bytes(b"x" * 2)
    assert checkpoint_bytes(tmp_path) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_a_peak_is_seen_after_it_has_passed_and_forgotten_by_a_reset():
    if not reset_peak_memory():
        pytest.skip("/proc/self/clear_refs cannot be written here")
    before, size = peak_memory_bytes(), 1 << 26
    with mmap.mmap(-1, size) as memory:  # from the system: the allocator may have that much at hand
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1  # written to, so resident
    peak = peak_memory_bytes()
    assert peak - before > 0.9 * size
    reset_peak_memory()
    assert peak - peak_memory_bytes() > 0.5 * size


def test_without_proc_the_peak_is_that_since_the_process_started(monkeypatch, tmp_path):
    monkeypatch.setattr(profile, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(profile, "STATUS", tmp_path / "none" / "status")
    assert not reset_peak_memory()
    assert 1e7 < peak_memory_bytes() < 1e12
