"""Quantizing changes the model that is given and nothing else of the caller's; a failure leaves that as it was too."""

import copy
import sys
import weakref

import pytest
import torch
from transformers import LlamaForCausalLM

import quamba
from quamba import QuambaError
from quamba.architectures import convert
from quamba.checkpoint import recipe_of
from quamba.models.layer_stack import decoder_layers, final_norm
from quamba.models.original import in_eval_mode, require_whole
from quamba.weights.method import WeightMethod
from tests.tiny_hybrids import tiny_bamba
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2

MODULE = sys.modules["quamba.pipeline.quantize"]  # the package has a function of that name
WINDOWS = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(6))
MODELS = {"mamba2": tiny_mamba2, "bamba": tiny_bamba, "llama": tiny_llama}


def quantize(model, method: str = "gptq", **options):
    """Every stage of a quantization: weights on text, scales where the model has a block for them."""
    given = {"scheme": "w4a16"} if isinstance(model, LlamaForCausalLM) else {"scheme": "w4a8", "calibration": WINDOWS}
    text = {"weight_text": WINDOWS} if method != "rtn" else {}
    weights = WeightMethod(method)
    return quamba.quantize(model, None, weights=weights, progress=False, **given | text | options)


def same_tensors(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def snapshot(model) -> tuple:
    """What a caller can see of a model."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: (id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    modules = {name: (id(module), type(module), module.training) for name, module in model.named_modules()}
    return state, parameters, modules, id(model.config), copy.deepcopy(model.config.to_dict())


def unchanged(before: tuple, model) -> bool:
    after = snapshot(model)
    return same_tensors(before[0], after[0]) and before[1:] == after[1:]


@pytest.fixture(params=MODELS)
def build(request):
    return MODELS[request.param]


# --- mode ---


@pytest.mark.parametrize("build", [tiny_llama, lambda **options: tiny_bamba(attn_layer_indices=[0], **options)])
def test_a_model_in_train_mode_is_calibrated_without_dropout(build):
    evaluated, trained = build(attention_dropout=0.5), build(attention_dropout=0.5).train()
    quantize(evaluated)
    quantize(trained)
    assert same_tensors(evaluated.state_dict(), trained.state_dict())
    assert trained.training and trained.base_model.training and not evaluated.training


def test_every_module_has_its_own_mode_again_after_an_error(build):
    model = build().train()
    model.get_input_embeddings().eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="mine"), in_eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("mine")
    assert [module.training for module in model.modules()] == modes


# --- configs ---


def test_another_model_of_the_same_config_stays_float(build):
    model = build()
    config, other = model.config, type(model)(model.config)
    before = copy.deepcopy(config.to_dict())
    quantize(model, quantize_lm_head=True)
    assert config.to_dict() == before
    assert recipe_of(other) is None and recipe_of(model) is not None
    assert model.config is model.base_model.config is not config
    assert model.generation_config is not other.generation_config


# --- torch's global state ---


@pytest.fixture(params=["bfloat16", "float64", "autocast", "inference_mode", "enable_grad"])
def switched_on(request):
    """Something of torch that a caller may have switched on, as a context."""

    class Default:
        def __init__(self, dtype):
            self.dtype = dtype

        def __enter__(self):
            torch.set_default_dtype(self.dtype)

        def __exit__(self, *_):
            torch.set_default_dtype(torch.float32)

    return {
        "bfloat16": lambda: Default(torch.bfloat16),
        "float64": lambda: Default(torch.float64),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference_mode": torch.inference_mode,
        "enable_grad": torch.enable_grad,
    }[request.param]()


def test_what_the_caller_has_switched_on_changes_nothing(build, switched_on):
    expected, model = quantize(build(), quantize_lm_head=True), build()
    with switched_on:
        quantize(model, quantize_lm_head=True)
    assert same_tensors(expected.state_dict(), model.state_dict())
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_a_model_of_inference_modes_tensors_is_quantized(build):
    with torch.inference_mode():
        model = build()
    assert same_tensors(quantize(model).state_dict(), quantize(build()).state_dict())


def test_random_numbers_and_threads_stay(build):
    model, windows = build(), WINDOWS.clone()
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    quantize(model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.equal(windows, WINDOWS)


def test_parameters_that_stay_keep_their_dtypes_and_flags(build):
    model = build().to(torch.bfloat16)
    norm = final_norm(model)
    norm.float().requires_grad_(True)
    quantize(model)
    kept = {parameter.dtype for parameter in model.parameters()}
    assert norm.weight.dtype == torch.float32 and norm.weight.requires_grad and torch.bfloat16 in kept


# --- failures ---


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_error_before_the_weights_change_leaves_the_model_as_it_was(build, dtype, monkeypatch):
    """At the last moment at which nothing is rewritten: mixers are replaced by then, parameters are float32."""
    model = build(dtype=dtype).train()
    before = snapshot(model)
    monkeypatch.setattr(MODULE, "require_finite_activations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(model)
    assert unchanged(before, model)
    monkeypatch.undo()
    quantize(model)


@pytest.mark.parametrize("stage", [(MODULE, "transform"), (convert, "convert"), (MODULE, "mark_quantized")])
def test_an_interruption_after_that_marks_the_model(stage, monkeypatch, tiny_tokenizer, tmp_path):
    model = tiny_mamba2()
    monkeypatch.setattr(*stage, interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(model)
    monkeypatch.undo()
    for use in (
        lambda: require_whole(model),
        lambda: quantize(model),
        lambda: quamba.save(model, tiny_tokenizer, tmp_path / "saved"),
        lambda: quamba.evaluate(model, tiny_tokenizer, progress=False),
    ):
        with pytest.raises(QuambaError, match="ended half-way and left its weights changed: load the model again"):
            use()
    assert not model.training


def test_activations_that_are_not_finite_are_named_before_anything_changes(build):
    model = build(dtype=torch.bfloat16)
    layer = model.base_model.layers[1]
    [module for module in layer.modules() if isinstance(module, torch.nn.Linear)][-1].weight.fill_(3e38)
    before = snapshot(model)
    scheme = "w8a16" if isinstance(model, LlamaForCausalLM) else "w8a8"
    with pytest.raises(QuambaError, match=r"^layers\.1 gives NaN or infinity on the calibration text"):
        quantize(model, scheme=scheme)
    assert unchanged(before, model)


@pytest.mark.parametrize("build", [tiny_llama, tiny_mamba2], ids=["llama", "mamba2"])
def test_float_weights_are_freed_as_they_are_replaced(build, monkeypatch):
    """Of a large model memory would else hold all floats beside all integers."""
    model = build()
    weights = [weakref.ref(module.weight) for layer in decoder_layers(model) for module in linears(layer)]
    alive = []

    def looking(*arguments):
        original(*arguments)
        alive.extend(weight for weight in weights if weight() is not None)

    original = convert.convert
    monkeypatch.setattr(convert, "convert", looking)
    quamba.quantize(model, None, "w8a16", progress=False)
    assert len(weights) > len(alive) == 0


def linears(layer) -> list[torch.nn.Linear]:
    return [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
