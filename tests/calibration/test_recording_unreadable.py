"""Recordings of activations that cannot be read are refused by name."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quamba.calibration.recording import (
    open_activations,
)
from quamba.errors import QuambaError
from tests.calibration.test_recording import STREAM, batches, record

# --- folders that cannot be read ---


def foreign(folder: Path) -> None:
    save_file({"x": torch.ones(2)}, folder / "layer_000.safetensors")


def of_another_version(folder: Path) -> None:
    save_file({"x": torch.ones(2)}, folder / "layer_000.safetensors", {"format": "quamba-activations-0"})


def truncated(folder: Path) -> None:
    record(folder, STREAM)
    file = folder / "layer_002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def text(folder: Path) -> None:
    (folder / "head.safetensors").write_text("a text, and no safetensors at all")


def of_two_models(folder: Path) -> None:
    record(folder, {"layers.0.x": batches(0)}, model="mamba-a")
    record(folder / "other", {"layers.1.x": batches(1)}, model="mamba-b")
    shutil.move(folder / "other" / "layer_001.safetensors", folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: None, "{folder} holds no activations: write them with main.py --save_activations {folder}"),
        (foreign, "{folder}/layer_000.safetensors holds no activations in the format quamba-activations-1: "),
        (of_another_version, "{folder}/layer_000.safetensors holds no activations in the format quamba-activations-1"),
        (truncated, "cannot read the activations {folder}/layer_002.safetensors: "),
        (text, "cannot read the activations {folder}/head.safetensors: "),
        (of_two_models, "{folder} holds activations of several models: mamba-a, mamba-b"),
    ],
    ids=["empty", "foreign", "of another version", "truncated", "text", "of two models"],
)
def test_a_folder_of_something_else_is_refused_by_name(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(QuambaError) as error:
        open_activations(tmp_path)
    assert str(error.value).startswith(message.format(folder=tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(QuambaError, match=r"nowhere holds no activations: write them with"):
        open_activations(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"taps": ["x", "y"]}, "has no tap y: it has x, out, head_in"),
        ({"layers": [0, 1]}, "has no layer 1: it has 0, 2"),
        ({"taps": ["out"], "layers": [2]}, "has none of the taps out in the layers [2]"),
        ({"taps": ["head_in"], "layers": [0]}, "has none of the taps head_in in the layers [0]"),
    ],
    ids=str,
)
def test_taps_and_layers_that_are_not_there_are_told(tmp_path, filters, message):
    with pytest.raises(QuambaError) as error:
        open_activations(record(tmp_path, STREAM), **filters)
    assert str(error.value) == f"{tmp_path} {message}"


def test_a_file_that_changes_after_it_was_opened_is_told(tmp_path):
    saved = open_activations(record(tmp_path, STREAM))
    foreign(tmp_path)
    with pytest.raises(QuambaError, match=rf"^{tmp_path}/layer_000\.safetensors: cannot read tap x: "):
        list(saved)


def test_part_of_a_recording_is_told(tmp_path):
    """As a process leaves it that is killed while it gives the files their names."""
    record(tmp_path, STREAM)
    (tmp_path / "layer_002.safetensors").unlink()
    with pytest.raises(QuambaError, match=r"lacks layer_002\.safetensors of its recording, which was interrupted"):
        open_activations(tmp_path)


def test_parts_of_several_recordings_are_told(tmp_path):
    for name in ("one", "two"):
        record(tmp_path / name, STREAM)
    os.replace(tmp_path / "two" / "layer_002.safetensors", tmp_path / "one" / "layer_002.safetensors")
    with pytest.raises(QuambaError, match="one holds files of several recordings"):
        open_activations(tmp_path / "one")
