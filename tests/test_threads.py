"""Several threads at once: what is made at first use is made once, and each gets the bits that one alone gets."""

import copy
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch
from transformers.utils import logging as transformers_logging

import quamba
from quamba.architectures.convert import install_float_mixers
from quamba.calibration.run import CalibrationText
from quamba.checkpoint.load_float import quiet_transformers
from quamba.generation.decoder import Decoder
from quamba.nn.embedding import QuantEmbedding
from quamba.nn.mamba2 import Mamba2Mixer
from quamba.nn.placement import HUGE_PAGE, place_weights
from quamba.ops import layout
from tests.scheme_variants import TABLES, quantize_variant
from tests.tiny_falcon_mamba import tiny_falcon_mamba
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2

THREADS, NEW_TOKENS = 4, 3


@pytest.fixture(autouse=True)
def frequent_switches():
    """Threads take turns after every few instructions, so that what can happen between two of them does happen."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(function: Callable, count: int = THREADS) -> list:
    """What `count` threads get that call the function at the same moment, in order; an error of one is raised."""
    start, results = threading.Barrier(count), [None] * count

    def work(index: int) -> None:
        start.wait()
        try:
            results[index] = function()
        except BaseException as error:  # pytest's own failures are no Exception
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@torch.inference_mode()
def forward(model, tokens) -> torch.Tensor:
    return model(tokens, use_cache=False).logits


def decoded(model, tokens) -> torch.Tensor:
    """The logits of a prompt and of the tokens that a decoder of its own chooses after it."""
    decoder = Decoder(model)
    logits = [decoder.prefill(tokens)]
    for _ in range(NEW_TOKENS):
        logits.append(decoder.step(logits[-1].argmax(-1)))
    return torch.stack(logits)


def assert_each_gets(expected, results, exact: bool) -> None:
    """`exact`: False where torch multiplies floats, whose sums may depend on what its threads are doing."""
    tolerance = 0 if exact else 1e-4
    for result in results:
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


# (a model without sizes that fill a tile or a group, the scheme, whether all of its products are ours)
MODELS = {
    "mamba w4a8": (None, "w4a8", True),
    "mamba w8a8": (None, "w8a8", True),
    "mamba w4a16": (None, "w4a16", True),
    "falcon_mamba w4a8": (tiny_falcon_mamba, "w4a8", True),
    "mamba2 w4a8": (tiny_mamba2, "w4a8", True),
    "mamba2 w8a8": (tiny_mamba2, "w8a8 dynamic", True),
    "bamba w4a8": (tiny_bamba, "w4a8", False),
    "llama w4a16": (tiny_llama, "w4a16", False),
}


@pytest.mark.parametrize("name", MODELS)
def test_first_forwards_and_decoders_at_once_give_what_one_gives(tiny_mamba, tokens, name):
    build, variant, exact = MODELS[name]
    model = quantize_variant((build or tiny_mamba)(), variant, **TABLES["both"])
    runs = [forward] + ([] if build is tiny_llama else [decoded])
    alone = copy.deepcopy(model)
    for run in runs:
        expected = run(alone, tokens)
        for _ in range(3):
            fresh = copy.deepcopy(model)
            assert_each_gets(expected, at_once(lambda run=run, fresh=fresh: run(fresh, tokens)), exact)
            assert_each_gets(expected, [run(fresh, tokens)], exact)  # and nothing is left broken


@pytest.mark.parametrize("variant", ["w8a8", "w4a8"])
def test_what_is_saved_or_copied_while_a_thread_lays_weights_out_is_whole(tiny_mamba, tokens, monkeypatch, variant):
    model = quantize_variant(tiny_mamba(), variant, **TABLES["both"])
    expected, saved = forward(copy.deepcopy(model), tokens), copy.deepcopy(model).state_dict()
    halfway = threading.Event()

    def slowly(lay_out):
        def tile(rows):
            tiles = lay_out(rows)
            halfway.set()
            time.sleep(0.01)  # what another thread finds now is half done
            return tiles

        return tile

    for name in ("tile_int8", "tile_uint4", "tile_groups"):
        monkeypatch.setattr(layout, name, slowly(getattr(layout, name)))
    first = threading.Thread(target=forward, args=(model, tokens))
    first.start()
    halfway.wait()
    copies = []
    while first.is_alive():
        copies.append((copy.deepcopy(model), model.state_dict()))
    first.join()
    assert copies
    for copied, state in copies:
        assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
        assert torch.equal(forward(copied, tokens), expected)


def test_integers_that_a_weight_takes_after_its_first_product_are_its_own(tokens):
    weight, dense = QuantEmbedding(60, 20, quamba.scheme.recipe.get_scheme("w4a8").weight), torch.randn(60, 20)
    weight.round_to_nearest(torch.randn(60, 20))
    weight(tokens)
    weight.round_to_nearest(dense)
    assert torch.equal(weight(tokens), weight.dequantized()[tokens])
    assert (weight.dequantized() - dense).abs().max() < 0.5


def test_decoders_made_at_once_place_the_weights_once(tiny_mamba):
    model = quantize_variant(tiny_mamba(hidden_size=256, vocab_size=16384), "w4a8", **TABLES["both"])
    at_once(lambda: place_weights(model))
    weights = [tensor.data_ptr() for tensor in model.buffers() if tensor.nbytes >= 4096]
    assert max(weights) - min(weights) < sum(tensor.nbytes for tensor in model.buffers()) + HUGE_PAGE


def test_placing_replaces_parameters_that_another_thread_may_be_reading(tiny_mamba):
    model = quantize_variant(tiny_mamba(hidden_size=512), "w8a8")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    addresses = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    place_weights(model)
    assert parameters
    assert model._quamba_placed
    assert all(parameter.data_ptr() == addresses[name] for name, parameter in parameters.items())
    assert model.lm_head.weight is model.backbone.embeddings.weight  # what is tied stays so


def test_float_mixers_are_installed_once_by_threads_at_once(tokens, monkeypatch):
    model, made = tiny_mamba2(), []
    parameters = {id(parameter) for parameter in model.parameters()}

    def slowly(mixer, original, make=Mamba2Mixer.__init__):
        made.append(mixer)
        time.sleep(0.01)
        make(mixer, original)

    monkeypatch.setattr(Mamba2Mixer, "__init__", slowly)
    at_once(lambda: install_float_mixers(model))
    assert made == [layer.mixer for layer in model.backbone.layers]
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert forward(model, tokens).isfinite().all()


def test_models_are_quantized_at_once_as_they_are_one_by_one(tiny_mamba, tokens):
    windows = torch.randint(0, 60, (6, 24), generator=torch.Generator().manual_seed(3))

    def quantized(model) -> dict:
        quamba.quantize(model, None, "w4a8", "all=percentile", windows, group_size=32, progress=False)
        return model.state_dict()

    expected = [quantized(tiny_mamba(seed)) for seed in range(THREADS)]
    models = enumerate([tiny_mamba(seed) for seed in range(THREADS)])  # a list: their random numbers have one generator
    for seed, state in at_once(lambda: (pair := next(models), (pair[0], quantized(pair[1])))[1]):
        for name, tensor in expected[seed].items():  # torch multiplies in a calibration: equal but for its rounding
            if tensor.is_floating_point():
                assert_each_gets(tensor, [state[name]], exact=False)
            else:
                assert (tensor != state[name]).float().mean() < 0.01


def test_models_of_several_dtypes_load_at_once(tiny_mamba, tiny_tokenizer, tmp_path):
    folder = tmp_path / "model"
    tiny_mamba().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    before = torch.get_default_dtype()
    dtypes = iter([torch.float32, torch.bfloat16] * 2)
    loaded = at_once(lambda: (dtype := next(dtypes), quamba.load(str(folder), dtype=dtype)[0]))
    assert all(parameter.dtype == dtype for dtype, model in loaded for parameter in model.parameters())
    assert torch.get_default_dtype() == before


def test_what_transformers_says_is_held_back_by_one_thread_after_the_other():
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()

    def quietly() -> None:
        with quiet_transformers():
            time.sleep(0.02)

    others = [threading.Thread(target=quietly) for _ in range(THREADS)]
    for other in others:
        other.start()
        time.sleep(0.005)  # each begins before the one before it has ended
    for other in others:
        other.join()
    after = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(before)
    assert after == transformers_logging.INFO


def test_windows_of_a_text_are_the_callers_own_and_the_tokenizers_as_it_is_now(tiny_tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("w1 w2 w3 new w5 w6 new w8 " * 4)
    text = CalibrationText(str(tmp_path / "text.txt"), data_num=2, seqlen=6)
    windows = text.windows(tiny_tokenizer)
    expected = windows.clone()
    windows.zero_()
    assert torch.equal(text.windows(tiny_tokenizer), expected)
    tiny_tokenizer.add_tokens("new")
    changed = text.windows(tiny_tokenizer)
    assert torch.equal(changed, torch.where(expected == 0, 50, expected))
