"""Mixed precision pays: on text that no calibration saw, what a search finds beats one scheme for all layers.

Measured on the embedded mamba2-tiny against W4A8 in groups of 32, the uniform scheme that is nearest in size to what
4-bit layers and one of 8 bits take. Perplexity with weights rounded to nearest, where the difference (0.9 % on these
windows) is far from what another machine's rounding could turn; with GPTQ, the default, it is 0.1 % with an interval of
0.2 %, so that there the divergence from the float model decides, which is lower by a quarter.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import quamba
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.calibration.run import default_text
from quamba.evaluation import perplexity
from quamba.mixed_precision.budget import Budget
from quamba.mixed_precision.run import MixedPrecisionSearch, search_schemes
from quamba.mixed_precision.sensitivity import sum_of_divergences
from quamba.mixed_precision.sizes import layer_sizes
from quamba.scheme.formats import get_scheme
from quamba.text.data import EMBEDDED_MODELS, evaluation_windows, load_text
from quamba.weights.method import WeightMethod

MODEL, UNIFORM = "mamba2-tiny", {"group_size": 32}
SEQUENCES = 8  # of calibration text
HELD_OUT = EMBEDDED_MODELS[MODEL].ppl_dataset


@pytest.fixture(scope="module")
def text():
    """Less calibration text than the default."""
    return replace(default_text(quamba.load(MODEL)[0]), data_num=SEQUENCES)


@pytest.fixture(scope="module")
def uniform_size() -> tuple[int, int]:
    """(bytes of the uniform scheme, weights)."""
    layers = quamba.load(MODEL)[0].backbone.layers
    sizes, weight_count = layer_sizes(layers, {"w4a8": get_scheme("w4a8", **UNIFORM)})
    return sum(sizes["w4a8"]), weight_count


@pytest.fixture(scope="module")
def found(text, uniform_size):
    """What a search finds whose budget is the size of the uniform scheme."""
    model, tokenizer = quamba.load(MODEL)
    size, weight_count = uniform_size
    search = MixedPrecisionSearch(Budget.parse(f"{8 * size / weight_count}bits"))
    return search_schemes(model, text.windows(tokenizer), search, DEFAULT_OBSERVERS, progress=False)


@pytest.fixture(scope="module")
def windows() -> list[Tensor]:
    """32 windows of 512 tokens of the test text."""
    documents = load_text(HELD_OUT, "test")
    return evaluation_windows(documents, quamba.load(MODEL)[1], EMBEDDED_MODELS[MODEL].ppl_seqlen)[:32]


def quantized(text, method: str, **options):
    """A w4a8 model, calibrated on that text."""
    model, tokenizer = quamba.load(MODEL)
    weights = WeightMethod(method)
    return quamba.quantize(model, tokenizer, "w4a8", calibration=text, weights=weights, progress=False, **options)


@pytest.fixture(scope="module")
def divergence(windows):
    """A function: the mean KL(float || model) of a token on half of the windows, nats."""
    half, reference = windows[:16], quamba.load(MODEL)[0]
    install_float_mixers(reference)
    with torch.inference_mode():
        expected = [reference(ids[None]).logits for ids in half]  # [1, L, V]

    @torch.inference_mode()
    def measure(model) -> float:
        pairs = zip(half, expected, strict=True)
        return sum(sum_of_divergences(logits, model(ids[None]).logits) for ids, logits in pairs) / (
            16 * half[0].numel()
        )

    return measure


def test_what_is_found_is_a_mixture_no_larger_than_the_uniform_scheme(found, uniform_size):
    assert set(found.assignment.schemes) == {"w4a8", "w8a8"}
    assert found.assignment.size <= uniform_size[0]


def test_its_perplexity_is_lower(text, found, windows, divergence):
    mixed, uniform = (
        quantized(text, "rtn", **options) for options in ({"layer_schemes": found.assignment.schemes}, UNIFORM)
    )
    results = [perplexity(model, windows, 16, progress=False) for model in (mixed, uniform)]
    assert results[0].ppl < 0.998 * results[1].ppl
    assert divergence(mixed) < 0.98 * divergence(uniform)


def test_with_gptq_its_predictions_are_nearer_to_the_float_model(text, found, divergence):
    mixed, uniform = (
        quantized(text, "gptq", **options) for options in ({"layer_schemes": found.assignment.schemes}, UNIFORM)
    )
    assert divergence(mixed) < 0.9 * divergence(uniform)
