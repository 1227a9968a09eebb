"""A scheme for every layer (mixed precision): what a model is then made of, that it is saved, and what is refused."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import quamba
from quamba import QuambaError
from quamba.checkpoint import recipe_of
from quamba.generation.decoder import Decoder
from quamba.mixed_precision.sizes import layer_sizes
from quamba.nn.linear import WeightOnlyLinear
from quamba.nn.weight import QuantWeight
from quamba.scheme.formats import get_scheme
from quamba.weights.method import WeightMethod
from tests.tiny_llama import tiny_llama

MIXTURES = [("w8a8", "w4a8"), ("w4a8", "w8a8"), ("w4a16", "w8a8"), ("w8a8", "w3a16"), ("w4a16", "w8a16")]
WINDOWS = torch.randint(0, 60, (6, 16), generator=torch.Generator().manual_seed(5))
RTN = WeightMethod("rtn")


def mixed(model, layers, **options):
    """The model quantized with a scheme for each layer."""
    scheme = "w8a16" if all(name.endswith("a16") for name in layers) else "w8a8"
    read = {} if scheme == "w8a16" else {"calibration": WINDOWS}
    options = {"weights": RTN, **read, **options}
    return quamba.quantize(model, None, scheme, layer_schemes=layers, progress=False, **options)


@torch.inference_mode()
def logits(model, tokens) -> torch.Tensor:
    return model(tokens).logits.float()


def relative_error(actual, expected) -> float:
    return float((actual - expected).norm() / expected.norm())


@torch.inference_mode()
def outputs(model, tokens) -> list[torch.Tensor]:
    """What each mixer adds to the hidden states of a float model that all of them read."""
    hidden = model.backbone.embeddings(tokens).float()
    return [layer.mixer(hidden) for layer in model.backbone.layers]


# --- what it is made of ---


@pytest.mark.parametrize("layers", MIXTURES, ids="+".join)
def test_each_layer_is_that_of_a_model_of_its_scheme(tiny_ssm, tokens, layers):
    """Bit for bit: the calibration runs on the float model, so that one layer's scheme changes no other layer."""
    model = mixed(tiny_ssm(), layers)
    assert recipe_of(model).layers == tuple(get_scheme(name) for name in layers)
    for index, name in enumerate(layers):
        uniform = mixed(tiny_ssm(), (name, name))
        assert torch.equal(outputs(model, tokens)[index], outputs(uniform, tokens)[index])
        own, theirs = (m.backbone.layers[index].mixer.state_dict() for m in (model, uniform))
        assert own.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


@pytest.mark.parametrize("layers", MIXTURES, ids="+".join)
def test_the_loss_is_between_that_of_the_uniform_models(tiny_ssm, tokens, layers):
    expected = logits(tiny_ssm(), tokens)
    uniform = [relative_error(logits(mixed(tiny_ssm(), (name, name)), tokens), expected) for name in layers]
    error = relative_error(logits(mixed(tiny_ssm(), layers), tokens), expected)
    assert 0.3 * min(uniform) < error < 1.5 * max(uniform)


def test_the_weights_take_what_the_schemes_say(tiny_ssm):
    model = mixed(tiny_ssm(), ("w8a8", "w4a8"))
    sizes, _ = layer_sizes(tiny_ssm().backbone.layers, {name: get_scheme(name) for name in ("w8a8", "w4a8")})
    for layer, expected in zip(model.backbone.layers, (sizes["w8a8"][0], sizes["w4a8"][1]), strict=True):
        weights = [module for module in layer.modules() if isinstance(module, QuantWeight)]
        assert sum(tensor.nbytes for weight in weights for tensor in weight.rows().values()) == expected


def test_options_hold_for_the_layers_that_have_a_use_for_them(tiny_ssm, tokens):
    model = mixed(tiny_ssm(), ("w8a8", "w4a16"), group_size=32, dynamic=True)
    eight, four = recipe_of(model).layers
    assert (eight, four) == (get_scheme("w8a8", dynamic=True), get_scheme("w4a16", group_size=32))
    first, second = (layer.mixer for layer in model.backbone.layers)
    assert first.in_scale is None and first.x_scale is not None and second.x_scale is None
    assert second.in_proj.group_size == 32
    assert relative_error(logits(model, tokens), logits(tiny_ssm(), tokens)) < 0.3


