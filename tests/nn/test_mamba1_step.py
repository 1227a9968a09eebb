"""Arguments of the op over all Mamba blocks that do not fit. What it computes: test_step.py."""

import pytest
import torch

from quamba import ops
from tests.nn.steps import mixers, prefilled, quantized, states, step_of


@pytest.mark.parametrize("linear", ["x_proj", "dt_proj"])
@torch.inference_mode()
def test_int8_inputs_with_one_scale_take_no_multiplier(tiny_mamba, tokens, linear):
    model = quantized(tiny_mamba(), "w8a8")
    cache = prefilled(model, tokens)
    layer = getattr(mixers(model)[1], linear)
    layer.input_multiplier = torch.rand(layer.in_features) + 0.5
    with pytest.raises(ValueError, match="int8 inputs of x_proj and dt_proj"):
        step_of(model)(torch.randn(len(tokens), 32), *states(cache))


@torch.inference_mode()
def test_misfitting_arguments_are_refused_by_name(tiny_mamba, tokens):
    model = quantized(tiny_mamba(), "w8a8")
    step, (conv, ssm) = step_of(model), states(prefilled(model, tokens))
    hidden = torch.randn(2, 32)

    def run(hidden=hidden, tensors=step.tensors, conv=conv, ssm=ssm):
        ops.mamba1_step(hidden, tensors, conv, ssm, step.base, *step.sizes, step.dynamic, None, [], None)

    with pytest.raises(ValueError, match="tensors for each of the 1 conv_states"):
        run(conv=conv[:1])
    with pytest.raises(ValueError, match="in_proj must have shape"):
        run(hidden=torch.randn(2, 24))
    with pytest.raises(ValueError, match="ssm_state must have shape"):
        run(ssm=[state[:1] for state in ssm])
    with pytest.raises(ValueError, match="conv_state must be"):
        run(conv=[state.float() for state in conv])
    with pytest.raises(ValueError, match="every layer needs its scales"):
        taps = len(step.tensors) - 3
        run(tensors=[*step.tensors[:taps], None, *step.tensors[taps + 1 :]])
    run()
