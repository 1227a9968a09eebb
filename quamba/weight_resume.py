"""What an interrupted run of the weight path leaves on the disk, and goes on from.

A folder holds one safetensors file for each finished batch of layers, and one with the hidden states behind the last of
them; `run.json` says which run they belong to. Every file is written whole or not at all, and the hidden states come
last: they say how many layers are done.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import QuambaError
from .files import replace_atomically, write_text_atomically
from .weights.rounded import RoundedWeight

HIDDEN, RUN = "hidden.safetensors", "run.json"
PARTS = ("integers", "scale", "zero", "input_scales")

Layer = dict[str, RoundedWeight]


class ResumeFolder:
    """The folder of one run. `run`: plain data that two runs share only if one may go on where the other stopped."""

    def __init__(self, path: Path, run: dict):
        self.path, self.run = path, json.loads(json.dumps(run))  # tuples become lists, as they will be when read

    def begin(self) -> None:
        """Forgets what an earlier run left. Raises QuambaError where the folder cannot be written."""
        try:
            self.discard()
            write_text_atomically(self.path / RUN, json.dumps(self.run, indent=1, sort_keys=True) + "\n")
        except OSError as error:
            raise QuambaError(f"cannot keep the run's progress in {self.path}: {error.strerror or error}") from error

    def discard(self) -> None:
        """Removes the files of a run, and the folder once it is empty."""
        for file in [self.path / RUN, self.path / HIDDEN, *self.path.glob("layers-*.safetensors")]:
            file.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def require_started(self) -> None:
        """Raises QuambaError where there is nothing to go on from."""
        if not (self.path / RUN).exists():
            raise QuambaError(f"nothing to resume: {self.path} holds no interrupted run; start it without --resume")

    def require_same_run(self) -> None:
        """Raises QuambaError where there is nothing to go on from, or it belongs to another run."""
        self.require_started()
        try:
            left = json.loads((self.path / RUN).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise QuambaError(f"{self.path / RUN} is damaged: {error}; start anew without --resume") from error
        other = sorted(name for name in {*self.run, *left} if self.run.get(name) != left.get(name))
        if other:
            raise QuambaError(
                f"the interrupted run in {self.path} had another {', '.join(other)}: give the same options, or start "
                "anew without --resume"
            )

    def keep(self, layers: list[Layer], reports: dict[str, dict], hidden: list[Tensor], first: int) -> None:
        """Writes the layers from `first` on, the reports so far, and the hidden states [B, L, H] behind them."""
        tensors = {
            f"{index}|{name}|{part}": tensor.clone()  # linears may share a vector: safetensors does not
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
            with replace_atomically(self.path / name) as temporary:
                save_file(tensors, temporary, metadata)
        except (OSError, SafetensorError) as error:
            raise QuambaError(f"cannot keep the run's progress in {self.path / name}: {error}") from error

    def restore(self) -> tuple[list[Layer], dict[str, dict], list[Tensor]] | None:
        """(layers, reports, hidden states) of a run that finished a batch of layers, None of one that did not.

        Raises QuambaError for a damaged file.
        """
        if not (self.path / HIDDEN).exists():
            return None
        states, metadata = self._read(self.path / HIDDEN)
        if not {"layers", "reports"} <= set(metadata):
            raise QuambaError(f"{self.path / HIDDEN} is damaged: start anew without --resume")
        count = int(metadata["layers"])
        layers: list[Layer] = [{} for _ in range(count)]
        parts: dict[tuple[int, str], dict[str, Tensor]] = {}
        for file in sorted(self.path.glob("layers-*.safetensors")):
            for key, tensor in self._read(file)[0].items():
                index, name, part = key.split("|")
                parts.setdefault((int(index), name), {})[part] = tensor
        for (index, name), tensors in parts.items():
            if index < count:  # a later batch was cut off before its hidden states
                layers[index][name] = RoundedWeight(**tensors)
        if not all(layers):
            raise QuambaError(f"{self.path} lacks layers that were finished: start anew without --resume")
        return layers, json.loads(metadata["reports"]), [states[name] for name in sorted(states)]

    def _read(self, file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with safe_open(file, framework="pt") as tensors:
                found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                return found, tensors.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise QuambaError(f"{file} is damaged: {error}; start anew without --resume") from error
