"""Whatever happens to a checkpoint's files, loading it gives a model or one QuambaError."""

import json
import random
import shutil

import pytest
import torch

import quamba
from quamba.checkpoint.verify import CONFIG_HASH
from quamba.errors import QuambaError
from tests.checkpoint.mutations import mutate_file
from tests.checkpoint.test_quantized import build_quantized
from tests.tiny_llama import tiny_llama

MUTATIONS = 60  # of each format; each takes some ten milliseconds


@pytest.fixture(params=["quantized", "mamba", "llama", "state-spaces"])
def folder(request, tiny_mamba, tiny_tokenizer, tmp_path):
    """A checkpoint in each format, the quantized one without hashes: these find any change."""
    path = tmp_path / "model"
    if request.param == "quantized":
        quamba.save(build_quantized(tiny_mamba, "both"), tiny_tokenizer, path)
        config = json.loads((path / "config.json").read_text())
        for name in ("sha256", CONFIG_HASH):
            del config["quantization_config"][name]
        (path / "config.json").write_text(json.dumps(config))
        return path
    model = tiny_llama() if request.param == "llama" else tiny_mamba()
    model.save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    if request.param == "state-spaces":
        (path / "model.safetensors").unlink()
        torch.save({k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}, path / "pytorch_model.bin")
        original = {"d_model": 32, "n_layer": 2, "vocab_size": 96, "ssm_cfg": {"d_state": 4, "dt_rank": 3}}
        (path / "config.json").write_text(json.dumps(original))
    return path


def test_damaged_files_give_a_model_or_one_error(folder, tmp_path):
    outcomes = []
    for seed in range(MUTATIONS):
        random_ = random.Random(seed)
        damaged = tmp_path / "damaged"
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(folder, damaged)
        done = mutate_file(random_.choice(sorted(damaged.iterdir())), random_)
        try:
            quamba.load(str(damaged))
            outcomes.append("loaded")
        except QuambaError as error:
            outcomes.append("refused")
            assert len(str(error)) < 2000, done
        except Exception as error:  # any other is the fault that this test looks for
            raise AssertionError(f"seed {seed}: {type(error).__name__} for {done[:500]}") from error
    assert {"loaded", "refused"} == set(outcomes)
