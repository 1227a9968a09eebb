"""Decoder layers of many families, run some at a time: each batch as in the model's own forward pass."""

import logging

import pytest
import torch
from torch import nn

from quamba.errors import QuambaError
from quamba.models.layer_stack import LayerStack, decoder_layers, hidden_of, post_hooks, pre_hooks, run_to_head
from tests.tiny_causal_lms import VOCAB, tiny_causal_lm
from tests.tiny_llama import tiny_llama

WINDOWS = torch.randint(3, VOCAB, (3, 16), generator=torch.Generator().manual_seed(0))
# called with positions, masks of one kind or two, ALiBi of the batch, arguments by position; recurrences
CARRIED = "llama qwen3 gemma2 gemma3_text gpt2 gpt_neo gpt_neox gpt_bigcode bloom xglm opt falcon phi mpt bamba mamba "
CARRIED += "mamba2 olmo2 gemma3 bart"
SHARED = "gemma3n_text gemma4_text gemma4_unified_text hy_v4"  # keys and values, or residual streams, of other layers


class Seen:
    """What the layers of a model give, and what its head reads, in one pass of its own."""

    def __init__(self, model, windows):
        self.layers = []
        with post_hooks(decoder_layers(model), lambda _m, _args, out: self.layers.append(hidden_of(out).clone())):
            self.head = run_to_head(model, windows)


def linears_of(layer) -> list[nn.Module]:
    return [module for module in layer.modules() if isinstance(module, nn.Linear)]


def inputs_of(layers, run) -> dict[nn.Module, list[torch.Tensor]]:
    """What every linear layer of some layers is called with while `run` runs."""
    inputs: dict = {}
    linears = [linear for layer in layers for linear in linears_of(layer)]
    with pre_hooks(linears, lambda linear, args, _kwargs: inputs.setdefault(linear, []).append(args[0])):
        run()
    return inputs


def by_layers(model, windows, size=1) -> tuple[list, torch.Tensor]:
    """(what comes behind every `size` layers, what the head reads)."""
    stack, state, states = LayerStack(model, WINDOWS[2]), None, []
    for first in range(0, len(stack.layers), size):
        state = stack.run(windows, range(first, min(first + size, len(stack.layers))), state)
        states.append(state)
    return states, stack.head_input(windows, state)


@pytest.mark.parametrize("model_type", CARRIED.split())
def test_layer_by_layer_every_batch_is_as_in_the_whole_model(model_type):
    """In batches of one, two and three windows, none of which need be those that the stack was made with."""
    model = tiny_causal_lm(model_type)
    assert LayerStack(model, WINDOWS[2]).carries
    for count in (1, 2, 3):
        expected = Seen(model, WINDOWS[:count])
        states, head = by_layers(model, WINDOWS[:count])
        assert len(states) == len(expected.layers)
        for state, other in zip([*states, head], [*expected.layers, expected.head], strict=True):
            torch.testing.assert_close(state, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", SHARED.split())
def test_layers_that_share_more_than_hidden_states_see_their_own_batchs(model_type, caplog):
    """Nothing is carried: what a layer is called with, the shared keys and values too, is that of the whole pass."""
    model = tiny_causal_lm(model_type)
    with caplog.at_level(logging.INFO, logger="quamba"):
        stack = LayerStack(model, WINDOWS[2])
    assert not stack.carries and "share more than hidden states" in caplog.text
    for count in (1, 2, 3):
        windows = WINDOWS[:count]
        whole = inputs_of(stack.layers, lambda windows=windows: run_to_head(model, windows))
        for index in range(len(stack.layers)):
            chosen = range(index, index + 1)
            own = inputs_of(stack.layers, lambda chosen=chosen, windows=windows: stack.run(windows, chosen, None))
            for linear in linears_of(stack.layers[index]):
                torch.testing.assert_close(own[linear], whole[linear], rtol=1e-4, atol=1e-5)
        assert stack.run(windows, range(1), None) is None
        torch.testing.assert_close(stack.head_input(windows, None), run_to_head(model, windows), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_several_layers_at_a_time_are_the_whole_model_too():
    model = tiny_llama(vocab_size=VOCAB)
    expected = Seen(model, WINDOWS)
    states, head = by_layers(model, WINDOWS, size=2)
    torch.testing.assert_close(states, [expected.layers[1], expected.layers[2]])
    torch.testing.assert_close(head, expected.head)
    torch.testing.assert_close(head, model.base_model(WINDOWS).last_hidden_state)


def test_layers_that_are_passed_over_do_not_run_and_their_state_stays(tokens):
    model = tiny_llama()
    stack = LayerStack(model, tokens[0])
    state = stack.run(tokens, range(0, 2), None)
    before, ran = state.clone(), []
    with pre_hooks([layer.mlp for layer in stack.layers], lambda mlp, _args, _kwargs: ran.append(mlp)):
        stack.run(tokens, range(2, 3), state)
    assert ran == [stack.layers[2].mlp]
    assert torch.equal(state, before)


def test_no_hook_and_no_stub_stays(tokens):
    model = tiny_llama()
    stack = LayerStack(model, tokens[0])
    stack.run(tokens, range(1, 2), stack.run(tokens, range(1), None))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


class Remembering(nn.Module):
    """A layer whose first pass leaves something that later layers add, in the module and not in an argument."""

    def __init__(self, layer: nn.Module, memory: dict, writes: bool):
        super().__init__()
        self.layer, self.memory, self.writes = layer, memory, writes

    def forward(self, hidden_states, **kwargs):
        if self.writes:
            self.memory["left"] = hidden_states.mean(dim=-1, keepdim=True)
        return self.layer(hidden_states, **kwargs) + self.memory["left"]


def test_what_a_module_keeps_of_another_window_is_not_taken_for_this_ones(tokens):
    model, memory = tiny_llama(), {}
    for index, layer in enumerate(model.model.layers):
        model.model.layers[index] = Remembering(layer, memory, writes=index == 0)
    assert not LayerStack(model, tokens[0]).carries


def test_the_models_own_failure_is_one_error():
    model = tiny_causal_lm("gpt_neo")
    with pytest.raises(QuambaError, match="GPTNeoForCausalLM cannot be run on windows of 80 tokens: IndexError: "):
        LayerStack(model, torch.zeros(80, dtype=torch.int64))


@pytest.mark.parametrize("model_type", ["gemma3", "gemma4", "got_ocr2"])
def test_the_layers_of_a_model_that_reads_images_are_those_of_its_text_decoder(model_type):
    model = tiny_causal_lm(model_type)
    assert len(decoder_layers(model)) == model.config.text_config.num_hidden_layers
    assert decoder_layers(model) is model.base_model.language_model.layers


def test_another_list_of_as_many_modules_is_not_taken_for_the_layers():
    """Gemma 3n has a list of one projection less than its inputs are, here as many as layers."""
    types = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    model = tiny_causal_lm("gemma3n_text", num_hidden_layers=3, num_kv_shared_layers=0, **types)
    assert len(model.model.altup_projections) == 3
    assert decoder_layers(model) is model.model.layers


def test_a_model_without_one_list_of_layers_is_refused():
    with pytest.raises(QuambaError, match="XLMWithLMHeadModel cannot be quantized: its backbone has 4 lists of 3"):
        decoder_layers(tiny_causal_lm("xlm"))
