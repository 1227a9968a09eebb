"""Arguments of the op over all Mamba2 blocks that do not fit. What it computes: test_step.py."""

import pytest
import torch

from quamba import ops
from tests.nn.steps import prefilled, quantized, states, step_of


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": torch.randn(2, 24)}, "in_proj must have shape"),
        ({"conv_states": lambda states: states[:1]}, "tensors for each of the 1 conv_states"),
        ({"conv_states": lambda states: [state.float() for state in states]}, "conv_state must be"),
        ({"ssm_states": lambda states: [states[0], states[1][:1]]}, "ssm_state must have shape"),
        ({"ssm_states": lambda states: [state.char() for state in states]}, "ssm_state must be"),
        ({"groups": 3}, "4 heads do not split into 3 groups"),
        ({"dt_limits": (1.0, 0.5)}, "dt_min 1 is over dt_max 0.5"),
        ({"group_sizes": [0]}, "group_sizes must be one of each layer"),
        ({"tensor": "tap_scales"}, "every layer needs its scales"),
        ({"tensor": "dt_bias"}, "a layer lacks A, D or dt_bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
@torch.inference_mode()
def test_misfitting_arguments_are_refused_by_name(tiny_mamba2, tokens, changed, message):
    model = quantized(tiny_mamba2(), "w8a8")
    step, (conv, ssm) = step_of(model), states(prefilled(model, tokens))
    tensors, (groups, eps, *limits, group_sizes) = list(step.tensors), step.sizes
    if "tensor" in changed:  # the last layer's
        names = ops.schemas.MAMBA2_STEP_TENSORS
        tensors[names.index(changed["tensor"]) - len(names)] = None
    conv, ssm = (changed.get(name, list)(value) for name, value in (("conv_states", conv), ("ssm_states", ssm)))
    sizes = (changed.get("groups", groups), eps, *changed.get("dt_limits", limits))
    arguments = (tensors, conv, ssm, step.base, *sizes, changed.get("group_sizes", group_sizes), False, None, [], None)
    with pytest.raises(ValueError, match=message):
        ops.mamba2_step(changed.get("hidden", torch.randn(2, 32)), *arguments)
