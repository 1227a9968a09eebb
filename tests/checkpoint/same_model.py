"""Whether two models are one."""

import torch


@torch.inference_mode()
def assert_same_model(actual, expected, tokens) -> None:
    """The same tensors, and the same logits, up to what a BLAS makes of where in memory a float model's tensors lie."""
    theirs = expected.state_dict()
    assert actual.state_dict().keys() == theirs.keys()
    for name, tensor in actual.state_dict().items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    torch.testing.assert_close(actual(tokens).logits, expected(tokens).logits, rtol=1e-5, atol=1e-5)
