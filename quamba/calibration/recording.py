"""Activations on disk: the first batch of every tap and a histogram of all batches, one safetensors file per layer.

Tensors of `layer_003.safetensors`: `x` (the first batch as the tap gave it, [B, L, channels]) and, of its histogram,
`x.positive.counts`, `x.positive.sums`, `x.negative.counts`, `x.negative.sums` (see `MagnitudeHistogram`). The metadata
holds the model, the layer, and for every tap shape, dtype and what the histogram's bins mean.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..borders import foreign
from ..errors import QuambaError
from ..nn.taps import split_tap_name, tap_name
from ..observers.base import finite_extremes
from ..observers.histogram import MagnitudeHistogram, SignedHistogram
from ..storage.files import replace_atomically, require_writable
from ..storage.folder_lock import lock_folder
from ..storage.scratch import scratch_folder

logger = logging.getLogger(__name__)

FORMAT = "quamba-activations-1"
PARTS = ".parts-"  # of the names of folders in which earlier versions recorded
HEAD_FILE = "head.safetensors"
SIDES = ("positive", "negative")
# Standard deviation of tap x of mamba-tiny: 0.36 to 0.41, by layer.
SYNTHETIC_SPREAD = 0.38
SYNTHETIC_NORMALS, SYNTHETIC_OUTLIERS, OUTLIER_RANGE = 10_000, 100, (5.0, 10.0)


@dataclass(frozen=True)
class TapActivations:
    """Values of one tap of one layer (None: the head's input, or synthetic).

    values: [..., channels], any float dtype. histogram: of everything that calibration saw, None where not recorded.
    outliers: bool like `values` where it is known which values are outliers, else None.
    """

    tap: str
    layer: int | None
    values: Tensor
    histogram: SignedHistogram | None = None
    outliers: Tensor | None = None

    @property
    def name(self) -> str:
        """`layers.3.x`, or the tap's name where it belongs to no layer."""
        return tap_name(self.layer, self.tap)


def synthetic_activations(seed: int, spread: float = SYNTHETIC_SPREAD) -> TapActivations:
    """10,000 normal values of that standard deviation and 100 outliers of magnitude 5 to 10 and either sign."""
    generator = torch.Generator().manual_seed(seed)
    normal = spread * torch.randn(SYNTHETIC_NORMALS, dtype=torch.float32, generator=generator)
    low, high = OUTLIER_RANGE
    magnitude = low + (high - low) * torch.rand(SYNTHETIC_OUTLIERS, dtype=torch.float32, generator=generator)
    sign = 2.0 * torch.randint(0, 2, (SYNTHETIC_OUTLIERS,), generator=generator) - 1
    outliers = torch.arange(SYNTHETIC_NORMALS + SYNTHETIC_OUTLIERS) >= SYNTHETIC_NORMALS
    return TapActivations("synthetic", None, torch.cat([normal, sign * magnitude]), outliers=outliers)


class ActivationRecorder:
    """Context manager that keeps what `update` is given, and writes it to `directory` when the block is left.

    `taps`, `layers`: only these, all by default. Memory holds the histograms (about 2 MB a tap); the first batches go
    to the disk as they come. A block that is left by an error leaves nothing behind. `best_effort`: what cannot be
    written once the block has begun, such as on a full disk, ends the recording alone; `failure` then says what it was.
    Raises QuambaError where the directory cannot be written or holds activations already, and when entered where
    another run is recording.
    """

    def __init__(
        self,
        directory: str | Path,
        model: str,
        taps: Collection[str] | None = None,
        layers: Collection[int] | None = None,
        best_effort: bool = False,
    ):
        self.best_effort, self.failure = best_effort, None
        self.directory, self.model = Path(directory), model
        self.taps, self.layers = taps, layers
        self._histograms: dict[str, SignedHistogram] = {}
        self._first: dict[str, dict] = {}  # name -> shape and dtype of the first batch
        self._parts: Path | None = None
        self._stack = ExitStack()  # what ends with the block: the parts, before them the lock
        check_recordable(self.directory)

    def __enter__(self) -> "ActivationRecorder":
        try:
            lock = lock_folder(self.directory)
        except BlockingIOError as error:
            raise QuambaError(f"another run writes its activations to {self.directory}: name another folder") from error
        with ExitStack() as undo:
            if lock is not None:
                undo.callback(os.close, lock)
            check_recordable(self.directory)  # another run may have ended meanwhile
            for left in self.directory.glob(f"{PARTS}*"):  # of killed runs of earlier versions
                shutil.rmtree(left, ignore_errors=True)
            try:
                self._parts = undo.enter_context(scratch_folder(self.directory))
            except OSError as error:
                self._fail(QuambaError(f"cannot write to {self.directory}: {error}"))
            self._stack = undo.pop_all()
        return self

    def __exit__(self, kind, *_) -> None:
        with self._stack:  # removes the parts
            if kind is not None or self.failure is not None:
                return
            try:
                self._write()
            except QuambaError as error:
                self._fail(error)

    def _fail(self, error: QuambaError) -> None:
        if not self.best_effort:
            raise error
        self.failure = f"no activations are saved: {error}"
        logger.warning("%s", self.failure)

    def wants(self, name: str) -> bool:
        """Return whether a tap is among those to record."""
        layer, tap = split_tap_name(name)
        return (
            self.failure is None
            and (self.taps is None or tap in self.taps)
            and (self.layers is None or layer in self.layers)
        )

    def update(self, name: str, x: Tensor) -> None:
        """Takes in one batch of a tap. Raises QuambaError for NaN and infinity, naming the tap."""
        finite_extremes(x, f"tap {name}")
        if name not in self._histograms:
            try:
                save_file({"values": x.detach().cpu().contiguous()}, self._part(name))
            except (OSError, SafetensorError) as error:
                self._fail(QuambaError(f"cannot write to {self.directory}: {error}"))
                return
            self._first[name] = {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")}
            self._histograms[name] = SignedHistogram()
        self._histograms[name].update(x)

    def _part(self, name: str) -> Path:
        return self._parts / name

    def _write(self) -> None:
        by_layer: dict[int | None, list[str]] = {}
        for name in self._histograms:
            by_layer.setdefault(split_tap_name(name)[0], []).append(name)
        with ExitStack() as undo:  # where a layer cannot be written the earlier ones go too
            recording = {"recording": secrets.token_hex(8), "files": json.dumps(sorted(map(layer_file, by_layer)))}
            for layer, names in by_layer.items():
                path = self.directory / layer_file(layer)
                self._write_layer(path, layer, names, recording)
                undo.callback(path.unlink, missing_ok=True)
            undo.pop_all()

    def _write_layer(self, path: Path, layer: int | None, names: list[str], recording: dict[str, str]) -> None:
        tensors, taps = {}, {}
        for name in names:
            tap = split_tap_name(name)[1]
            tensors[tap] = load_file(self._part(name))["values"]
            arrays, described = _histogram_to_tensors(tap, self._histograms[name])
            tensors |= arrays
            taps[tap] = {**self._first[name], "histogram": described}
        about = {"format": FORMAT, "model": self.model, "layer": json.dumps(layer), "taps": json.dumps(taps)}
        try:
            with replace_atomically(path) as temporary:
                save_file(tensors, temporary, about | recording)
        except (OSError, SafetensorError) as error:
            raise QuambaError(f"cannot write {path}: {error}") from error


def layer_file(layer: int | None) -> str:
    """The file that a layer's activations are in."""
    return HEAD_FILE if layer is None else f"layer_{layer:03d}.safetensors"


def _files(directory: Path) -> list[Path]:
    return [*sorted(directory.glob("layer_*.safetensors")), *directory.glob(HEAD_FILE)]


def check_recordable(directory: str | Path) -> None:
    """Raises QuambaError where activations cannot be written to `directory`, or others are there already."""
    require_writable(Path(directory))
    if there := _files(Path(directory)):
        raise QuambaError(f"{directory} holds activations already ({there[0].name}): name another folder, or empty it")


def _histogram_to_tensors(tap: str, histogram: SignedHistogram) -> tuple[dict[str, Tensor], dict]:
    tensors, described = {}, {"count": histogram.count}
    for side in SIDES:
        magnitudes: MagnitudeHistogram = getattr(histogram, side)
        tensors |= {f"{tap}.{side}.counts": magnitudes.counts.cpu(), f"{tap}.{side}.sums": magnitudes.sums.cpu()}
        described[side] = {name: getattr(magnitudes, name) for name in ("mantissa_bits", "octave", "peak")}
    return tensors, described


def _read_tap(path: Path, layer: int | None, tap: str, described: dict) -> TapActivations:
    """One tap of a file. Raises QuambaError where the file, or what it says of the tap, is damaged."""
    histogram = SignedHistogram()
    with foreign(f"{path}: cannot read tap {tap}"):
        about = described["histogram"]
        histogram.count = about["count"]
        with safe_open(path, "pt") as file:
            values = file.get_tensor(tap)
            for side in SIDES:
                magnitudes = MagnitudeHistogram(octave=about[side]["octave"])
                magnitudes.mantissa_bits, magnitudes.peak = about[side]["mantissa_bits"], about[side]["peak"]
                magnitudes.counts = file.get_tensor(f"{tap}.{side}.counts")
                magnitudes.sums = file.get_tensor(f"{tap}.{side}.sums")
                setattr(histogram, side, magnitudes)
    whole = type(histogram.count) is int and all(getattr(histogram, side).is_valid() for side in SIDES)
    if not whole or not values.dim() or not values.is_floating_point() or not bool(values.isfinite().all()):
        raise QuambaError(f"{path}: cannot read tap {tap}: it is damaged; record the activations again")
    return TapActivations(tap, layer, values, histogram)


@dataclass(frozen=True)
class SavedActivations:
    """A directory of activations: iterating reads one tap at a time."""

    model: str
    index: list[tuple[Path, int | None, str, dict]]  # file, layer, tap, description

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[TapActivations]:
        for path, layer, tap, described in self.index:
            yield _read_tap(path, layer, tap, described)


@dataclass(frozen=True)
class _Metadata:
    """Hold what a file says of itself."""

    model: str
    layer: int | None
    taps: dict[str, dict]
    recording: str | None  # one for all files of one recording; None in files of earlier versions
    files: set[str]  # the names of all files of the recording


def _read_metadata(path: Path) -> _Metadata:
    with foreign(f"cannot read the activations {path}"), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise QuambaError(f"{path} holds no activations in the format {FORMAT}: record them again")
    damaged = f"the metadata of {path} is damaged"
    with foreign(damaged, "record the activations again"):
        layer, taps = json.loads(metadata["layer"]), json.loads(metadata["taps"])
        files = set(json.loads(metadata.get("files", "[]")))
        found = _Metadata(metadata["model"], layer, taps, metadata.get("recording"), files)
    if not isinstance(layer, int | None) or not isinstance(taps, dict):
        raise QuambaError(f"{damaged}: record the activations again")
    return found


def _require_whole(directory: Path, found: list[_Metadata], names: set[str]) -> None:
    """Raises QuambaError where a folder holds part of a recording, or parts of several."""
    models = {metadata.model for metadata in found}
    if len(models) > 1:
        raise QuambaError(f"{directory} holds activations of several models: {', '.join(sorted(models))}")
    if len({metadata.recording for metadata in found}) > 1:
        raise QuambaError(f"{directory} holds files of several recordings: record into an empty folder")
    if missing := sorted(set().union(*(metadata.files for metadata in found)) - names):
        raise QuambaError(
            f"{directory} lacks {missing[0]} of its recording, which was interrupted or taken apart: record it again"
        )


def open_activations(
    directory: str | Path, taps: Collection[str] | None = None, layers: Collection[int] | None = None
) -> SavedActivations:
    """Return what an ActivationRecorder wrote to `directory`; `taps`, `layers`: only these, in the order of the files.

    Raises QuambaError where there are none, where a file is not one of them or lacks, and where a tap or layer is not
    there.
    """
    directory, index, found = Path(directory), [], []
    files = _files(directory)
    for path in files:
        found.append(metadata := _read_metadata(path))
        index += [(path, metadata.layer, tap, described) for tap, described in metadata.taps.items()]
    if not index:
        raise QuambaError(f"{directory} holds no activations: write them with main.py --save_activations {directory}")
    _require_whole(directory, found, {path.name for path in files})
    known_taps, known_layers = (dict.fromkeys(i[place] for i in index if i[place] is not None) for place in (2, 1))
    for what, wanted, known in (("tap", taps, known_taps), ("layer", layers, known_layers)):
        if missing := [value for value in wanted or () if value not in known]:
            there = ", ".join(map(str, known)) or "none"
            raise QuambaError(f"{directory} has no {what} {missing[0]}: it has {there}")
    chosen = [i for i in index if (taps is None or i[2] in taps) and (layers is None or i[1] in layers)]
    if not chosen:
        raise QuambaError(f"{directory} has none of the taps {', '.join(taps or ())} in the layers {layers}")
    return SavedActivations(found[0].model, chosen)
