"""Whether the tensors of a model hold values that mean anything: no NaN, no infinity, scales that are scales.

Each tensor is read once, without a copy of it, and named as `state_dict` names it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import QuambaError
from ..nn.module import QuantModule
from ..numerics import integer_range

A_LOG_LIMIT = math.log(torch.finfo(torch.float32).max)  # A = -exp(A_log) is infinite beyond
POSITIVE = ("_scale", "input_multiplier", "input_multipliers")  # how the buffers end that a quantized module divides by
SHOWN = 4  # tensors that a message names


def check_tensors(model: nn.Module, where: str, remedy: str) -> None:
    """Raises QuambaError naming every tensor of a model, float or quantized, whose values mean nothing.

    NaN and infinity; A_log whose exponential is infinite; scales and multipliers that are not above 0, zero points
    beyond their integers, positive A. Tensors without data, on the meta device, are left out. `where` begins the
    message, `remedy` ends it.
    """
    _report(unfit_tensors(model), where, remedy)


def check_finite(tensors: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raises QuambaError naming those of some tensors that hold NaN or infinity; `where`, `remedy`: as above."""
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    _report(((name, fault) for name, tensor in floats.items() if (fault := not_finite(tensor))), where, remedy)


def _report(unfit: Iterable[tuple[str, str]], where: str, remedy: str) -> None:
    faults = [f"{name} holds {fault}" for name, fault in unfit]
    if faults:
        others = f" and {len(faults) - SHOWN} other tensors are unfit" if len(faults) > SHOWN else ""
        raise QuambaError(f"{where}: {', '.join(faults[:SHOWN])}{others}: {remedy}")


def unfit_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yields (name, what is wrong) of the tensors that `check_tensors` refuses; a shared one by its first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        own: dict[str, Tensor] = {}
        module._save_to_state_dict(own, "", keep_vars=True)  # of this module alone, laid out as files hold them
        for name, tensor in own.items():
            if not isinstance(tensor, Tensor) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if fault := fault_of(module, name, tensor.detach()):
                yield f"{prefix}.{name}" if prefix else name, fault


def fault_of(module: nn.Module, name: str, tensor: Tensor) -> str | None:
    """Return what is wrong with the values of a module's tensor of that name, for a message; None: nothing."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return None
    quantized = isinstance(module, QuantModule)
    if quantized and name == "weight_zero":
        largest = integer_range(module.spec.bits, symmetric=False)[1]
        return f"the zero point {int(tensor.max())}, beyond {largest}" if int(tensor.max()) > largest else None
    if not tensor.is_floating_point():
        return None
    if fault := not_finite(tensor):
        return fault
    low, high = extremes(tensor)
    if name == "A_log" and high > A_LOG_LIMIT:
        return f"{high:g}, whose exponential is infinite"
    if quantized and name.endswith(POSITIVE) and low <= 0:
        return f"the scale {low:g}"
    if quantized and name == "A" and high > 0:
        return f"{high:g}, where only negative values let a state decay"
    return None


def not_finite(tensor: Tensor) -> str | None:
    """`NaN` or `infinity` where a float tensor holds that, else None."""
    low, high = extremes(tensor)
    if math.isnan(low):
        return "NaN"
    return None if math.isfinite(low) and math.isfinite(high) else "infinity"


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN both where there is one."""
    low, high = torch.aminmax(tensor)
    return float(low), float(high)
