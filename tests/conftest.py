"""Fixtures that several test files share."""

import os

# before torch is imported: threads that wait give up the core instead of spinning on it, which on a busy machine
# costs tiny ops many times their own time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("QUAMBA_CACHE", "off")  # tests leave the user's cache alone

import logging
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from quamba import plugins, registry
from tests import blas_noise


def pytest_addoption(parser) -> None:
    help = "only the tests of CUDA kernels on this device: cuda, a GPU; cpu, where they are emulated"
    parser.addoption("--device", choices=["cpu", "cuda"], help=help)
    help = "torch's float products with other last bits for every shape: finds what one machine's BLAS grants"
    parser.addoption("--perturb-blas", type=int, nargs="?", const=0, metavar="SEED", help=help)


def pytest_configure(config) -> None:
    if (seed := config.getoption("--perturb-blas")) is not None:
        blas_noise.install(seed)


def pytest_collection_modifyitems(config, items) -> None:
    device = config.getoption("--device")
    if device is None:
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU here")
    there = [item for item in items if hasattr(item, "callspec") and item.callspec.params.get("device") == device]
    config.hook.pytest_deselected(items=[item for item in items if item not in there])
    items[:] = there


def pytest_make_parametrize_id(val, argname: str) -> str | None:
    """Bytes name no test: what a compressor wrote may hold the second in which it ran, and processes must agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def own_registries(monkeypatch):
    """What a test registers, and which plug-ins it loads, is forgotten after it."""
    before = registry.snapshot()
    monkeypatch.setattr(plugins, "_loaded", dict(plugins._loaded))
    yield
    registry.restore(before)


@pytest.fixture(autouse=True)
def own_log_level():
    """The level of the package's log that a command sets is forgotten after its test."""
    level = logging.getLogger("quamba").level
    yield
    logging.getLogger("quamba").setLevel(level)


@pytest.fixture
def tiny_mamba() -> Callable[..., MambaForCausalLM]:
    """A function that builds a small random Mamba: every tensor random, so that no term can hide behind a 0 or a 1."""

    def build(seed: int = 0, **options) -> MambaForCausalLM:
        sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3}
        torch.manual_seed(seed)
        return _randomized(MambaForCausalLM(MambaConfig(**sizes | options)))

    return build


@pytest.fixture
def tiny_mamba2() -> Callable[..., Mamba2ForCausalLM]:
    """The same for Mamba2: 4 heads in 2 groups, of as many channels as hidden_size and expand leave for each."""

    def build(seed: int = 0, **options) -> Mamba2ForCausalLM:
        sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4}
        sizes |= {"n_groups": 2, "chunk_size": 4, "expand": 2, "tie_word_embeddings": True}
        sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0) | options  # as Mamba's are
        head_dim = sizes["hidden_size"] * sizes["expand"] // sizes["num_heads"]
        torch.manual_seed(seed)
        model = _randomized(Mamba2ForCausalLM(Mamba2Config(**{"head_dim": head_dim} | sizes)))
        for layer in model.backbone.layers:  # states that are neither forgotten at once nor summed up forever
            layer.mixer.dt_bias.uniform_(-3, 1)
            layer.mixer.A_log.uniform_(-2, 1)
        return model

    return build


@pytest.fixture(params=["mamba", "mamba2"])
def tiny_ssm(request) -> Callable[..., PreTrainedModel]:
    """`tiny_mamba` and `tiny_mamba2` in turn, for what holds for both."""
    return request.getfixturevalue({"mamba": "tiny_mamba", "mamba2": "tiny_mamba2"}[request.param])


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    """The model for inference, its norms and biases random too."""
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
            parameter.uniform_(0.5, 1.5)
        elif name.endswith(".bias") and "dt_proj" not in name:
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 13] that every tiny model has."""
    return torch.randint(0, 60, (2, 13), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """50 whole-word tokens `<|endoftext|>`, `w1` ... `w49`; the id of a word is its number."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, 50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
