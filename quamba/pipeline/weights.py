"""The weight stage of a quantization, checked before anything slow runs: text, method, and where progress is kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.anatomy import Anatomy
from ..calibration.run import CalibrationResult, CalibrationText, default_text, read_windows
from ..errors import QuambaError
from ..scheme.formats import TensorSpec
from ..scheme.recipe import QuantizationRecipe
from ..weights.method import WeightMethod, effective_weight
from .layerwise import Layer, RoundedModel, round_weights
from .resume import ResumeFolder

WINDOWS = 128  # of calibration text, where the user gives no number


@dataclass
class WeightRun:
    """A rounding of all weights that was checked. `windows`: int64 [C, L]; `folder`: None where nothing is kept."""

    windows: Tensor
    method: WeightMethod
    recipe: QuantizationRecipe
    batch_size: int
    folder: ResumeFolder | None

    @property
    def identity(self) -> dict:
        """Return what decides the integers, beside the model: plain data."""
        windows = self.windows.cpu().to(torch.int64).contiguous()
        digest = hashlib.sha256(windows.numpy()).hexdigest()
        return {
            "method": asdict(self.method),
            "weights": [asdict(scheme.weight) for scheme in self.recipe.layers or (self.recipe.scheme,)],
            "head": asdict(self.head) if self.head else None,
            "float activations": not self.recipe.quantizes_activations,
            "rotated residual": self.recipe.rotate_residual,
            "calibration text": [list(windows.shape), digest],
            "batch size": self.batch_size,
        }

    @property
    def head(self) -> TensorSpec | None:
        """The format of a head of its own; one that shares the embedding's table is rounded with that, to nearest."""
        recipe = self.recipe
        return None if recipe.lm_head_bits is None or recipe.tied_head else recipe.table(recipe.lm_head_bits)

    def fingerprint(self) -> str:
        """A short hash of `identity`."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    def keep_progress(self, folder: ResumeFolder, model_fingerprint: str) -> None:
        """Finished layers go to `folder`, which the caller holds. Raises QuambaError as its `start`."""
        folder.start({"model": model_fingerprint, **self.identity})
        self.folder = folder

    def run(self, model: PreTrainedModel, progress: bool) -> RoundedModel:
        """The integers of a transformed model, whose weights become what they stand for."""
        return round_weights(
            model,
            self.windows,
            [scheme.weight for scheme in self.recipe.layers] or self.recipe.scheme.weight,
            self.method,
            float_activations=not self.recipe.quantizes_activations,
            head=self.head,
            batch_size=self.batch_size,
            folder=self.folder,
            progress=progress,
        )


def plan_weight_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: QuantizationRecipe,
    method: WeightMethod,
    text: CalibrationText | Tensor | None,
    calibration: CalibrationText | CalibrationResult | Tensor | None,
) -> WeightRun | None:
    """The checked rounding of the weights, None of one that looks at no activations."""
    if not method.calibrated:
        if text is not None:
            raise QuambaError(f"weight_text does nothing with the weight method {method.describe()!r}: drop it")
        return None
    if text is None and isinstance(calibration, Tensor):
        text = calibration[:WINDOWS]
    elif text is None:
        text = calibration if isinstance(calibration, CalibrationText) else default_text(model)
        text = replace(text, data_num=min(text.data_num, WINDOWS), sampling="slices")
    windows, described = read_windows(text, model, tokenizer)
    return WeightRun(windows, method, recipe, (described or CalibrationText()).batch_size, folder=None)


@torch.no_grad()
def expect_input_scales(model: PreTrainedModel, layers: Sequence[Layer], recipe: QuantizationRecipe) -> None:
    """Divides the activations of a float model's Mamba blocks by the input scales that their weights were rounded for.

    Before a calibration. in_proj's go into the norm, whose weight is ones; out_proj's stand behind the Hadamard
    rotation. Other linear layers of a block have none with int8 activations. Logits stay. Raises QuambaError for input
    scales elsewhere.
    """
    for slot in Anatomy.of(model).slots:
        group_size = recipe.layer_scheme(slot.index).weight.group_size
        for name, integers in layers[slot.index].items():
            within = slot.within(name)
            if within is None or integers.input_scales is None:
                continue
            inverse = integers.input_scales.reciprocal()
            if within == "in_proj":
                slot.norm.weight.copy_(inverse)
            elif within == "out_proj":
                slot.mixer.out_multiplier = inverse
            else:
                raise QuambaError(
                    f"layers.{slot.index}.{name} has an int8 input with one scale, which takes no input scales"
                )
            weight = slot.mixer.get_submodule(within).weight
            weight.copy_(effective_weight(integers, group_size) * integers.input_scales)
