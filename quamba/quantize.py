"""The only orchestrator: transforms -> calibration -> conversion, in that order."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import convert
from .activations import ActivationRecorder
from .calibration import CalibrationResult, CalibrationText, calibrate, check_windows, default_text, model_fingerprint
from .checkpoint.quantized import mark_quantized, recipe_of
from .errors import QuambaError
from .hadamard import hadamard_base
from .scheme import QuantizationRecipe, get_scheme
from .tap_observers import check_observer_options, parse_observers
from .transforms import fuse_final_norm, fuse_norm, rotate_out_proj
from .transforms import rotate_residual as rotate_residual_stream


def quantize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scheme: str = "w8a8",
    observer: str | Mapping[str, str] | None = None,
    calibration: CalibrationText | CalibrationResult | Tensor | None = None,
    *,
    observer_options: Mapping[str, Mapping] | None = None,
    quantize_embedding: bool = False,
    quantize_lm_head: bool = False,
    rotate_residual: bool = False,
    save_activations: str | Path | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Quantizes a float Mamba in place and returns it; what calibration found is at `model.quamba_calibration`.

    `observer`: a name (for tap x) or tap -> name, see `calibration.parse_observers`; taps without one keep their own
    default; None: all of them do, or what an earlier result used. `observer_options`: observer name -> constructor
    arguments. `calibration`: which text to run (None: the embedded one for an embedded model, else the default of
    `CalibrationText`), windows of token ids int64 [count, seqlen], or an earlier result to reuse. `save_activations`:
    the folder that the first batch and a histogram of every tap are written to, see `activations`.
    Source: Quamba, arXiv 2410.13229. Raises QuambaError for a model, scheme, text or option that does not fit, before
    the model is changed; and for NaN or infinity in the activations, which leaves it transformed: load it again then.
    """
    if recipe_of(model) is not None:
        raise QuambaError("the model is quantized already: quantize the float model it was made from")
    recipe = _recipe(model, scheme, quantize_embedding, quantize_lm_head, rotate_residual)
    observers = parse_observers(observer or None, head=quantize_lm_head)
    options = {name: dict(arguments) for name, arguments in (observer_options or {}).items()}
    check_observer_options(observers, options, recipe.scheme.act.bits)
    convert.install_float_mixers(model)
    if rotate_residual:
        hadamard_base(model.config.hidden_size)
    fingerprint = f"{model_fingerprint(model)}{'-rotated' if rotate_residual else ''}"
    result = calibration if isinstance(calibration, CalibrationResult) else None
    recorder = None
    if result:
        if save_activations is not None:
            raise QuambaError("save_activations needs a calibration run, and an earlier result is reused: drop one")
        asked_for = (observers, options) if observer or options else (None, None)
        result.check_fits(
            fingerprint, set(convert.tap_modules(model, quantize_lm_head)), recipe.scheme.act.bits, *asked_for
        )
    else:
        windows, text = _read_windows(calibration, model, tokenizer)
        if save_activations is not None:
            recorder = ActivationRecorder(save_activations, Path(model.config.name_or_path).name)
    dtype = model.dtype
    model.float()  # weights are fused, rotated and rounded in float32 whatever they are stored in
    transform(model, rotate_residual)
    if not result:
        result = calibrate(
            model,
            windows,
            observers,
            fingerprint=fingerprint,
            n_bits=recipe.scheme.act.bits,
            head=quantize_lm_head,
            options=options,
            text=text,
            batch_size=(text or CalibrationText()).batch_size,
            recorder=recorder,
            progress=progress,
        )
    convert.convert(model, recipe, result.scales())
    model.to(dtype)
    mark_quantized(model, recipe)
    model.quamba_calibration = result
    return model


def _recipe(
    model: PreTrainedModel, scheme: str, quantize_embedding: bool, quantize_lm_head: bool, rotate_residual: bool
) -> QuantizationRecipe:
    shared = model.config.tie_word_embeddings and not rotate_residual  # a rotation unties head and embedding
    return QuantizationRecipe(
        scheme=get_scheme(scheme),
        quantize_embedding=quantize_embedding,
        quantize_lm_head=quantize_lm_head,
        tied_head=quantize_embedding and quantize_lm_head and shared,
        rotate_residual=rotate_residual,
    )


def _read_windows(
    calibration: CalibrationText | Tensor | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, CalibrationText | None]:
    """(token ids int64 [count, seqlen], the text they are from or None where they were given)."""
    if isinstance(calibration, Tensor):
        windows, text = calibration, None
    else:
        text = default_text(model) if calibration is None else calibration
        if not isinstance(text, CalibrationText):
            kinds = "a CalibrationText, a CalibrationResult or a tensor of token ids"
            raise QuambaError(f"calibration must be {kinds}, not {calibration!r}")
        windows = text.windows(tokenizer)
    check_windows(windows, model.config.vocab_size)
    return windows, text


@torch.no_grad()
def transform(model: PreTrainedModel, rotate_residual: bool) -> None:
    """The float-equivalent rewrites that the quantized block relies on: same logits, easier activations."""
    fuse_norm(model)
    if rotate_residual:
        fuse_final_norm(model)
        rotate_residual_stream(model)
    rotate_out_proj(model)
