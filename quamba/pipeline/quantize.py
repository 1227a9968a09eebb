"""The only orchestrator: transforms -> weights -> calibration -> conversion, in that order."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..architectures import convert
from ..architectures.anatomy import Anatomy
from ..calibration.channel_groups import ChannelGroups
from ..calibration.run import CalibrationResult, CalibrationText, model_fingerprint
from ..checkpoint.quantized import mark_quantized, recipe_of
from ..errors import QuambaError
from ..models.model_checks import check_float_model, check_float_tensors, require_finite_activations
from ..models.original import Original, in_eval_mode, own_configs, plain_computation, put_back_on_error
from ..models.tensor_checks import check_tensors
from ..models.tying import is_one_table
from ..models.weight_ranges import check_weight_ranges
from ..nn.placement import align_floats
from ..scheme.recipe import QuantizationRecipe, create_recipe
from ..scheme.simulation import simulation_of
from ..transforms import ChannelOrder
from ..weights.method import DEFAULT_METHODS, WeightMethod
from .resume import ResumeFolder
from .scales import CalibrationRun, channel_order_key, check_scale_arguments, scale_source
from .transform import transform
from .weights import WeightRun, expect_input_scales, plan_weight_run


def quantize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    scheme: str = "w8a8",
    observer: str | Mapping[str, str] | None = None,
    calibration: CalibrationText | CalibrationResult | Tensor | None = None,
    *,
    weights: WeightMethod | None = None,
    weight_text: CalibrationText | Tensor | None = None,
    progress_dir: str | Path | ResumeFolder | None = None,
    resume: bool = False,
    group_size: int | None = None,
    dynamic: bool = False,
    observer_options: Mapping[str, Mapping] | None = None,
    quantize_embedding: bool = False,
    quantize_lm_head: bool = False,
    embedding_bits: int | None = None,
    lm_head_bits: int | None = None,
    untie: bool = False,
    rotate_residual: bool = False,
    state_bits: int = 32,
    group_heads: ChannelGroups | None = None,
    layer_schemes: Sequence[str] = (),
    save_activations: str | Path | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Quantizes a float model in place and returns it: a Mamba, or the weights alone (scheme *a16) of any causal LM.

    Of a hybrid that this package knows, the Mamba blocks are quantized as a Mamba's are, all other linear layers by
    their weights alone. What calibration found is at `model.quamba_calibration`, what became of the weights at
    `model.quamba_weights`.
    `scheme`: w8a8, w4a8, w3a8, w8a16, w4a16 or w3a16; `weights`: how their integers are chosen (None: to nearest with 8
    bits, else by GPTQ, see `DEFAULT_METHODS`); `weight_text`: what a method that looks at activations reads (None: as
    `calibration`, 128 sequences); `progress_dir`: where it keeps the layers that are done, which the caller removes
    once the model is saved, and goes on from with `resume`, one run at a time; `group_size` of 4 and 3-bit weights
    (None: 128); `dynamic`: an activation scale for every token at the inputs of in_proj, out_proj and lm_head.
    `embedding_bits`, `lm_head_bits`: 8, 4 or 3 (None: as the weights); a tied pair of the same bits stays one table
    unless `untie`.
    `layer_schemes`: the scheme of every decoder layer where they differ; the head has `scheme`. Of Mamba2:
    `group_heads`: heads and channels are sorted and clustered, and each group has a scale of x of its own;
    `state_bits`: 8 keeps the SSM states as integers.
    `observer`: a name (for tap x) or tap -> name, see `tap_observers.parse_observers`; taps without one keep their own
    default; None: all of them do, or what an earlier result used. `observer_options`: observer name -> constructor
    arguments. `calibration`: which text to run (None: the embedded one for an embedded model, else the default of
    `CalibrationText`), windows of token ids int64 [count, seqlen], or an earlier result to reuse. `save_activations`:
    the folder that the first batch and a histogram of every watched tap are written to, see `activations`; where that
    fails half-way, as on a full disk, `model.quamba_unwritten` says so and the model is quantized all the same. Float
    activations need no calibration of scales and take none: the result is None.
    Sources: Quamba, arXiv 2410.13229; Quamba2, arXiv 2503.22879.
    The model is run in eval mode and has its own mode again afterwards; it gets copies of its configs, so that another
    model of the same config stays float. What the caller has switched on of torch (autocast, inference mode, another
    default dtype) changes nothing.
    Raises QuambaError for a model, scheme, text or option that does not fit, for tensors that are offloaded, shared by
    layers, another quantization's or hold NaN or infinity, naming them, and for activations that are not finite: the
    model is then as it was. An error after that, such as NaN in a later window of the text, or an interruption leaves
    its weights changed, and `quantize`, `save` and `evaluate` refuse it: load it again.
    """
    if isinstance(model, PreTrainedModel) and recipe_of(model) is not None:
        raise QuambaError("the model is quantized already: quantize the float model it was made from")
    if simulation_of(model) is not None:
        raise QuambaError("the model simulates formats in floats: load the float model again and quantize that")
    check_float_model(model)
    recipe = create_recipe(
        scheme,
        tied=is_one_table(model),
        group_size=group_size,
        dynamic=dynamic,
        quantize_embedding=quantize_embedding,
        quantize_lm_head=quantize_lm_head,
        embedding_bits=embedding_bits,
        lm_head_bits=lm_head_bits,
        untie=untie,
        rotate_residual=rotate_residual,
        state_bits=state_bits,
        reordered=group_heads is not None,
        layer_schemes=layer_schemes,
    )
    convert.check_quantizable(model, recipe)
    given = {"observer": observer, "observer_options": observer_options, "calibration": calibration}
    given["save_activations"] = save_activations
    check_scale_arguments(model, recipe, group_heads, **given)
    check_float_tensors(model)
    check_weight_ranges(model, recipe)
    weights = weights or DEFAULT_METHODS[min(block.weight.bits for block in recipe.block_schemes)]
    rounding = plan_weight_run(model, tokenizer, recipe, weights, weight_text, calibration)
    source = scale_source(model, tokenizer, recipe, rounding, group_heads, **given)
    if rounding is None or progress_dir is None:
        if resume:
            raise QuambaError(
                "nothing to resume: weights rounded to nearest keep no progress, and without progress_dir none is"
            )
        return _apply(model, recipe, rounding, source, progress)
    with ResumeFolder.held(progress_dir, resume) as folder:
        rounded_model = f"{model_fingerprint(model)} {model.dtype}{channel_order_key(source, group_heads)}"
        rounding.keep_progress(folder, rounded_model)
        return _apply(model, recipe, rounding, source, progress)


