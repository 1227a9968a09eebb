"""Models on a GPU, without one: fake tensors have a device and no values, so whatever mixes devices or waits for values
on the host raises. Dims: B sequences, L tokens, V vocabulary."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel

from quamba import ops
from quamba.architectures.convert import install_float_mixers
from quamba.hadamard import base_on
from quamba.nn.placement import place_weights
from quamba.ops.composed import COMPOSED
from tests.nn.steps import INT8_STATES, quantized, states, step_of
from tests.scheme_variants import TABLES, VARIANTS
from tests.tiny_falcon_mamba import tiny_falcon_mamba

FAMILIES = ["mamba", "falcon_mamba", "mamba2"]
CASES = [(family, variant) for family in FAMILIES for variant in VARIANTS]
CASES += [("mamba2", variant) for variant in INT8_STATES]
DEVICE = torch.device("cuda", 0)


class OnDevice(TorchDispatchMode):
    """Every tensor that an op of ours takes and gives is on DEVICE; fakes of custom ops do not look at devices."""

    def __init__(self):
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        if func.namespace == "quamba":
            self.seen.add(func._opname)
            for tensor in tree_leaves((args, kwargs, result)):
                assert not isinstance(tensor, torch.Tensor) or tensor.device == DEVICE, func
        return result


# What Tensor's own methods do, but without the device guard that they ask for and a torch without CUDA has not.


def copy_(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return torch.ops.aten.copy_(tensor, source, non_blocking)


def contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def indexed(tensor: torch.Tensor, index) -> torch.Tensor:
    """tensor[index] of numbers, slices, None and an ellipsis."""
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index[at : at + 1] = [slice(None)] * (tensor.dim() - sum(entry is not None for entry in index) + 1)
    dim = 0
    for entry in index:
        if isinstance(entry, slice):
            tensor = torch.ops.aten.slice(tensor, dim, entry.start, entry.stop, entry.step or 1)
        else:
            tensor = tensor.unsqueeze(dim) if entry is None else tensor.select(dim, entry)
        dim += entry is None or isinstance(entry, slice)
    return tensor


@pytest.fixture
def gpu() -> Iterator[OnDevice]:
    """Tensors made within the test are fakes, and steps are composed of their ops, as on a GPU."""
    base_on.cache_clear()  # it keeps tensors by their device
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for name, op in COMPOSED.items():
            patch.setattr(ops, name, partial(op, torch.ops.quamba))
        if not torch.cuda.is_available():
            patch.setattr(torch.Tensor, "contiguous", contiguous)
            patch.setattr(torch.Tensor, "copy_", copy_)
            patch.setattr(torch.Tensor, "__getitem__", indexed)
        with FakeTensorMode(allow_non_fake_inputs=False), OnDevice() as watch:
            yield watch
    base_on.cache_clear()


@pytest.fixture
def build(tiny_mamba, tiny_mamba2):
    builders = {"mamba": tiny_mamba, "falcon_mamba": tiny_falcon_mamba, "mamba2": tiny_mamba2}
    return lambda family, **options: builders[family](**options)


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """The model's tensors as fakes on DEVICE; what modules share stays shared."""
    copies: dict[int, torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        return copies.setdefault(id(tensor), torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE))

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(copy(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else copy(buffer)
    return model


def prefill(model: PreTrainedModel) -> tuple[torch.Tensor, DynamicCache]:
    """Logits [B, L, V] of a prompt, and the cache that it leaves."""
    cache = DynamicCache(config=model.config)
    ids = torch.zeros(2, 5, dtype=torch.int64, device=DEVICE)
    return model(ids, cache_params=cache, use_cache=True).logits, cache


@pytest.mark.parametrize("tables", ["float", "both 8", "both 4"])
@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_quantized_model_stays_on_its_device(build, request, family, variant, tables):
    model = quantized(build(family), variant, **TABLES[tables])
    gpu = request.getfixturevalue("gpu")  # from here on tensors are fakes
    place_weights(moved(model))
    logits, cache = prefill(model)
    assert logits.device == DEVICE
    step = step_of(model)
    assert bool(step.head) == (tables != "float")
    hidden = model.backbone.embeddings(torch.zeros(2, dtype=torch.int64, device=DEVICE)).float()
    gpu.seen.clear()
    logits = step(hidden, *states(cache))
    assert logits is None or (logits.device, logits.shape) == (DEVICE, (2, 96))
    assert {"rms_norm", "hadamard"} & {name.removesuffix("_quant") for name in gpu.seen}
    assert len(gpu.seen) >= 5  # the composition ran, not the fake of the whole step


@pytest.mark.parametrize(
    ("family", "variant", "launches"),
    [
        ("mamba", "w8a8", {"hadamard_quant"}),
        ("mamba2", "w8a8", {"gated_hadamard_quant"}),
        ("mamba2", "w8a8 dynamic", {"gated_rms_norm", "hadamard"}),
        ("mamba2", "w4a16", {"gated_rms_norm", "hadamard"}),
    ],
)
def test_one_launch_stands_between_scan_and_out_proj_where_the_scale_is_static(
    build, request, family, variant, launches
):
    model = quantized(build(family), variant)
    gpu = request.getfixturevalue("gpu")
    place_weights(moved(model))
    _, cache = prefill(model)
    of_prefill = {name for name in gpu.seen if "gated" in name or "hadamard" in name}
    gpu.seen.clear()
    step_of(model)(model.backbone.embeddings(torch.zeros(2, dtype=torch.int64, device=DEVICE)).float(), *states(cache))
    of_step = {name for name in gpu.seen if "gated" in name or "hadamard" in name}
    assert of_prefill == of_step == launches


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float_model_on_our_mixers_stays_on_its_device(build, request, family):
    model = build(family)
    install_float_mixers(model)
    gpu = request.getfixturevalue("gpu")
    moved(model)
    logits, cache = prefill(model)
    assert logits.device == DEVICE
    step = model(torch.zeros(2, 1, dtype=torch.int64, device=DEVICE), cache_params=cache, use_cache=True).logits
    assert step.device == DEVICE
    assert gpu.seen & {"selective_scan", "ssd_scan"}


def test_a_tensor_left_on_the_host_is_found(build, request):
    model = quantized(build("mamba"), "w8a8")
    request.getfixturevalue("gpu")
    moved(model)
    mixer = model.backbone.layers[0].mixer
    mixer.D = torch.empty(mixer.D.shape)
    with pytest.raises(AssertionError, match="selective_scan"):
        prefill(model)
