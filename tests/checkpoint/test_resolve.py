"""Where the name of a model leads: folders, embedded checkpoints, the hub, and what is said when nothing is found."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from quamba.checkpoint import resolve_checkpoint
from quamba.checkpoint.resolve import HUB_IDS, check_generation_config
from quamba.errors import QuambaError

MODULE = "quamba.checkpoint.resolve"


def make_model(folder: Path, **config) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "mamba"}))
    return folder


class Hub:
    """Stands in for snapshot_download: serves one folder, or fails with one error, and notes what it was asked."""

    def __init__(self, folder: Path | None = None, error: Exception | None = None):
        self.folder, self.error, self.asked = folder, error, []

    def __call__(self, hub_id, allow_patterns, ignore_patterns):
        self.asked.append((hub_id, allow_patterns))
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def unreachable_hub(monkeypatch, tmp_path) -> Hub:
    """No hub, and an empty working directory with one embedded checkpoint, `mamba-tiny`."""
    (tmp_path / "work").mkdir()
    make_model(tmp_path / "assets" / "mamba-tiny")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(f"{MODULE}.ASSETS", tmp_path / "assets")
    hub = Hub(error=LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name or service not known"))
    monkeypatch.setattr(f"{MODULE}.snapshot_download", hub)
    return hub


def test_each_place_is_looked_at_in_order(unreachable_hub, tmp_path):
    embedded = tmp_path / "assets" / "mamba-tiny"
    for place in (embedded, Path("pretrained_models/mamba-tiny"), tmp_path / "mine/mamba-tiny", Path("mamba-tiny")):
        if place != embedded:
            make_model(place)
        found = resolve_checkpoint("mamba-tiny", pretrained_dir=tmp_path / "mine")
        assert found.path == place
        assert found.embedded == (place == embedded)
        assert found.name == "mamba-tiny"
    assert unreachable_hub.asked == []


def test_a_folder_is_named_after_its_last_part(unreachable_hub, monkeypatch, tmp_path):
    folder = make_model(tmp_path / "saved" / "mamba-tiny-w8a8", model_type="mamba")
    assert resolve_checkpoint(f"{folder}/").name == "mamba-tiny-w8a8"
    monkeypatch.chdir(folder)
    assert resolve_checkpoint(".").name == "mamba-tiny-w8a8"


def test_the_config_tells_the_format(unreachable_hub, tmp_path):
    assert resolve_checkpoint(make_model(tmp_path / "a", model_type="mamba").as_posix()).format == "transformers"
    original = make_model(tmp_path / "b", d_model=8, n_layer=2, ssm_cfg={})
    assert resolve_checkpoint(str(original)).format == "state-spaces"
    with pytest.raises(QuambaError, match="neither `model_type`"):
        _ = resolve_checkpoint(str(make_model(tmp_path / "c", hidden=8))).format


def test_a_quantized_checkpoint_says_how(unreachable_hub, tmp_path):
    float_model = make_model(tmp_path / "float", model_type="mamba")
    quantized = make_model(tmp_path / "int8", model_type="mamba", quantization_config={"quant_method": "quamba"})
    assert resolve_checkpoint(str(float_model)).quantization_method is None
    assert resolve_checkpoint(str(quantized)).quantization_method == "quamba"


@pytest.mark.parametrize(
    ("name", "short", "hub_id"),
    [
        ("mamba-130m", "mamba-130m", "state-spaces/mamba-130m-hf"),
        ("130m", "mamba-130m", "state-spaces/mamba-130m-hf"),
        ("370m", "mamba-370m", "state-spaces/mamba-370m-hf"),
        ("1.4b", "mamba-1.4b", "state-spaces/mamba-1.4b-hf"),
        ("2.8b", "mamba-2.8b", "state-spaces/mamba-2.8b-hf"),
        *(
            (f"mamba2-{size}", f"mamba2-{size}", f"state-spaces/mamba2-{size}")
            for size in ("130m", "370m", "780m", "1.3b", "2.7b")
        ),
        ("falcon-mamba-7b", "falcon-mamba-7b", "tiiuae/falcon-mamba-7b"),
        ("state-spaces/mamba-130m", "mamba-130m", "state-spaces/mamba-130m"),
        ("someone/their-mamba", "their-mamba", "someone/their-mamba"),
    ],
)
def test_names_lead_to_hub_ids(unreachable_hub, monkeypatch, tmp_path, name, short, hub_id):
    hub = Hub(make_model(tmp_path / "snapshots" / "0123abc"))
    (hub.folder / "model.safetensors").touch()
    monkeypatch.setattr(f"{MODULE}.snapshot_download", hub)
    found = resolve_checkpoint(name)
    assert (found.name, found.path, found.source) == (short, hub.folder, "hub")
    assert [asked for asked, _ in hub.asked] == [hub_id]


def test_older_weights_are_fetched_only_where_there_are_no_safetensors(unreachable_hub, monkeypatch, tmp_path):
    hub = Hub(make_model(tmp_path / "snapshot"))
    monkeypatch.setattr(f"{MODULE}.snapshot_download", hub)
    resolve_checkpoint("state-spaces/mamba-130m")
    assert [("pytorch_model*.bin" in patterns) for _, patterns in hub.asked] == [False, True]


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("why it failed"),
        OfflineModeIsEnabled("why it failed"),
        HFValidationError("why it failed"),
        HTTPError("why it failed"),
    ],
)
def test_nothing_found_is_one_message_with_all_that_was_tried(unreachable_hub, tmp_path, error):
    unreachable_hub.error = error
    with pytest.raises(QuambaError) as caught:
        resolve_checkpoint("130m", pretrained_dir=tmp_path / "mine")
    message = str(caught.value)
    for tried in ("no folder 130m", f"no folder {tmp_path}/mine/130m", "no folder pretrained_models/130m"):
        assert tried in message
    assert "hub: state-spaces/mamba-130m-hf: why it failed" in message
    assert f"Put a local copy (config.json, weights, tokenizer) into {tmp_path}/mine/mamba-130m" in message
    assert "Embedded in this package, no download needed: mamba-tiny." in message
    assert all(short in message for short in HUB_IDS)


def test_a_local_copy_is_found_where_the_message_says_to_put_it(unreachable_hub, tmp_path):
    local = make_model(Path("pretrained_models/mamba-130m"))
    for name in ("130m", "mamba-130m"):
        assert resolve_checkpoint(name).path == local


def test_the_hub_is_not_asked_when_offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(QuambaError, match="hub: someone/their-mamba: Cannot find an appropriate cached snapshot"):
        resolve_checkpoint("someone/their-mamba")


def test_folders_that_hold_no_model_are_named(unreachable_hub, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(QuambaError, match=r"empty has no config\.json"):
        resolve_checkpoint(str(tmp_path / "empty"))
    broken = make_model(tmp_path / "broken")
    for text in ("{", "[]"):
        (broken / "config.json").write_text(text)
        with pytest.raises(QuambaError, match=r"broken/config\.json"):
            resolve_checkpoint(str(broken))
    with pytest.raises(QuambaError, match=r"config\.json is a file: give the folder"):
        resolve_checkpoint(str(broken / "config.json"))


def test_an_empty_name_is_not_the_working_directory(unreachable_hub):
    with pytest.raises(QuambaError, match="the name of the model is empty"):
        resolve_checkpoint("")


@pytest.mark.parametrize("name", ["../assets/../other", "/nowhere/mamba-tiny"])
def test_paths_never_lead_into_the_embedded_checkpoints(unreachable_hub, name):
    with pytest.raises(QuambaError, match="was not found"):
        resolve_checkpoint(name)


@pytest.mark.parametrize(("text", "message"), [("rubbish", "cannot be read"), ("[1]", "does not hold a JSON object")])
def test_a_damaged_generation_config_is_named(tmp_path, text, message):
    """transformers would generate by other rules without a word."""
    check_generation_config(tmp_path)  # none is needed
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(QuambaError, match=rf"generation_config\.json {message}"):
        check_generation_config(tmp_path)