@pytest.mark.parametrize("layers", [("w8a8", "w4a8"), ("w4a16", "w8a8"), ("w4a16", "w8a16")], ids="+".join)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embedding_and_head_have_the_scheme_of_the_model(tiny_ssm, tokens, layers, tied):
    tables = {"quantize_embedding": True, "quantize_lm_head": True}
    model = mixed(tiny_ssm(tie_word_embeddings=tied), layers, **tables)
    assert recipe_of(model).lm_head_bits == 8
    assert model.lm_head.act == recipe_of(model).scheme.act
    assert relative_error(logits(model, tokens), logits(tiny_ssm(tie_word_embeddings=tied), tokens)) < 0.3


def test_a_quantized_head_may_be_all_that_is_calibrated(tiny_mamba, tokens):
    """Layers with float activations, a head with integers."""
    model = quamba.quantize(
        tiny_mamba(),
        None,
        "w8a8",
        calibration=WINDOWS,
        layer_schemes=("w8a16", "w4a16"),
        quantize_lm_head=True,
        weights=RTN,
        progress=False,
    )
    assert float(model.lm_head.head_in_scale) == model.quamba_calibration.taps["head_in"].scales()
    assert all(mixer.x_scale is None for mixer in (layer.mixer for layer in model.backbone.layers))
    assert relative_error(logits(model, tokens), logits(tiny_mamba(), tokens)) < 0.2


def test_float_activations_in_every_layer_take_no_calibration(tiny_mamba):
    model = quamba.quantize(tiny_mamba(), None, "w8a8", layer_schemes=("w8a16", "w4a16"), weights=RTN, progress=False)
    assert model.quamba_calibration is None
    with pytest.raises(QuambaError, match=r"calibration does nothing with scheme w4a16\+w8a16: its activations stay"):
        quamba.quantize(tiny_mamba(), None, "w8a8", calibration=WINDOWS, layer_schemes=("w8a16", "w4a16"))


# --- the weight path ---


@pytest.mark.parametrize("method", ["gptq", "awq", "awq+gptq"])
@pytest.mark.parametrize("layers", MIXTURES, ids="+".join)
def test_every_method_rounds_each_layer_to_its_format(tiny_ssm, tokens, layers, method):
    expected = logits(tiny_ssm(), tokens)
    model = mixed(tiny_ssm(), layers, weights=WeightMethod(method), weight_text=WINDOWS)
    for layer, name in zip(model.backbone.layers, layers, strict=True):
        assert {m.spec for m in layer.modules() if isinstance(m, QuantWeight)} == {get_scheme(name).weight}
    nearest = relative_error(logits(mixed(tiny_ssm(), layers), tokens), expected)
    assert 0 < relative_error(logits(model, tokens), expected) < 1.3 * nearest + 0.02


@pytest.mark.parametrize("layers", [("w4a16", "w8a8"), ("w4a8", "w8a16")], ids="+".join)
def test_input_scales_stand_where_integers_allow_them_in_every_layer(tiny_ssm, tokens, layers):
    """x_proj's and dt_proj's inputs are int8 in some layers: none has scales there, and all have the others."""
    model = mixed(tiny_ssm(), layers, weights=WeightMethod("awq"), weight_text=WINDOWS)
    assert recipe_of(model).multipliers == ("mixer.in_proj", "mixer.out_proj")
    for layer in model.backbone.layers:
        input_scales = {name for name, buffer in layer.mixer.named_buffers() if name.endswith("input_multiplier")}
        assert input_scales == {"in_proj.input_multiplier", "out_proj.input_multiplier"}


def test_an_interrupted_run_goes_on_with_the_formats_of_its_layers(tiny_ssm, tokens, tmp_path):
    layers, options = ("w8a8", "w4a8"), {"weight_text": WINDOWS, "progress_dir": tmp_path / "run"}
    options["weights"] = WeightMethod("gptq", layer_batch_size=1)
    whole = mixed(tiny_ssm(), layers, **options)
    resumed = mixed(tiny_ssm(), layers, resume=True, **options)
    assert torch.equal(logits(resumed, tokens), logits(whole, tokens))
    with pytest.raises(QuambaError, match="had another weights: give the same options"):
        mixed(tiny_ssm(), ("w4a8", "w8a8"), resume=True, **options)


