"""Which linear layers share an input, found by what they are called with."""

import pytest
import torch
from torch import nn

from quamba.architectures.convert import install_float_mixers
from quamba.architectures.linear_sites import find_sites, watching
from quamba.errors import QuambaError
from tests.tiny_llama import tiny_llama


def names(sites) -> list[tuple[str, ...]]:
    return [site.linears for site in sites]


def test_a_llama_layer_has_four_sites_and_two_of_them_alone_read_a_norm(tokens):
    sites = find_sites(tiny_llama(), tokens[0], float_activations=True)
    assert len(sites) == 3
    assert names(sites[1]) == [
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    ]
    assert [site.norm for site in sites[1]] == ["input_layernorm", None, "post_attention_layernorm", None]
    assert sites[1][2].name == "mlp.gate_proj+up_proj"


def test_the_input_scales_of_a_class_that_is_not_known_go_into_no_norm(tokens):
    class Unheard(type(tiny_llama())):
        pass

    model = tiny_llama()
    model.__class__ = Unheard
    assert all(site.norm is None for layer in find_sites(model, tokens[0], True) for site in layer)


@pytest.mark.parametrize("float_activations", [False, True])
def test_int8_inputs_of_a_mamba_with_one_scale_take_no_vector(tiny_mamba, tokens, float_activations):
    model = tiny_mamba()
    install_float_mixers(model)
    sites = {site.linears[0]: site.scalable for site in find_sites(model, tokens[0], float_activations)[0]}
    assert sites == {
        "mixer.in_proj": True,
        "mixer.x_proj": float_activations,
        "mixer.dt_proj": float_activations,
        "mixer.out_proj": True,
    }


@pytest.mark.parametrize("float_activations", [False, True])
def test_a_mamba2_has_two_sites_that_always_take_a_vector(tiny_mamba2, tokens, float_activations):
    """All rows of in_proj, z, x, B, C and dt, read one input."""
    model = tiny_mamba2()
    install_float_mixers(model)
    sites = find_sites(model, tokens[0], float_activations)[1]
    assert names(sites) == [("mixer.in_proj",), ("mixer.out_proj",)]
    assert all(site.scalable and site.norm is None for site in sites)


@torch.inference_mode()
def test_what_is_watched_is_the_input_of_the_linear_layers(tokens):
    model = tiny_llama()
    layer, sites = model.model.layers[0], find_sites(model, tokens[0], True)[0]
    seen, expected = {}, {}
    for site in sites:
        for name in site.linears:
            layer.get_submodule(name).register_forward_hook(
                lambda _m, args, _out, name=name: expected.__setitem__(name, args[0])
            )
    with watching(layer, sites, lambda site, x: seen.__setitem__(site, x)):
        model(tokens)
    for site in sites:
        assert all(torch.equal(seen[site], expected[name]) for name in site.linears)
    seen.clear()
    model(tokens)
    assert not seen


class Between(nn.Module):
    """An MLP whose second linear layer reads what the first one does, by name, after it was changed in place."""

    def __init__(self, mlp: nn.Module, changes: bool):
        super().__init__()
        self.first, self.second, self.changes = mlp.gate_proj, mlp.up_proj, changes

    def forward(self, x):
        one = self.first(x)
        if self.changes:
            x.add_(1)
        return (one + self.second(input=x)) @ torch.ones(one.shape[-1], x.shape[-1])


@pytest.mark.parametrize("changes", [False, True])
def test_a_tensor_that_is_changed_in_place_is_another_input(tokens, changes):
    model = tiny_llama()
    model.model.layers[1].mlp = Between(model.model.layers[1].mlp, changes)
    mlp = [site for site in find_sites(model, tokens[0], True)[1] if site.linears[0].startswith("mlp")]
    assert names(mlp) == ([("mlp.first",), ("mlp.second",)] if changes else [("mlp.first", "mlp.second")])
    seen = {}
    with watching(model.model.layers[1], mlp, lambda site, x: seen.__setitem__(site, x)), torch.no_grad():
        model(tokens)
    assert set(seen) == set(mlp)


def test_a_linear_layer_that_no_token_reaches_is_named(tokens):
    model = tiny_llama()
    model.model.layers[1].mlp.spare = nn.Linear(32, 4)
    with pytest.raises(QuambaError, match=r"layers\.1\.mlp\.spare was not reached"):
        find_sites(model, tokens[0], True)
