"""The only orchestrator: transforms -> weights -> calibration -> conversion, in that order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import convert
from .activations import ActivationRecorder
from .architectures import architecture_of
from .calibration import (
    CalibrationResult,
    CalibrationText,
    calibrate,
    check_windows,
    default_text,
    model_fingerprint,
    windows_sha256,
)
from .checkpoint.quantized import mark_quantized, recipe_of
from .errors import QuambaError
from .hadamard import hadamard_base
from .head_groups import HeadGroups
from .nn.taps import STATE_TAP
from .rewrites import transform
from .scheme import DYNAMIC, FLOAT, QuantizationRecipe, create_recipe
from .tap_observers import check_observer_options, parse_observers
from .transforms.clusters import ChannelOrder
from .weight_run import WINDOWS, WeightRun, expect_vectors
from .weights.method import DEFAULT_METHODS, WeightMethod


def quantize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    scheme: str = "w8a8",
    observer: str | Mapping[str, str] | None = None,
    calibration: CalibrationText | CalibrationResult | Tensor | None = None,
    *,
    weights: WeightMethod | None = None,
    weight_text: CalibrationText | Tensor | None = None,
    progress_dir: str | Path | None = None,
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
    group_heads: HeadGroups | None = None,
    layer_schemes: Sequence[str] = (),
    save_activations: str | Path | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """Quantizes a float model in place and returns it: a Mamba, or the weights alone (scheme *a16) of any causal LM.

    Of a hybrid that `mamba_slots` knows, the Mamba blocks are quantized as a Mamba's are, all other linear layers by
    their weights alone. What calibration found is at `model.quamba_calibration`, what became of the weights at
    `model.quamba_weights`.
    `scheme`: w8a8, w4a8, w3a8, w8a16, w4a16 or w3a16; `weights`: how their integers are chosen (None: to nearest with 8
    bits, else by GPTQ, see `DEFAULT_METHODS`); `weight_text`: what a method that looks at activations reads (None: as
    `calibration`, 128 sequences); `progress_dir`: where it keeps the layers that are done, which the caller removes
    once the model is saved, and goes on from with `resume`; `group_size` of 4 and 3-bit weights (None: 128); `dynamic`:
    an activation scale for every token at the inputs of in_proj, out_proj and lm_head. `embedding_bits`,
    `lm_head_bits`: 8, 4 or 3 (None: as the weights); a tied pair of the same bits stays one table unless `untie`.
    `layer_schemes`: the scheme of every decoder layer where they differ; the head has `scheme`. Of Mamba2:
    `group_heads`: heads and channels are sorted and clustered, and each group has a scale of x of its own;
    `state_bits`: 8 keeps the SSM states as integers.
    `observer`: a name (for tap x) or tap -> name, see `tap_observers.parse_observers`; taps without one keep their own
    default; None: all of them do, or what an earlier result used. `observer_options`: observer name -> constructor
    arguments. `calibration`: which text to run (None: the embedded one for an embedded model, else the default of
    `CalibrationText`), windows of token ids int64 [count, seqlen], or an earlier result to reuse. `save_activations`:
    the folder that the first batch and a histogram of every watched tap are written to, see `activations`. Float
    activations need no calibration of scales and take none: the result is None.
    Sources: Quamba, arXiv 2410.13229; Quamba2, arXiv 2503.22879.
    Raises QuambaError for a model, scheme, text or option that does not fit, before the model is changed; and for NaN
    or infinity in the activations, which leaves it transformed: load it again then.
    """
    if recipe_of(model) is not None:
        raise QuambaError("the model is quantized already: quantize the float model it was made from")
    recipe = create_recipe(
        scheme,
        tied=model.config.tie_word_embeddings,
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
    if not recipe.quantizes_activations:
        _refuse(recipe, **given, save_activations=save_activations, group_heads=group_heads)
    if group_heads:
        group_heads.check(model)
    weights = weights or DEFAULT_METHODS[min(block.weight.bits for block in recipe.block_schemes)]
    rounding = _weight_run(model, tokenizer, recipe, weights, weight_text, calibration)
    source = _scale_source(model, tokenizer, recipe, rounding, group_heads, **given, save_activations=save_activations)
    if rounding is not None and progress_dir is not None:
        rounded_model = f"{model_fingerprint(model)} {model.dtype}{_channel_order_key(source, group_heads)}"
        rounding.keep_progress(Path(progress_dir), rounded_model, resume)
    elif resume:
        raise QuambaError(
            "nothing to resume: weights rounded to nearest keep no progress, and without progress_dir none is"
        )
    return _apply(model, recipe, rounding, source, progress)


@dataclass
class _CalibrationRun:
    """A calibration that was checked, to be run once the model is transformed."""

    windows: Tensor  # int64 [count, seqlen]
    text: CalibrationText | None
    observers: dict[str, str]
    options: dict[str, dict]
    n_bits: int
    fingerprint: str
    recorder: ActivationRecorder | None
    groups: HeadGroups | None
    states: bool

    def channel_orders(self, model: PreTrainedModel, progress: bool) -> dict[int, ChannelOrder] | None:
        """Those of the layers of a float model, by what their channels hold; None without groups."""
        return self.groups and self.groups.orders(model, self.windows, self.batch_size, progress)

    @property
    def batch_size(self) -> int:
        """Windows at a time."""
        return (self.text or CalibrationText()).batch_size

    def run(
        self, model: PreTrainedModel, orders: Mapping[int, ChannelOrder] | None, progress: bool
    ) -> CalibrationResult:
        """The scales of every tap that has an observer, of a model whose channels are in those orders."""
        return calibrate(
            model,
            self.windows,
            self.observers,
            fingerprint=self.fingerprint,
            n_bits=self.n_bits,
            head=convert.HEAD_TAP in self.observers,
            options=self.options,
            text=self.text,
            batch_size=self.batch_size,
            orders=orders,
            states=self.states,
            recorder=self.recorder,
            progress=progress,
        )


def _weight_run(
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
    windows, described = _read_windows(text, model, tokenizer)
    return WeightRun(windows, method, recipe, (described or CalibrationText()).batch_size, folder=None)


def _scale_source(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    recipe: QuantizationRecipe,
    rounding: WeightRun | None,
    group_heads: HeadGroups | None,
    *,
    observer: str | Mapping[str, str] | None,
    observer_options: Mapping[str, Mapping] | None,
    calibration: CalibrationText | CalibrationResult | Tensor | None,
    save_activations: str | Path | None,
) -> _CalibrationRun | CalibrationResult | None:
    """Where scales come from: a run, an earlier result, None where activations stay float. The model gets our mixers.

    Raises QuambaError for what `quantize` says, before anything slow.
    """
    integers = recipe.integer_acts
    options = {name: dict(arguments) for name, arguments in (observer_options or {}).items()}
    if integers:
        n_bits, states = integers[0].bits, recipe.state_bits == 8
        head, dynamic = recipe.head_act != FLOAT, DYNAMIC in integers
        taps = (*architecture_of(model).taps, *((STATE_TAP,) if states else ()))
        observers = parse_observers(observer or None, head, dynamic, taps)
        check_observer_options(observers, options, n_bits)
    if architecture_of(model):
        convert.install_float_mixers(model)
    if recipe.rotate_residual:
        hadamard_base(model.config.hidden_size)
    if not integers:
        return None
    fingerprint = f"{model_fingerprint(model)}{'-rotated' if recipe.rotate_residual else ''}"
    fingerprint += f"-{group_heads.describe()}" if group_heads else ""
    fingerprint += f"-{rounding.fingerprint()}" if rounding else ""
    if isinstance(calibration, CalibrationResult):
        if save_activations is not None:
            raise QuambaError("save_activations needs a calibration run, and an earlier result is reused: drop one")
        asked_for = (observers, options) if observer or options else (None, None)
        calibration.check_fits(fingerprint, set(convert.static_tap_names(model, recipe)), n_bits, *asked_for)
        return calibration
    windows, text = _read_windows(calibration, model, tokenizer)
    recorder = None
    if save_activations is not None:
        recorder = ActivationRecorder(save_activations, Path(model.config.name_or_path).name)
    return _CalibrationRun(windows, text, observers, options, n_bits, fingerprint, recorder, group_heads, states)


def _channel_order_key(source: _CalibrationRun | CalibrationResult | None, groups: HeadGroups | None) -> str:
    """What an interrupted run must share beside the model, where that puts channels in another order: empty or text."""
    if groups is None:
        return ""
    seen = windows_sha256(source.windows) if isinstance(source, _CalibrationRun) else source.windows_sha256
    return f" {groups.describe()} of {seen}"


def _refuse(recipe: QuantizationRecipe, **given) -> None:
    """Raises QuambaError naming an argument of calibration that was given to a scheme without any."""
    names = [name for name, value in given.items() if value is not None and not (isinstance(value, dict) and not value)]
    if names:
        raise QuambaError(f"{names[0]} does nothing with scheme {recipe.name}: its activations stay float")


def _apply(
    model: PreTrainedModel,
    recipe: QuantizationRecipe,
    rounding: WeightRun | None,
    source: _CalibrationRun | CalibrationResult | None,
    progress: bool,
) -> PreTrainedModel:
    """Transforms, rounds, calibrates and converts the model in place."""
    dtype = model.dtype
    orders = None
    if architecture_of(model):
        model.float()  # weights are fused, rotated and rounded in float32 whatever they are stored in
        if isinstance(source, _CalibrationRun):
            orders = source.channel_orders(model, progress)
        elif source is not None:
            orders = source.channel_orders()
        transform(model, recipe.rotate_residual, orders)
    rounded = rounding.run(model, progress) if rounding else None
    layers = rounded.layers if rounded else None
    if rounded:
        vectors = None if rounded.head is None else rounded.head.input_scales
        recipe = replace(recipe, multipliers=rounded.vectors, lm_head_chunks=0 if vectors is None else len(vectors))
        if recipe.quantizes_activations:
            expect_vectors(model, layers, recipe)
    result = source.run(model, orders, progress) if isinstance(source, _CalibrationRun) else source
    convert.convert(model, recipe, result.scales() if result else {}, layers, rounded.head if rounded else None)
    if architecture_of(model):
        convert.restore_dtype(model, dtype)
    mark_quantized(model, recipe)
    model.quamba_calibration = result
    model.quamba_weights = rounded.to_dict() if rounded else None
    return model


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
