"""Records the activations of a model, as calibration would see them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...architectures.anatomy import Anatomy
from ...architectures.convert import HEAD_TAP, check_transformable, install_float_mixers
from ...calibration.defaults import EVERY_TAP, check_tap, parse_observers
from ...calibration.recording import ActivationRecorder
from ...calibration.run import CalibrationText, calibrate
from ...errors import QuambaError
from ...models.model_checks import check_float_model, check_float_tensors
from ...models.original import in_eval_mode, own_configs
from ...pipeline.quantize import transform
from .specs import BASELINE


def check_taps(
    taps: Collection[str] | None,
    layers: Collection[int] | None,
    layer_count: int,
    known: Sequence[str] = EVERY_TAP,
) -> None:
    """Raises QuambaError for taps and layers that a model does not have; None means all. `known`: the taps it has."""
    for tap in taps or ():
        check_tap(tap, known)
    for layer in layers or ():
        if not 0 <= layer < layer_count:
            raise QuambaError(f"there is no layer {layer}: the model has layers 0 to {layer_count - 1}")
    if layers is not None and HEAD_TAP in (taps or ()):
        raise QuambaError(f"tap {HEAD_TAP} belongs to no layer: drop the layers, or the tap")


def capture(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: CalibrationText,
    directory: str | Path,
    taps: Collection[str] | None = None,
    layers: Collection[int] | None = None,
    rotate_residual: bool = False,
    progress: bool = True,
) -> None:
    """Runs the calibration text through a float Mamba, which is transformed in place, and records its taps.

    `taps`, `layers`: only these; None: all, without the head's input. Raises QuambaError for what does not exist.
    """
    block_taps = check_transformable(model).taps
    check_taps(taps, layers, model.config.num_hidden_layers, (*block_taps, HEAD_TAP))
    blocks = [slot.index for slot in Anatomy.of(model).slots]
    if missing := set(layers or ()) - set(blocks):
        raise QuambaError(
            f"layer {min(missing)} has no Mamba block, whose taps could be recorded: layers {blocks} have one"
        )
    check_float_model(model)
    check_float_tensors(model)
    windows = text.windows(tokenizer)
    recorder = ActivationRecorder(directory, Path(model.config.name_or_path).name, taps, layers)
    head = HEAD_TAP in (taps or ())
    with in_eval_mode(model), own_configs(model):
        install_float_mixers(model)
        model.float()
        transform(model, rotate_residual)
        calibrate(
            model,
            windows,
            parse_observers({"all": BASELINE}, head, taps=block_taps),
            fingerprint="",  # of the scales, which are not kept
            head=head,
            text=text,
            batch_size=text.batch_size,
            recorder=recorder,
            progress=progress,
        )
