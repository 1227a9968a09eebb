"""What an interrupted run of the weight path leaves on the disk, and goes on from.

A folder holds one safetensors file for each finished batch of layers, and one with the hidden states behind the last of
them; `run.json` says which run they belong to: its options and a random id. Every other file holds the hash of that
one, so that files of two runs are never mixed. Each is written whole or not at all, and the hidden states come last:
they say how many layers are done. The run that works in the folder holds a lock on it, which ends with its process.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import QuambaError
from ..models.tensor_checks import check_finite
from ..storage.files import replace_atomically, write_text_atomically
from ..storage.folder_lock import lock_folder
from ..storage.scratch import scratch_folders
from ..weights.rounded import RoundedWeight

logger = logging.getLogger(__name__)

HIDDEN, RUN = "hidden.safetensors", "run.json"
PATTERNS = (RUN, HIDDEN, "layers-*.safetensors", ".run.*.json", ".hidden.*.safetensors", ".layers-*.safetensors")
PARTS = ("integers", "scale", "zero", "input_scales")

Layer = dict[str, RoundedWeight]


class ResumeFolder:
    """The folder of a run, and a context manager that keeps other runs out of it.

    `resume`: go on from what an interrupted run left; without it, finished layers that are there are discarded when the
    run starts, and a warning says so as soon as the block is entered. Entering it raises QuambaError where another run
    is at work in the folder, where it cannot be written, and with `resume` where it holds no run.
    """

    def __init__(self, path: Path, resume: bool = False):
        self.path, self.resume = Path(path), resume
        self.key: str | None = None  # of the run's files, once it has started
        self._lock: int | None = None  # a descriptor

    @classmethod
    def held(cls, folder: "str | Path | ResumeFolder", resume: bool) -> "AbstractContextManager[ResumeFolder]":
        """A folder held for a block; one that is a `ResumeFolder` already is held by whoever made it."""
        return nullcontext(folder) if isinstance(folder, ResumeFolder) else cls(folder, resume)

    def __enter__(self) -> "ResumeFolder":
        if self.resume and not (self.path / RUN).exists():
            raise QuambaError(f"nothing to resume: {self.path} holds no interrupted run; start it without --resume")
        try:
            self._lock = lock_folder(self.path)
        except BlockingIOError as error:
            raise QuambaError(
                f"another run is at work in {self.path}: wait until it has ended, or let this one keep its progress "
                "elsewhere (--pretrained_dir, --log_dir)"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        if not self.resume and (layers := self._finished()):
            logger.warning(
                "%s holds %d finished layers of an interrupted run, which starting anew discards: interrupt this now "
                "and give --resume to go on from them with the same options",
                self.path,
                layers,
            )
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):  # it holds something, or is gone
            self.path.rmdir()
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def start(self, run: dict) -> None:
        """Begins a run, or goes on with the one that is there. `run`: plain data, which two runs share only if one may
        go on where the other stopped.

        Raises QuambaError where the folder cannot be written, and where what is to be resumed was another run.
        """
        run = json.loads(json.dumps(run))  # tuples become lists, as they will be when read
        if self.resume:
            self._require_same(run)
        else:
            text = json.dumps({"id": secrets.token_hex(16), "run": run}, indent=1, sort_keys=True) + "\n"
            try:
                self._remove_files()  # not the folder, whose lock this run holds
                write_text_atomically(self.path / RUN, text)
            except OSError as error:
                raise self._unwritable(error) from error
        self.key = self._stored_key()

    def discard(self) -> None:
        """Removes the files of a run, and the folder once it is empty."""
        self._remove_files()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _remove_files(self) -> None:
        for file in [file for pattern in PATTERNS for file in self.path.glob(pattern)]:
            file.unlink(missing_ok=True)
        if self._lock is not None:  # no other run writes here: what is left is of runs that were killed
            for scratch in scratch_folders(self.path):
                shutil.rmtree(scratch, ignore_errors=True)

    def _require_same(self, run: dict) -> None:
        try:
            left = json.loads((self.path / RUN).read_text("utf-8"))
            left, _ = left["run"], left["id"]
            names = {*run, *left}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QuambaError(f"{self.path / RUN} is damaged: {error}; start anew without --resume") from error
        other = sorted(name for name in names if run.get(name) != left.get(name))
        if other:
            raise QuambaError(
                f"the interrupted run in {self.path} had another {', '.join(other)}: give the same options, or start "
                "anew without --resume"
            )

    def _stored_key(self) -> str:
        return hashlib.sha256((self.path / RUN).read_bytes()).hexdigest()

    def keep(self, layers: list[Layer], reports: dict[str, dict], hidden: list[Tensor], first: int) -> None:
        """Writes the layers from `first` on, the reports so far, and the hidden states [B, L, H] behind them."""
        tensors = {
            f"{index}|{name}|{part}": tensor.clone()  # linears may share input scales: safetensors does not
            for index, layer in enumerate(layers[first:], start=first)
            for name, rounded in layer.items()
            for part in PARTS
            if (tensor := getattr(rounded, part)) is not None
        }
        self._write(f"layers-{first:05d}.safetensors", tensors, {})
        states = {f"{position:05d}": state.contiguous() for position, state in enumerate(hidden)}
        self._write(HIDDEN, states, {"layers": str(len(layers)), "reports": json.dumps(reports)})

    def _write(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        try:
            if self._stored_key() != self.key:
                raise QuambaError(f"{self.path} belongs to another run since: this one cannot keep its progress there")
            with replace_atomically(self.path / name) as temporary:
                save_file(tensors, temporary, metadata | {"run": self.key})
        except (OSError, SafetensorError) as error:
            raise QuambaError(f"cannot keep the run's progress in {self.path / name}: {error}") from error

    def restore(self) -> tuple[list[Layer], dict[str, dict], list[Tensor]] | None:
        """(layers, reports, hidden states) of a run that finished a batch of layers, None of one that did not.

        Raises QuambaError for a damaged file, and for one of another run.
        """
        if not (self.path / HIDDEN).exists():
            return None
        states, metadata = self._read(self.path / HIDDEN)
        try:
            count, reports = int(metadata["layers"]), json.loads(metadata["reports"])
        except (KeyError, ValueError) as error:
            raise QuambaError(f"{self.path / HIDDEN} is damaged: start anew without --resume") from error
        layers: list[Layer] = [{} for _ in range(count)]
        for index, name, rounded in self._finished_linears():
            if index < count:  # a later batch was cut off before its hidden states
                layers[index][name] = rounded
        if not all(layers):
            raise QuambaError(f"{self.path} lacks layers that were finished: start anew without --resume")
        return layers, reports, [states[name] for name in sorted(states)]

    def _finished_linears(self) -> Iterator[tuple[int, str, RoundedWeight]]:
        """(layer, name within it, integers) of every linear layer that a file holds."""
        for file in sorted(self.path.glob("layers-*.safetensors")):
            parts: dict[tuple[int, str], dict[str, Tensor]] = {}
            for key, tensor in self._read(file)[0].items():
                index, name, part = key.split("|")
                parts.setdefault((int(index), name), {})[part] = tensor
            for (index, name), tensors in parts.items():
                yield index, name, RoundedWeight(**tensors)

    def _read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with safe_open(file, framework="pt") as tensors:
                metadata = tensors.metadata() or {}
                if metadata.get("run") != self.key:
                    raise QuambaError(f"{file} is of another run than {RUN} beside it: start anew without --resume")
                found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise QuambaError(f"{file} is damaged: {error}; start anew without --resume") from error
        check_finite(found, f"{file} is damaged", "start anew without --resume")
        for name, tensor in found.items():
            if name.endswith(("|scale", "|input_scales")) and not bool((tensor > 0).all()):
                raise QuambaError(f"{file} is damaged: {name} holds no scale: start anew without --resume")
        return found, metadata

    def _finished(self) -> int:
        """Layers that an interrupted run had finished, 0 where it left none that can be read."""
        try:
            with safe_open(self.path / HIDDEN, framework="pt") as tensors:
                return int((tensors.metadata() or {}).get("layers", 0))
        except (SafetensorError, OSError, ValueError):
            return 0

    def _unwritable(self, error: OSError) -> QuambaError:
        return QuambaError(f"cannot keep the run's progress in {self.path}: {error.strerror or error}")
