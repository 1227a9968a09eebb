"""The worker of ours and of transformers; runs in .venv: `python -m benchmarks.speed.torch_worker quamba`.

Dims: B sequences, L prompt tokens, V vocabulary.
"""

import sys

if sys.argv[1:2] == ["quamba"]:
    import quamba  # before torch, as its users do: it sets how OpenMP's threads wait

# isort: split
import numpy as np
import torch
import transformers

from .serve import Model, serve


class QuambaModel:
    """A checkpoint, float or quantized, in quamba's decoder."""

    def __init__(self, path: str):
        from quamba.generation.decoder import Decoder

        model, _ = quamba.load(path)
        self.decoder = Decoder(model)

    def reset(self, batch: int, prompt: int, steps: int) -> None:
        """Drops the states; the decoder takes the sizes from what it reads."""
        self.decoder.reset()

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B, L] -> float32 logits [B, V] of the last position."""
        return self.decoder.prefill(torch.from_numpy(tokens)).numpy()

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B] -> float32 logits [B, V]."""
        return self.decoder.step(torch.from_numpy(tokens)).numpy()


class TransformersModel:
    """A float checkpoint as transformers runs it, in one dtype."""

    def __init__(self, path: str, dtype: torch.dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        self.model = model.eval().requires_grad_(False)
        self.cache = None

    def reset(self, batch: int, prompt: int, steps: int) -> None:
        """Drops the states."""
        self.cache = None

    @torch.inference_mode()
    def _forward(self, tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(tokens)
        output = self.model(ids, cache_params=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.cache_params
        return output.logits[:, -1].float().numpy()  # [B, 1, V] -> [B, V]

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B, L] -> float32 logits [B, V] of the last position."""
        return self._forward(tokens)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B] -> float32 logits [B, V]."""
        return self._forward(tokens[:, None])  # [B] -> [B, 1]


def load_quamba(path: str, scheme: str, threads: int) -> Model:
    """Ours; the checkpoint says what it is quantized to."""
    torch.set_num_threads(threads)
    return QuambaModel(path)


def load_transformers(path: str, scheme: str, threads: int) -> Model:
    """transformers' own; `scheme` names the dtype."""
    torch.set_num_threads(threads)
    return TransformersModel(path, getattr(torch, scheme))


def main() -> None:
    """Serves the system that the argument names."""
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    if sys.argv[1] == "quamba":
        serve(load_quamba, versions | {"quamba": quamba.__version__})
    else:
        serve(load_transformers, versions)


if __name__ == "__main__":
    main()
