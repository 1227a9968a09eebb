"""Quantizing a model from end to end: how near it stays, what it is made of, and what is refused."""

import copy
import itertools
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import quamba
from quamba import CalibrationText, QuambaError
from quamba.architectures.anatomy import Anatomy
from quamba.calibration.defaults import DEFAULT_OBSERVERS
from quamba.checkpoint import recipe_of
from quamba.models.memory import tensor_bytes
from quamba.nn.embedding import QuantEmbedding, QuantHead
from quamba.nn.mamba1 import QuantMamba1Mixer
from quamba.text.data import EMBEDDED_MODELS, evaluation_windows, load_text
from quamba.weights.method import WeightMethod
from tests.scheme_variants import TABLES, VARIANTS, calibrates, quantize_variant

OPTIONS = ("quantize_embedding", "quantize_lm_head", "rotate_residual")
ALL_OPTIONS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product([False, True], repeat=3)]


def given(options: dict) -> str:
    """The test's name of a set of options."""
    return "+".join(name for name, value in options.items() if value) or "none"


WINDOWS = torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(5))  # token ids to calibrate on


def quantize(model, calibration=WINDOWS, **options):
    """Quantizes a model on `WINDOWS`, weights to nearest; no tokenizer is needed for token ids."""
    return quamba.quantize(
        model, None, calibration=calibration, progress=False, **{"weights": WeightMethod("rtn")} | options
    )


@torch.inference_mode()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits.float()


def near(model) -> float:
    """How far 8 bits may lead a tiny model's logits astray, as a share of their norm."""
    return {"mamba": 0.03, "mamba2": 0.07}[model.config.model_type]


def relative_error(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm())


def state(model) -> dict:
    return {name: (tensor.dtype, tensor.clone()) for name, tensor in model.state_dict().items()}


def same_state(before: dict, model) -> bool:
    after = state(model)
    return before.keys() == after.keys() and all(
        dtype == after[name][0] and torch.equal(value, after[name][1]) for name, (dtype, value) in before.items()
    )


# --- how near it stays ---


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", ALL_OPTIONS, ids=given)
def test_logits_stay_near(tiny_ssm, tokens, options, tied):
    model = tiny_ssm(tie_word_embeddings=tied)
    expected = logits(model, tokens)
    assert 0 < relative_error(logits(quantize(model, **options), tokens), expected) < near(model)


@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_scheme_stays_near(tiny_ssm, tokens, variant, tables):
    """8 bits stay near; each kind of 4-bit tensor, rounded to nearest, adds a tenth of the logits' norm to that."""
    model = tiny_ssm()
    expected = logits(model, tokens)
    quantize_variant(model, variant, **TABLES[tables])
    recipe = recipe_of(model)
    four = [recipe.scheme.weight.bits, recipe.embedding_bits, recipe.lm_head_bits].count(4)
    assert (
        0
        < relative_error(logits(model, tokens), expected)
        < near(model) + four * (0.1 if model.config.model_type == "mamba" else 0.25)
    )


@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
def test_smaller_groups_lose_less(tiny_mamba, tokens, scheme):
    model, calibration = tiny_mamba(hidden_size=128), {} if scheme == "w4a8" else {"calibration": None}
    expected = logits(model, tokens)
    errors = [
        relative_error(
            logits(quantize(copy.deepcopy(model), scheme=scheme, group_size=g, **calibration), tokens), expected
        )
        for g in (32, 64, 128, 256)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    "sizes",
    [
        {"use_bias": True},
        {"use_conv_bias": False},
        {"conv_kernel": 3},
        {"state_size": 16},
        {"hidden_size": 24},  # d_inner 48 = 12 * 4: a Paley matrix
        {"hidden_size": 10, "expand": 4},  # d_inner 40 = 20 * 2
        {"num_hidden_layers": 1},
    ],
    ids=str,
)
def test_every_shape_of_the_block_is_served(tiny_ssm, tokens, sizes):
    model = tiny_ssm(**sizes)
    expected = logits(model, tokens)
    assert 0 < relative_error(logits(quantize(model), tokens), expected) < near(model)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "all=mse", "x=mse,out=percentile", {"z": "mse"}])
def test_every_observer_serves(tiny_ssm, tokens, observer):
    model = tiny_ssm()
    expected = logits(model, tokens)
    assert relative_error(logits(quantize(model, observer=observer), tokens), expected) < near(model)