# --- other models: the weights alone ---


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_any_models_weights_may_differ_from_layer_to_layer(tokens, method):
    float_model, layers = tiny_llama(num_hidden_layers=2), ("w4a16", "w8a16")
    model = mixed(tiny_llama(num_hidden_layers=2), layers, weights=WeightMethod(method), **_text(method))
    for layer, name in zip(model.model.layers, layers, strict=True):
        linears = [module for module in layer.modules() if isinstance(module, WeightOnlyLinear)]
        assert linears and {linear.spec for linear in linears} == {get_scheme(name).weight}
        assert not any(type(module) is nn.Linear for module in layer.modules())
    assert 0 < relative_error(logits(model, tokens), logits(float_model, tokens)) < 0.3


def _text(method: str) -> dict:
    return {} if method == "rtn" else {"weight_text": WINDOWS}


# --- saved, decoded ---


@pytest.mark.parametrize("method", ["rtn", "awq"])
@pytest.mark.parametrize("layers", MIXTURES, ids="+".join)
def test_a_saved_model_is_the_same_bit_for_bit(tiny_ssm, tiny_tokenizer, tokens, tmp_path, layers, method):
    options = {"weights": WeightMethod(method), **_text(method), "quantize_lm_head": True}
    model = mixed(tiny_ssm(), layers, **options)
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert recipe_of(loaded) == recipe_of(model)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_so_is_a_model_of_another_family(tiny_tokenizer, tokens, tmp_path):
    model = mixed(tiny_llama(num_hidden_layers=2), ("w4a16", "w8a16"), weights=WeightMethod("awq"), weight_text=WINDOWS)
    loaded, _ = quamba.load(str(quamba.save(model, tiny_tokenizer, tmp_path / "model")))
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


DECODED = [("w8a8", "w4a8"), ("w4a8", "w8a8"), ("w4a16", "w8a8"), ("w8a8", "w4a16"), ("w4a16", "w8a16")]
TABLES = [{}, {"quantize_lm_head": True}, {"quantize_lm_head": True, "lm_head_bits": 4}]


@pytest.mark.parametrize("tables", TABLES, ids=str)
@pytest.mark.parametrize("layers", DECODED, ids="+".join)
@pytest.mark.parametrize("group_size", [32, 128])
@torch.inference_mode()
def test_tokens_are_decoded_as_the_model_does_it(tiny_mamba, tokens, layers, tables, group_size):
    """Bit for bit, whether the blocks can go as one op or not."""
    model = mixed(tiny_mamba(), layers, group_size=group_size, **tables)
    decoder, cache = Decoder(model), DynamicCache(config=model.config)
    for position in range(tokens.shape[1]):
        ids = tokens[:, position]
        expected = model(ids[:, None], cache_params=cache, use_cache=True).logits[:, 0]
        actual = decoder.prefill(ids[:, None]) if position == 0 else decoder.step(ids)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("layers", DECODED, ids="+".join)
def test_one_op_runs_layers_of_one_kind_of_activations(tiny_mamba, layers):
    model = mixed(tiny_mamba(), layers)
    acts = {get_scheme(name).act for name in layers}
    assert (Decoder(model)._blocks is not None) == (len(acts) == 1)


# --- what is refused ---


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (("w8a8",), {}, "schemes of 1 layers, but the model has 2"),
        (("w8a8",) * 3, {}, "schemes of 3 layers, but the model has 2"),
        (("w8a8", "best"), {}, "unknown scheme 'best'"),
        ("w8a8", {}, "a list of names, one a layer, not 'w8a8'"),
        (("w8a8", "w8a8"), {"group_size": 64}, "needs layers of 4 or 3-bit weights"),
        (("w8a8", "w4a8"), {"group_size": 63}, "group_size 63 has no kernels"),
        (("w4a16", "w8a16"), {"dynamic": True}, "every layer leaves activations float"),
    ],
    ids=str,
)
def test_layers_that_mean_nothing_are_refused(tiny_ssm, layers, options, message):
    with pytest.raises(QuambaError, match=message):
        quamba.quantize(tiny_ssm(), None, layer_schemes=layers, progress=False, **options)


def test_another_models_activations_stay_float():
    with pytest.raises(QuambaError, match="the activations of models of type 'llama' cannot be quantized"):
        mixed(tiny_llama(num_hidden_layers=2), ("w4a8", "w8a16"), calibration=WINDOWS)
