"""What cannot be quantized is refused by name, from the modules and tensors that a model has, and left as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import quamba
from quamba import QuambaError
from quamba.models.layer_stack import decoder_layers
from quamba.models.model_checks import check_float_model, check_placement
from quamba.weights.method import WeightMethod
from tests.tiny_hybrids import HYBRIDS
from tests.tiny_llama import tiny_llama
from tests.tiny_mamba2 import tiny_mamba2

WINDOWS = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(6))


def refused(model, message: str, **options) -> None:
    with pytest.raises(QuambaError, match=message):
        quamba.quantize(model, None, "w8a16", weights=WeightMethod("rtn"), progress=False, **options)


def offloaded(build, tmp_path, device: str):
    """A model whose second layer is offloaded, as `device_map` does where memory is short."""
    whole = build()
    whole.save_pretrained(tmp_path / "model")
    names = [name for name, _ in whole.base_model.named_children()]
    parts = {f"{whole.base_model_prefix}.{name}": "cpu" for name in names}
    layers = next(name for name, child in whole.base_model.named_children() if isinstance(child, nn.ModuleList))
    del parts[f"{whole.base_model_prefix}.{layers}"]
    parts |= {f"{whole.base_model_prefix}.{layers}.{i}": "cpu" for i in range(len(decoder_layers(whole)))}
    parts |= {f"{whole.base_model_prefix}.{layers}.1": device, "lm_head": "cpu"}
    return AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=tmp_path / "offloaded"
    )


@pytest.mark.parametrize("build", [tiny_llama, tiny_mamba2])
def test_offloaded_tensors_are_named(build, tmp_path):
    refused(offloaded(build, tmp_path, "disk"), r"layers\.1\..*weight has no data, .* load the model whole")


def test_a_tensor_on_the_meta_device_is_named():
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.to("meta")
    refused(model, r"^model\.layers\.1\.mlp\.up_proj\.weight has no data")


def test_several_devices_are_named(monkeypatch):
    model = tiny_llama()
    devices = {"model.norm.weight": torch.device("cuda:1")}
    named = [
        (name, type("Placed", (), {"device": devices.get(name, torch.device("cuda:0"))})())
        for name, _ in model.named_parameters()
    ]
    monkeypatch.setattr(model, "named_parameters", lambda: iter(named))
    monkeypatch.setattr(model, "named_buffers", lambda: iter(()))
    with pytest.raises(QuambaError, match=r"embed_tokens\.weight on cuda:0, model\.norm\.weight on cuda:1.*load it on"):
        check_placement(model)


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda model: torch.compile(model, backend="eager"), r"OptimizedModule .* model\._orig_mod"),
        (lambda model: nn.DataParallel(model), r"DataParallel .* model\.module"),
        (lambda model: model.model, "LlamaModel has no language-model head: .* AutoModelForCausalLM"),
        (lambda model: model.model.layers[0].mlp, "LlamaMLP cannot be quantized: it is no model of transformers"),
    ],
    ids=["compiled", "parallel", "backbone", "part"],
)
def test_what_is_no_causal_model_itself_is_refused(wrap, message):
    refused(wrap(tiny_llama()), message)


def shared_module(layers):
    layers[1] = layers[0]


def shared_parameter(layers):
    layers[2].get_submodule("self_attn.q_proj").weight = layers[0].get_submodule("self_attn.q_proj").weight


@pytest.mark.parametrize(("share", "other"), [(shared_module, 1), (shared_parameter, 2)])
def test_layers_that_share_weights_are_named(share, other):
    model = tiny_llama()
    share(model.model.layers)
    first, second = (rf"model\.layers\.{index}\.self_attn\.q_proj\.weight" for index in (0, other))
    refused(model, f"{first} and {second} are one tensor")


def adapter(model):
    """What peft makes of a linear layer: the layer itself, and matrices beside it."""
    layer = model.model.layers[0].mlp
    wrapped = nn.Module()
    wrapped.base_layer, wrapped.lora_A = layer.up_proj, nn.Linear(32, 2, bias=False)
    layer.up_proj = wrapped


def packed(model):
    """What quantizers of the GPTQ kind put in place of a linear layer: integers in buffers."""
    layer = model.model.layers[0].mlp
    layer.up_proj = nn.Module()
    layer.up_proj.register_buffer("qweight", torch.zeros(4, 40, dtype=torch.int32))
    model.config.quantization_config = {"quant_method": "gptq"}


def resized(model):
    model.model.embed_tokens = nn.Embedding(70, 32)


STRUCTURES = {
    "adapter": (adapter, r"unknown: .*up_proj\.base_layer\.weight.*missing: .*up_proj\.weight.*merge adapters"),
    "parametrized": (
        lambda model: parametrizations.weight_norm(model.model.layers[0].mlp.up_proj),
        r"unknown: .*up_proj\.parametrizations\.weight\.original0",
    ),
    "packed": (packed, r"unknown: .*up_proj\.qweight.*the config says that gptq quantized it"),
    "resized": (resized, r"of another shape: model\.embed_tokens\.weight \[70, 32\] instead of \[60, 32\]"),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_tensors_that_the_class_has_not_are_named(kind):
    change, message = STRUCTURES[kind]
    model = tiny_llama()
    change(model)
    refused(model, message)


def test_a_parametrized_mamba_is_refused():
    model = tiny_mamba2()
    parametrizations.weight_norm(model.backbone.layers[0].mixer.in_proj)
    refused(model, r"in_proj\.parametrizations")


def test_packed_weights_in_the_place_of_a_parameter_are_refused():
    model = tiny_llama()
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
    refused(model, r"up_proj\.weight is a Parameter of torch\.float8_e4m3fn, not a float tensor")


def test_a_class_that_needs_more_than_its_config_is_quantized():
    class Named(LlamaForCausalLM):
        def __init__(self, config, name):
            super().__init__(config)
            self.name = name

    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    model = Named(LlamaConfig(**sizes, num_attention_heads=4), "mine")
    quamba.quantize(model, None, "w8a16", weights=WeightMethod("rtn"), progress=False)
    assert model.quamba_calibration is None and not any(isinstance(m, nn.Linear) for m in model.model.modules())


@pytest.mark.parametrize("build", [tiny_llama, tiny_mamba2, *HYBRIDS.values()])
def test_a_float_model_passes_and_is_unchanged(build):
    model = build()
    state, random = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    check_float_model(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