def _apply(
    model: PreTrainedModel,
    recipe: QuantizationRecipe,
    rounding: WeightRun | None,
    source: CalibrationRun | CalibrationResult | None,
    progress: bool,
) -> PreTrainedModel:
    """Quantizes the model in place, with copies of its configs, in eval mode; an early error leaves it as it was."""
    with plain_computation(model), in_eval_mode(model), own_configs(model), put_back_on_error(model) as original:
        return _rewrite(model, recipe, rounding, source, original, progress)


def _prepare(
    model: PreTrainedModel,
    rounding: WeightRun | None,
    source: CalibrationRun | CalibrationResult | None,
    progress: bool,
) -> dict[int, ChannelOrder] | None:
    """Makes the model ready to be rewritten, as far as that can be taken back; the orders of its channels, if any."""
    orders = None
    if Anatomy.of(model).architecture:
        convert.install_float_mixers(model)
        convert.to_float32(model)  # weights are fused, rotated and rounded so whatever they are stored in
    for run in (rounding, source):
        if isinstance(run, WeightRun | CalibrationRun):
            require_finite_activations(model, run.windows[:1])
    if isinstance(source, CalibrationRun):
        orders = source.channel_orders(model, progress)
    elif source is not None:
        orders = source.channel_orders()
    return orders


def _rewrite(
    model: PreTrainedModel,
    recipe: QuantizationRecipe,
    rounding: WeightRun | None,
    source: CalibrationRun | CalibrationResult | None,
    original: Original,
    progress: bool,
) -> PreTrainedModel:
    """Transforms, rounds, calibrates and converts the model in place."""
    dtype = model.dtype
    orders = _prepare(model, rounding, source, progress)
    original.let_go()
    if Anatomy.of(model).architecture:
        transform(model, recipe.rotate_residual, orders)
        check_weight_ranges(model, recipe)
    rounded = rounding.run(model, progress) if rounding else None
    layers = rounded.layers if rounded else None
    if rounded:
        input_scales = None if rounded.head is None else rounded.head.input_scales
        recipe = replace(
            recipe, multipliers=rounded.scaled_inputs, lm_head_chunks=0 if input_scales is None else len(input_scales)
        )
        if recipe.quantizes_activations:
            expect_input_scales(model, layers, recipe)
    result = source.run(model, orders, progress) if isinstance(source, CalibrationRun) else source
    convert.convert(model, recipe, result.scales() if result else {}, layers, rounded.head if rounded else None)
    if Anatomy.of(model).architecture:
        convert.restore_dtype(model, original.dtypes, dtype)
    check_tensors(model, "the quantization failed", "choose other options, or report it")
    align_floats(model)
    mark_quantized(model, recipe)
    model.quamba_calibration = result
    recorder = source.recorder if isinstance(source, CalibrationRun) else None
    model.quamba_unwritten = recorder.failure if recorder else None
    model.quamba_weights = rounded.to_dict() if rounded else None
    return model