@pytest.mark.parametrize("observer", ["outlier_aware", "outlier_aware_adaptive"])
def test_an_observer_that_saturates_outliers_stays_nearby(tiny_ssm, tokens, observer):
    model = tiny_ssm()
    expected = logits(model, tokens)
    assert relative_error(logits(quantize(model, observer=observer), tokens), expected) < 0.2


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_an_embedded_model_predicts_as_it_did(name):
    model, tokenizer = quamba.load(name)
    tokens = torch.stack(evaluation_windows(load_text("stdlib", "test"), tokenizer, 256)[:4])

    def log_probabilities():
        return F.log_softmax(logits(model, tokens)[:, :-1], dim=-1)

    def perplexity(log_p):
        return float(F.nll_loss(log_p.flatten(0, 1), tokens[:, 1:].flatten()).exp())

    before = log_probabilities()
    text = CalibrationText("stdlib", data_num=16, seqlen=128, batch_size=16)
    quamba.quantize(model, tokenizer, calibration=text, progress=False)
    after = log_probabilities()
    assert F.kl_div(after, before, log_target=True, reduction="sum") / tokens[:, 1:].numel() < 0.02  # nats a token
    assert 0.99 < perplexity(after) / perplexity(before) < 1.02
    assert model.quamba_calibration.text == asdict(text)
    assert model.quamba_calibration.tokens == 16 * 128
    assert all(tap.sqnr_db > 20 for tap in model.quamba_calibration.taps.values())


# --- what it is made of ---


def test_the_model_itself_is_changed_and_returned(tiny_mamba):
    model = tiny_mamba()
    assert quantize(model) is model
    assert type(model) is MambaForCausalLM
    assert all(type(layer.mixer) is QuantMamba1Mixer for layer in model.backbone.layers)
    assert {name for name, _ in model.named_parameters()} == {"backbone.embeddings.weight", "backbone.norm_f.weight"}
    weights = {name: buffer.dtype for name, buffer in model.named_buffers() if name.endswith(".weight")}
    matrices = {name: dtype for name, dtype in weights.items() if "mixer" in name}
    assert len(matrices) == 2 * 5
    assert set(matrices.values()) == {torch.int8}
    assert recipe_of(model).scheme.name == "w8a8"


def test_the_default_observers_are_those_of_the_table(tiny_ssm):
    model = quantize(tiny_ssm())
    result = model.quamba_calibration
    assert result.observer == {tap: DEFAULT_OBSERVERS[tap] for tap in Anatomy.of(model).architecture.taps}
    assert result.tokens == WINDOWS.numel()
    assert result.text is None


def test_a_quantized_head_has_a_tap(tiny_mamba):
    model = quantize(tiny_mamba(), quantize_lm_head=True, observer="head_in=mse")
    assert model.quamba_calibration.observer["head_in"] == "mse"
    assert float(model.lm_head.head_in_scale) == model.quamba_calibration.taps["head_in"].scale


def test_tables_of_other_bits_or_untied_ones_are_two(tiny_mamba):
    sizes = {}
    for tables in ("both 8", "both 4", "4 and 8", "untied"):
        model = quantize_variant(tiny_mamba(), "w4a8", **TABLES[tables])
        head, embedding = model.lm_head, model.backbone.embeddings
        assert (head.tied_to is embedding) == (tables in ("both 8", "both 4")) == recipe_of(model).tied_head
        assert not model.config.tie_word_embeddings
        sizes[tables] = tensor_bytes(model)
    int8, int4 = 96 * 32 + 96 * 4, 96 * 32 // 2 + 96 * (2 + 1)  # with a group a row
    assert sizes["both 8"] - sizes["both 4"] == int8 - int4
    assert sizes["4 and 8"] - sizes["both 4"] == int8
    assert sizes["untied"] - sizes["both 4"] == int4


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_of_a_scheme_are_of_its_type(tiny_ssm, variant):
    model = quantize_variant(tiny_ssm(), variant)
    weights = {name: buffer.dtype for name, buffer in model.named_buffers() if name.endswith(".weight")}
    linear = {dtype for name, dtype in weights.items() if "proj" in name}
    assert linear == {torch.int8 if variant.startswith("w8") else torch.uint8}
    conv = {dtype for name, dtype in weights.items() if "conv1d" in name}
    assert conv == {torch.int8 if calibrates(variant) else torch.float32}


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=given)
def test_a_tied_table_is_stored_once(tiny_mamba, options):
    """Embedding and head share a table, float or int8, unless only one is quantized or a rotation tells them apart."""
    model = quantize(tiny_mamba(), **options)
    embedding, head = model.backbone.embeddings, model.lm_head
    assert isinstance(embedding, QuantEmbedding) == options["quantize_embedding"]
    assert isinstance(head, QuantHead) == options["quantize_lm_head"]
    both = options["quantize_embedding"] == options["quantize_lm_head"]
    shared = both and not options["rotate_residual"]
    if options["quantize_lm_head"]:
        assert (head.tied_to is embedding) == shared == recipe_of(model).tied_head
    else:
        assert (head.weight is embedding.weight) == shared == model.config.tie_word_embeddings
    whole = quantize(tiny_mamba(), **options | {"rotate_residual": True})  # two tables
    saved = tensor_bytes(whole) - tensor_bytes(model)
    int8_table, float_table = 96 * 32 + 96 * 4, 96 * 32 * 4
    assert saved == shared * (int8_table if options["quantize_embedding"] else float_table)


