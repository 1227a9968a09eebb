"""The only orchestrator: transforms -> calibration -> conversion, in that order."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import convert
from .calibration import (
    CalibrationResult,
    CalibrationText,
    calibrate,
    default_text,
    model_fingerprint,
    parse_observers,
)
from .checkpoint.quantized import mark_quantized, recipe_of
from .errors import QuambaError
from .scheme import QuantizationRecipe, get_scheme
from .transforms import fuse_final_norm, fuse_norm, rotate_out_proj
from .transforms import rotate_residual as rotate_residual_stream

DEFAULT_OBSERVER = "percentile"


def quantize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scheme: str = "w8a8",
    observer: str | Mapping[str, str] = DEFAULT_OBSERVER,
    calibration: CalibrationText | CalibrationResult | Tensor | None = None,
    *,
    observer_options: Mapping[str, Mapping] | None = None,
    quantize_embedding: bool = False,
    quantize_lm_head: bool = False,
    rotate_residual: bool = False,
    progress: bool = True,
) -> PreTrainedModel:
    """Quantizes a float Mamba in place and returns it; what calibration found is at `model.quamba_calibration`.

    `observer`: a name (for tap x, the others take min-max) or tap -> name, see `calibration.parse_observers`;
    `observer_options`: observer name -> constructor arguments. `calibration`: which text to run (None: the embedded
    one for an embedded model, else the default of `CalibrationText`), windows of token ids int64 [count, seqlen], or
    an earlier result to reuse.
    Source: Quamba, arXiv 2410.13229. Raises QuambaError for a model, scheme or option that does not fit.
    """
    recipe = QuantizationRecipe(
        scheme=get_scheme(scheme),
        quantize_embedding=quantize_embedding,
        quantize_lm_head=quantize_lm_head,
        tied_head=quantize_embedding and quantize_lm_head and model.config.tie_word_embeddings and not rotate_residual,
        rotate_residual=rotate_residual,
    )
    if recipe_of(model) is not None:
        raise QuambaError("the model is quantized already: quantize the float model it was made from")
    observers = parse_observers(observer)
    convert.install_float_mixers(model)
    dtype = model.dtype
    model.float()  # weights are fused, rotated and rounded in float32 whatever they are stored in
    fingerprint = f"{model_fingerprint(model)}{'-rotated' if rotate_residual else ''}"
    transform(model, rotate_residual)
    if isinstance(calibration, CalibrationResult):
        calibration.check_fits(fingerprint, set(convert.tap_modules(model, quantize_lm_head)))
        result = calibration
    else:
        windows, batch_size = calibration, 8
        if not isinstance(windows, Tensor):
            text = calibration or default_text(model)
            windows, batch_size = text.windows(tokenizer), text.batch_size
        result = calibrate(
            model,
            windows,
            observers,
            batch_size=batch_size,
            fingerprint=fingerprint,
            n_bits=recipe.scheme.act.bits,
            head=quantize_lm_head,
            options={name: dict(options) for name, options in (observer_options or {}).items()},
            progress=progress,
        )
    convert.convert(model, recipe, result.scales())
    model.to(dtype)
    mark_quantized(model, recipe)
    model.quamba_calibration = result
    return model


@torch.no_grad()
def transform(model: PreTrainedModel, rotate_residual: bool) -> None:
    """The float-equivalent rewrites that the quantized block relies on: same logits, easier activations."""
    fuse_norm(model)
    if rotate_residual:
        fuse_final_norm(model)
        rotate_residual_stream(model)
    rotate_out_proj(model)
