"""What a model of transformers' is used for beside a plain forward pass: right with our modules in it, or refused."""

import copy
import io

import pytest
import torch
from transformers import DynamicCache

from quamba.errors import QuambaError
from tests.scheme_variants import calibrates, quantize_variant
from tests.tiny_hybrids import tiny_bamba


@pytest.fixture(params=["mamba", "mamba2", "bamba"])
def tiny(request):
    """A function that builds a tiny model with Mamba blocks."""
    return tiny_bamba if request.param == "bamba" else request.getfixturevalue(f"tiny_{request.param}")


def build(tiny, variant="w8a8", seed=0):
    return quantize_variant(tiny(seed), variant, **({"observer": "all=minmax"} if calibrates(variant) else {}))


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def logits(model, tokens, **options):
    with torch.no_grad():
        return model(tokens, **options).logits


@pytest.mark.parametrize("variant", ["w8a8", "w4a16"])
def test_copies_and_moves_compute_the_same(tiny, variant, tokens):
    model = build(tiny, variant)
    before = copy.deepcopy(model)
    expected = logits(model, tokens)  # the first product tiles the weights
    for copied in (before, copy.deepcopy(model), _pickled(model)):
        assert_same(logits(copied, tokens), expected)
    assert_same(logits(copy.deepcopy(model).train(), tokens), expected)  # nothing in it is random
    for dtype in (torch.bfloat16, torch.float16, torch.float64):  # of what is float; scales keep theirs
        moved = logits(copy.deepcopy(model).to(dtype), tokens).float()
        assert (moved - expected).norm() < 0.2 * expected.norm()


def _pickled(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_tensors_of_the_same_scheme_can_be_loaded_and_of_no_other(tiny, tokens):
    model, other = build(tiny), build(tiny, seed=1)
    logits(other, tokens)  # tiles its weights
    other.load_state_dict(model.state_dict())
    assert_same(logits(other, tokens), logits(model, tokens))
    for variant in ("w4a8", "w8a16"):
        with pytest.raises(RuntimeError, match=r"Error.* in loading state_dict"):
            build(tiny, variant).load_state_dict(model.state_dict())


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_beams_change_places_with_their_states(tiny, tokens, options):
    """A beam's score is the likelihood of its tokens, read at once and without a cache."""
    model = build(tiny)
    settings = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6, "length_penalty": 0.0}
    settings |= {"attention_mask": torch.ones_like(tokens), "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(tokens, **settings, **options)
    likelihood = logits(model, found.sequences, use_cache=False).log_softmax(-1)[:, 12:-1]  # [beams, 6, V]
    expected = likelihood.gather(-1, found.sequences[:, 13:, None]).sum((1, 2))
    torch.testing.assert_close(found.sequences_scores, expected, rtol=0.01, atol=0.05)


def test_a_static_cache_holds_the_same_states(tiny_ssm, tokens):
    model, settings = build(tiny_ssm), {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
    settings["attention_mask"] = torch.ones_like(tokens)
    expected = model.generate(tokens, **settings)
    assert torch.equal(model.generate(tokens, cache_implementation="static", **settings), expected)


def test_what_takes_tokens_back_is_refused(tiny, tokens):
    model = build(tiny)
    with pytest.raises(ValueError, match="not supported with stateful models"):
        model.generate(tokens, prompt_lookup_num_tokens=3, max_new_tokens=4)
    cache = DynamicCache(config=model.config)
    name = "past_key_values" if tiny is tiny_bamba else "cache_params"
    logits(model, tokens, use_cache=True, **{name: cache})
    with pytest.raises(RuntimeError, match="crop"):
        cache.crop(-1)
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    with pytest.raises(QuambaError, match="a recurrent state cannot be taken back"):
        logits(model, tokens[:, :1], use_cache=True, **{name: cache})


def test_packed_sequences_are_refused(tiny, tokens):
    model = build(tiny)
    mixer = (model.model.layers[0].mamba if tiny is tiny_bamba else model.backbone.layers[0].mixer).eval()
    indices = torch.tensor([[0] * 6 + [1] * 7] * 2, dtype=torch.int32)
    with pytest.raises(QuambaError, match="seq_idx packs several sequences into one row"):
        mixer(torch.zeros(2, 13, 32), seq_idx=indices)
    if tiny is tiny_bamba:  # which passes it on
        with pytest.raises(QuambaError, match="seq_idx packs"):
            logits(model, tokens, seq_idx=indices)