def test_an_untied_head_keeps_its_own_table(tiny_mamba):
    model = quantize(tiny_mamba(tie_word_embeddings=False), quantize_embedding=True, quantize_lm_head=True)
    assert model.lm_head.tied_to is None
    assert not recipe_of(model).tied_head
    assert model.lm_head.linear.weight.dtype == model.backbone.embeddings.weight.dtype == torch.int8


def test_a_bfloat16_model_keeps_its_scales_and_states_in_float32(tiny_ssm, tokens):
    model = tiny_ssm().to(torch.bfloat16)
    expected = logits(model, tokens)
    quantize(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.int8, torch.float32}
    assert relative_error(logits(model, tokens), expected) < near(model)


def test_a_bfloat16_models_weights_are_rotated_and_rounded_in_float32(tiny_ssm):
    narrow = tiny_ssm().to(torch.bfloat16)
    wide = dict(quantize(copy.deepcopy(narrow).float()).named_buffers())
    for name, buffer in quantize(narrow).named_buffers():
        assert torch.equal(buffer, wide[name]), name


def test_a_cast_leaves_scales_as_they_are(tiny_mamba):
    model = quantize(tiny_mamba(), quantize_embedding=True, quantize_lm_head=True)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16).half()
    after = dict(model.named_buffers())
    assert before.keys() == after.keys()
    for name, buffer in before.items():
        assert buffer.dtype == after[name].dtype and torch.equal(buffer, after[name]), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}  # norm_f


def test_a_copy_works_by_itself(tiny_ssm, tokens):
    model = quantize(tiny_ssm(), quantize_embedding=True, quantize_lm_head=True)
    twin = copy.deepcopy(model)
    assert twin.lm_head.tied_to is twin.backbone.embeddings is not model.backbone.embeddings
    assert torch.equal(logits(twin, tokens), logits(model, tokens))


@pytest.mark.parametrize("options", [{}, dict.fromkeys(OPTIONS, True)], ids=given)
def test_transformers_saves_it(tiny_ssm, tokens, tmp_path, options):
    model = quantize(tiny_ssm(), **options)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))


# --- what is refused ---

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1}


@pytest.mark.parametrize(
    "build",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=48, num_attention_heads=2)),
        lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, intermediate_size=48, num_attention_heads=2)),
    ],
    ids=["llama", "qwen2"],
)
def test_other_architectures_are_refused_by_name(build, request):
    with pytest.raises(
        QuambaError, match=rf"^the activations of models of type .{request.node.callspec.id}. cannot be quantized"
    ):
        quantize(build())


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ({"hidden_size": 65}, {}, "no Hadamard rotation of size 130"),
        ({"hidden_act": "gelu"}, {}, "hidden_act 'gelu' has no kernels"),
        ({}, {"scheme": "w3a3"}, "unknown scheme 'w3a3': choose one of w8a8"),
        ({}, {"group_size": 64}, "group_size 64 needs 4 or 3-bit weights"),
        ({}, {"scheme": "w4a8", "group_size": 100}, "group_size 100 has no kernels: choose of 32, 64, 128, 256"),
        ({}, {"scheme": "w4a16", "dynamic": True}, "dynamic scales are those of 8-bit activations"),
        ({}, {"embedding_bits": 4}, "embedding_bits 4 does nothing without quantize_embedding"),
        ({}, {"lm_head_bits": 5, "quantize_lm_head": True}, "lm_head_bits are 3, 4 or 8, not 5"),
        ({}, {"untie": True}, "to untie embedding and head does nothing unless both are quantized"),
        ({}, {"observer": "best"}, "unknown observer 'best'"),
        ({}, {"observer": "B_in=mse"}, "this model has no tap 'B_in'"),
        ({}, {"observer": "head_in=mse"}, "tap head_in has an observer only where the head is quantized"),
        ({}, {"observer_options": {"outlier_aware": {}}}, "options for observer 'outlier_aware', which no tap uses"),
        ({}, {"observer_options": {"percentile": {"percentile_alpha": 7}}}, "percentile_alpha must be in"),
        ({}, {"calibration": torch.zeros(1, 2)}, r"takes token ids, int64 \[count, seqlen\], got torch.float32"),
        ({}, {"calibration": torch.tensor([[96]])}, "token id 96, the model's vocabulary has 96"),
        ({}, {"calibration": "stdlib"}, "must be a CalibrationText, .* not 'stdlib'"),
        ({}, {"calibration": CalibrationText("no/such/file")}, "unknown text 'no/such/file'"),
    ],
    ids=str,
)
def test_a_mistake_is_told_before_the_model_is_changed(tiny_mamba, sizes, options, message):
    model = tiny_mamba(**sizes).to(torch.bfloat16)
    before = state(model)
    with pytest.raises(QuambaError, match=message):
        quantize(model, **options)
    assert same_state(before, model)


def test_a_second_time_is_refused(tiny_mamba):
    with pytest.raises(QuambaError, match="is quantized already"):
        quantize(quantize(tiny_mamba()))
