"""Runs calibration text through a float model and turns what the observers saw at each tap into scales."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import QuambaError
from ..models.positions import check_positions, max_positions
from ..models.text_config import text_config
from ..nn.taps import split_tap_name
from ..storage.files import write_text_atomically
from ..text.data import (
    EMBEDDED_MODELS,
    PLAIN_WIKITEXT,
    SAMPLINGS,
    EmbeddedDefaults,
    embedded_model_dir,
    first_windows,
    load_text,
)
from ..text.reading import once
from ..text.token_cache import tokenizer_sha256
from ..transforms.clusters import ChannelOrder
from .recording import ActivationRecorder
from .watch import Calibrator, TapResult

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
SEQLEN = "the length of a calibration sequence (--calib_seqlen)"  # in messages


@dataclass(frozen=True)
class CalibrationText:
    """Which text calibration reads: `data_num` random sequences of `seqlen` tokens of a data set or file.

    `data_dir`: a folder or file that holds the data set instead of the hub. `sampling`: "windows" takes sequences of
    the whole text that do not overlap (`token_windows`), "slices" pieces of its long documents, articles of wikitext2,
    or of all documents joined where those are the smaller part, that may (`token_slices`). wikitext2-simple knows no
    chance: its first sequences, whatever sampling and seed say.
    Raises QuambaError for an unknown sampling.
    """

    dataset: str = "pile"
    data_num: int = 512
    seqlen: int = 512
    seed: int = 0
    batch_size: int = 8
    data_dir: str | None = None
    sampling: str = "windows"

    def __post_init__(self):
        if self.sampling not in SAMPLINGS:
            raise QuambaError(f"unknown sampling {self.sampling!r} of a text: choose one of {', '.join(SAMPLINGS)}")

    @classmethod
    def of(cls, defaults: EmbeddedDefaults) -> "CalibrationText":
        """Return the text of an embedded checkpoint."""
        return cls(defaults.calib_dataset, defaults.calib_data_num, defaults.calib_seqlen, 0, defaults.batch_size)

    def windows(self, tokenizer) -> Tensor:
        """int64 [data_num, seqlen]. Raises QuambaError where the text cannot be had or is too short."""
        described = tokenizer_sha256(tokenizer)  # one that cannot be told is not kept
        if described is None:
            return self._read(tokenizer)
        windows = once(("windows", self, described), lambda: self._read(tokenizer))
        return windows.clone()  # what a caller does with its windows stays with the caller

    def _read(self, tokenizer) -> Tensor:
        documents = load_text(self.dataset, "calibration", self.data_dir, articles=self.sampling == "slices")
        if self.dataset == PLAIN_WIKITEXT:
            return first_windows(documents, tokenizer, self.seqlen, self.data_num)
        return SAMPLINGS[self.sampling](documents, tokenizer, self.seqlen, self.data_num, self.seed)

    def describe(self) -> str:
        """Say, for the terminal, what will be read."""
        place = f"{self.dataset} in {self.data_dir}" if self.data_dir else self.dataset
        if self.dataset == PLAIN_WIKITEXT:
            return f"the first {self.data_num} sequences of {self.seqlen} tokens of {place}"
        kind = "slices" if self.sampling == "slices" else "sequences"
        return f"{self.data_num} {kind} of {self.seqlen} tokens of {place}, seed {self.seed}"


def default_text(model: nn.Module) -> CalibrationText:
    """The calibration text of a model for which the user names none: quick and offline for an embedded one, and no
    longer at a time than the model has positions."""
    path = Path(model.config.name_or_path)
    embedded = embedded_model_dir(path.name)
    if embedded is None or embedded.resolve() != path.resolve():
        text, positions = CalibrationText(), max_positions(model.config)
        return text if positions is None else replace(text, seqlen=min(text.seqlen, positions))
    return CalibrationText.of(EMBEDDED_MODELS[path.name])


@dataclass
class CalibrationResult:
    """The scale of every tap, and what they were measured on."""

    fingerprint: str  # of the model that was calibrated
    observer: dict[str, str]  # tap -> observer
    observer_options: dict
    n_bits: int  # of the integers that the scales are for
    text: dict | None  # the CalibrationText, None where token ids were given
    tokens: int
    windows_sha256: str  # of the token ids that were run
    seconds: float
    taps: dict[str, TapResult]
    orders: dict[str, dict] | None = None  # layer -> ChannelOrder of Mamba2's grouped channels, where they are

    def to_dict(self) -> dict:
        """The result as plain data."""
        return asdict(self)

    def figures(self) -> dict:
        """Return the result for a log: without the channels' orders and groups, which are long and say nothing to a
        reader."""
        fields = self.to_dict()
        fields["taps"] = {
            name: {key: value for key, value in tap.items() if key != "group_id"}
            for name, tap in fields["taps"].items()
        }
        return {key: value for key, value in fields.items() if key != "orders"}

    def describe(self) -> str:
        """Say, for the terminal, what is reused."""
        text = f" of {self.text['dataset']}" if self.text else ""
        return f"reusing an earlier result on {self.tokens} tokens{text}"

    def scales(self) -> dict[str, Tensor]:
        """Tap name -> float32 scale: one value, [G] of SSD groups, or [D] ([S, P] of states) of grouped channels."""
        return {name: tap.scales() for name, tap in self.taps.items()}

    def channel_orders(self) -> dict[int, ChannelOrder] | None:
        """Return the orders by layer index, None where channels are in no groups."""
        if self.orders is None:
            return None
        return {int(layer): ChannelOrder.from_dict(order) for layer, order in self.orders.items()}

    def save(self, path: str | Path) -> None:
        """Writes the result as JSON, whole or not at all. Raises QuambaError where the file cannot be written."""
        text = json.dumps({"format_version": FORMAT_VERSION, **self.to_dict()}, indent=1)
        try:
            write_text_atomically(Path(path), text + "\n")
        except OSError as error:
            raise QuambaError(f"cannot write the calibration result {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "CalibrationResult":
        """Reads a saved result. Raises QuambaError where the file is not one."""
        try:
            fields = json.loads(Path(path).read_text("utf-8"))
            if fields.pop("format_version") == FORMAT_VERSION:
                taps = {name: TapResult(**tap) for name, tap in fields.pop("taps").items()}
                result = cls(taps=taps, **fields)
                for read in (result.describe, result.channel_orders, result.scales):
                    read()  # raises where the file holds something else
                return result
        except (
            QuambaError,
            OSError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,  # no text, no JSON
            IndexError,
            RuntimeError,  # of a tensor that cannot be made, and too deep JSON
        ) as error:
            raise QuambaError(f"{path} is not a calibration result: {error}") from error
        raise QuambaError(f"calibration {path} was written by another version of quamba: calibrate again")

    def check_fits(
        self,
        fingerprint: str,
        needed: set[str],
        n_bits: int,
        observers: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping] | None = None,
    ) -> None:
        """Raises QuambaError where the result belongs to another model, lacks a tap, or was made with other observers.

        `observers`: tap -> name, `options`: name -> arguments; None where the user asked for none in particular.
        """
        if self.fingerprint != fingerprint:
            raise QuambaError("the calibration belongs to another model, or to other transforms of it: calibrate again")
        if self.n_bits != n_bits:
            raise QuambaError(f"the calibration is for {self.n_bits} bits, the scheme has {n_bits}: calibrate again")
        if missing := sorted(needed - set(self.taps)):
            raise QuambaError(
                f"the calibration has no scale for {', '.join(missing[:3])} (it was made for dynamic scales, or "
                "without a quantized head or integer states): calibrate again"
            )
        for tap, name in (observers or {}).items():
            if self.observer.get(tap) != name:
                raise QuambaError(
                    f"the calibration was made with observer {self.observer.get(tap)!r} at tap {tap}, not {name!r}: "
                    "calibrate again, or name no observer to take its own"
                )
        if options is not None and _plain(options) != _plain(self.observer_options):
            raise QuambaError(
                f"the calibration was made with the observer options {self.observer_options}, not {dict(options)}: "
                "calibrate again, or name no observer to take its own"
            )


def _plain(options: Mapping) -> str:
    return json.dumps(options, sort_keys=True, default=str)  # where tuples and lists are the same


def check_windows(windows: Tensor, vocab_size: int) -> None:
    """Raises QuambaError unless `windows` is [count, seqlen], not empty, of token ids below `vocab_size`."""
    if windows.dim() != 2 or windows.dtype not in (torch.int64, torch.int32) or windows.numel() == 0:
        raise QuambaError(
            f"calibration takes token ids, int64 [count, seqlen], got {windows.dtype} {list(windows.shape)}"
        )
    low, high = (int(value) for value in torch.aminmax(windows))
    if low < 0 or high >= vocab_size:
        raise QuambaError(
            f"the calibration holds token id {high if low >= 0 else low}, the model's vocabulary has {vocab_size}: "
            "is the tokenizer this model's?"
        )


def read_windows(
    calibration: CalibrationText | Tensor | None, model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, CalibrationText | None]:
    """(token ids int64 [count, seqlen], the text they are from or None where they were given).

    Raises QuambaError for windows that are no token ids of this model, or longer than it has positions.
    """
    if isinstance(calibration, Tensor):
        windows, text = calibration, None
    else:
        text = default_text(model) if calibration is None else calibration
        if not isinstance(text, CalibrationText):
            kinds = "a CalibrationText, a CalibrationResult or a tensor of token ids"
            raise QuambaError(f"calibration must be {kinds}, not {calibration!r}")
        check_positions(model.config, text.seqlen, SEQLEN)
        windows = text.windows(tokenizer)
    check_windows(windows, text_config(model).vocab_size)
    check_positions(model.config, windows.shape[1], SEQLEN)
    return windows.to(model.device), text


def windows_sha256(windows: Tensor) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(windows.cpu().contiguous().numpy()).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """A hash of the model's tensors by name, read as float32: equal for equal values on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
    return digest.hexdigest()


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    windows: Tensor,
    observers: dict[str, str],
    *,
    fingerprint: str,
    n_bits: int = 8,
    head: bool = False,
    options: dict | None = None,
    text: CalibrationText | None = None,
    batch_size: int = 8,
    orders: Mapping[int, ChannelOrder] | None = None,
    states: bool = False,
    recorder: ActivationRecorder | None = None,
    progress: bool = True,
) -> CalibrationResult:
    """Runs `windows` int64 [count, seqlen] through the backbone (no logits) and collects every tap's scale.

    `observers`: tap -> observer name (see `parse_observers`), a tap without one is not watched, one that the model does
    not have is nothing to watch; `options`: observer name -> constructor arguments; `text`: where the windows are from,
    kept with the result; `recorder`: writes the activations to the disk.
    Raises QuambaError where an observer meets NaN or infinity, naming the tap.
    """
    start = time.perf_counter()
    options = options or {}
    calibrator = Calibrator(model, observers, n_bits, head, options, recorder, orders, states)
    with recorder or nullcontext(), calibrator:
        with tqdm(total=windows.numel(), desc="Calibrating", unit="tok", disable=not progress) as bar:
            for batch in windows.split(batch_size):
                model.base_model(batch, use_cache=False)
                bar.update(batch.numel())
        taps = calibrator.results()
    seconds = time.perf_counter() - start
    logger.info("calibrated on %d tokens in %.1f s", windows.numel(), seconds)
    watched = {split_tap_name(name)[1] for name in taps}
    used = {tap: name for tap, name in observers.items() if tap in watched}
    described = asdict(text) if text else None
    plain = None if orders is None else {str(layer): order.to_dict() for layer, order in orders.items()}
    return CalibrationResult(
        fingerprint,
        used,
        options,
        n_bits,
        described,
        windows.numel(),
        windows_sha256(windows),
        seconds,
        taps,
        plain,
    )
