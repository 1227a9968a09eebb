"""The decoder: prompts and tokens in, the logits of what comes next, the same as the whole model's at once."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

import quamba
from quamba import QuambaError, quantize
from quamba.generation.decoder import Decoder
from quamba.nn.embedding import QuantHead
from quamba.nn.mamba2 import SCAN_CHUNK


def quantized(model):
    windows = torch.randint(0, 60, (4, 16), generator=torch.Generator().manual_seed(5))
    options = {"quantize_embedding": True, "quantize_lm_head": True}
    return quamba.quantize(model, None, calibration=windows, progress=False, **options)


@pytest.fixture(params=["float", "quantized"])
def model(tiny_ssm, request):
    return quantized(tiny_ssm()) if request.param == "quantized" else tiny_ssm()


@torch.inference_mode()
def last_logits(model, ids) -> torch.Tensor:
    """What the model says after all of `ids` [B, L], read at once and without a cache: [B, V]."""
    return model(ids, use_cache=False).logits[:, -1]


def assert_same(actual, expected, model) -> None:
    """Up to the order of sums: Mamba2's scan has one of its own for each length, and int8 values may tip over."""
    if isinstance(model.lm_head, QuantHead) and model.config.model_type == "mamba2":
        assert (actual - expected).norm() < 2e-2 * expected.norm()
    else:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_every_step_gives_the_logits_of_the_whole_sequence(model, tokens):
    decoder = Decoder(model)
    for length in range(1, tokens.shape[1] + 1):
        logits = decoder.prefill(tokens[:, :1]) if length == 1 else decoder.step(tokens[:, length - 1])
        assert_same(logits, last_logits(model, tokens[:, :length]), model)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, model.config.vocab_size)


@pytest.mark.parametrize("cuts", [(), (1,), (7,), (1, 2, 12)], ids=str)
def test_a_prompt_may_come_in_parts_of_any_length(model, tokens, cuts):
    """transformers' own float mixers forget the SSM state between the parts; those here do not."""
    decoder, expected = Decoder(model), last_logits(model, tokens)
    for start, end in zip((0, *cuts), (*cuts, 13), strict=True):
        logits = decoder.prefill(tokens[:, start:end])
    assert_same(logits, expected, model)


@pytest.mark.parametrize(
    ("family", "length", "rows", "chunks"),
    [("tiny_mamba", 13, 10, [5, 5, 3]), ("tiny_mamba2", 220, 400, [192, 28]), ("tiny_mamba2", 13, 10, [5, 5, 3])],
)
def test_a_long_prompt_is_read_in_chunks_that_change_nothing(request, family, length, rows, chunks):
    """Of two sequences, so that a chunk is half as many tokens; in Mamba2 a whole number of its scan's chunks."""
    model, tokens = quantized(request.getfixturevalue(family)()), torch.randint(0, 60, (2, length))
    decoder = Decoder(model)
    decoder.prefill_rows = 2 * length
    expected, read = decoder.prefill(tokens), []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    decoder = Decoder(model)
    decoder.prefill_rows = rows
    actual = decoder.prefill(tokens)
    hook.remove()
    assert read == [(2, chunk) for chunk in chunks]
    if family == "tiny_mamba2" and rows < 2 * SCAN_CHUNK:
        assert_same(actual, expected, model)  # parts of less than such a chunk
    else:
        assert torch.equal(actual, expected)


def test_only_the_last_position_goes_through_the_head(model, tokens):
    rows = []
    hook = model.lm_head.register_forward_pre_hook(
        lambda _, inputs: rows.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    decoder = Decoder(model)
    decoder.prefill(tokens)
    decoder.step(tokens[:, 0])
    hook.remove()
    # one row for each sequence; the op of a quantized step computes the head too
    assert rows == ([2] if isinstance(model.lm_head, QuantHead) else [2, 2])


def test_reset_forgets_the_sequences_and_their_number(model, tokens):
    decoder = Decoder(model)
    expected = decoder.prefill(tokens)
    decoder.step(tokens[:, 0])
    decoder.reset()
    assert_same(decoder.prefill(tokens[:1]), expected[:1], model)


def test_two_decoders_of_a_model_keep_apart(model, tokens):
    one, other = Decoder(model), Decoder(model)
    one.prefill(tokens)
    assert_same(other.prefill(tokens), last_logits(model, tokens), model)


def test_no_gradients_are_asked_of_the_ops(tiny_mamba, tokens):
    model = tiny_mamba().requires_grad_(True)
    assert not Decoder(model).prefill(tokens).requires_grad


def test_the_float_model_keeps_its_parameters(tiny_mamba):
    model = tiny_mamba()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    Decoder(model)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[]], r"shape \[1, 0\]"),
        ([1, 2], r"shape \[2\]"),
        ([[3, 96]], "token id 96 is outside of the model's vocabulary of 96"),
        ([[-1, 3]], "token id -1 is outside"),
    ],
    ids=["empty", "flat", "high", "negative"],
)
def test_a_prompt_that_cannot_be_read_is_refused(model, ids, message):
    with pytest.raises(QuambaError, match=message):
        Decoder(model).prefill(torch.tensor(ids, dtype=torch.int64))


def test_other_sequences_cannot_continue_these(model, tokens):
    decoder = Decoder(model)
    decoder.prefill(tokens)
    for call in (lambda: decoder.step(tokens[0, :3]), lambda: decoder.prefill(tokens[:1])):
        with pytest.raises(QuambaError, match=r"[13] sequences cannot continue 2: reset"):
            call()


SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}


OTHERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=16, num_attention_heads=2)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2)),
}


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "w8a16"])
@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_of_another_kind_runs_with_its_own_cache(kind, quantized):
    torch.manual_seed(0)
    model = OTHERS[kind]().eval()
    if quantized and kind == "gpt2":
        pytest.skip("its layers are Conv1D, which are not quantized")
    if quantized:
        quantize(model, None, "w8a16", progress=False)
    ids = torch.randint(32, (2, 9))
    decoder, whole = Decoder(model), model(ids).logits
    for _ in range(2):  # again from an empty state
        parts = [decoder.prefill(ids[:, :4]), decoder.prefill(ids[:, 4:7]), *(decoder.step(ids[:, i]) for i in (7, 8))]
        for position, logits in zip((3, 6, 7, 8), parts, strict=True):
            torch.testing.assert_close(logits, whole[:, position], rtol=1e-4, atol=1e-4)
        decoder.reset()
    with pytest.raises(QuambaError, match="token id 32 is outside of the model's vocabulary of 32"):
        decoder.prefill(torch.tensor([[32]]))


def test_a_model_without_a_cache_is_refused_by_name():
    model = RwkvForCausalLM(RwkvConfig(**SIZES | {"num_hidden_layers": 2}))
    with pytest.raises(QuambaError, match="RwkvForCausalLM takes no past_key_values"):
        Decoder(model)
