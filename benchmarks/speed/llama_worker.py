"""The worker of llama.cpp, over its C interface; runs in .venv-bench: `python -m benchmarks.speed.llama_worker`.

Dims: B sequences, L prompt tokens, V vocabulary.
"""

import ctypes

import llama_cpp
import numpy as np

from .llama_buffers import avoid_amx, needs_other_buffers
from .serve import serve

TOKENS_PER_BATCH = 512  # both n_batch and n_ubatch: llama.cpp's own default for the latter


class LlamaModel:
    """A GGUF file and the context of the sequences that are read."""

    def __init__(self, path: str, scheme: str, threads: int):
        self.path, self.scheme, self.threads = path, scheme, threads
        self.model, self.context, self.sizes = None, None, None
        self.without_amx = False
        self.batch = llama_cpp.llama_batch_init(TOKENS_PER_BATCH, 0, 1)
        self._load()

    def _load(self) -> None:
        parameters = llama_cpp.llama_model_default_params()
        overrides = avoid_amx(parameters, self.scheme) if self.without_amx else None
        self.model = llama_cpp.llama_model_load_from_file(self.path.encode(), parameters)
        del overrides  # had to live until here
        if not self.model:
            raise RuntimeError("llama.cpp could not load the file: its messages are in the log")

    def _free_context(self) -> None:
        if self.context:
            llama_cpp.llama_free(self.context)
        self.context, self.sizes = None, None

    def reset(self, batch: int, prompt: int, steps: int) -> None:
        """Forgets all sequences; a context is made where the last one is of other sizes."""
        sizes = (batch, prompt + steps)
        if self.without_amx != needs_other_buffers(batch):
            self._free_context()
            llama_cpp.llama_model_free(self.model)
            self.without_amx = not self.without_amx
            self._load()
        if self.sizes != sizes:
            self._free_context()
            self.context, self.sizes = self._new_context(*sizes), sizes
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def _new_context(self, batch: int, length: int) -> llama_cpp.llama_context_p:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = batch * length
        parameters.n_batch = parameters.n_ubatch = TOKENS_PER_BATCH
        parameters.n_seq_max = batch
        parameters.n_threads = parameters.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not context:
            raise RuntimeError("llama.cpp could not make a context: its messages are in the log")
        return context

    def _decode(self, tokens: np.ndarray, last: bool) -> None:
        """Reads int64 [B, L], B x L at most a batch; with `last` the logits of the last position are computed."""
        length = tokens.shape[1]
        batch = self.batch
        for index, (sequence, offset) in enumerate(np.ndindex(*tokens.shape)):
            batch.token[index] = int(tokens[sequence, offset])
            batch.pos[index] = self.position + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = last and offset == length - 1
        batch.n_tokens = tokens.size
        if code := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}: its messages are in the log")
        self.position += length

    def _logits(self, batch: int, length: int) -> np.ndarray:
        """float32 [B, V] of the last position of each sequence."""
        rows = []
        for sequence in range(batch):
            pointer = llama_cpp.llama_get_logits_ith(self.context, sequence * length + length - 1)
            vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
            rows.append(np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (vocabulary,)))
        return np.stack(rows)

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B, L] -> float32 logits [B, V] of the last position."""
        batch, length = tokens.shape
        stride = TOKENS_PER_BATCH // batch
        for start in range(0, length, stride):
            self._decode(tokens[:, start : start + stride], last=start + stride >= length)
        return self._logits(batch, (length - 1) % stride + 1)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """int64 [B] -> float32 logits [B, V]."""
        self._decode(tokens[:, None], last=True)
        return self._logits(len(tokens), 1)


def main() -> None:
    """Serves GGUF files."""
    llama_cpp.llama_backend_init()
    features = llama_cpp.llama_print_system_info().decode().strip(" |")
    serve(LlamaModel, {"llama-cpp-python": llama_cpp.__version__, "llama.cpp built for": features})


if __name__ == "__main__":
    main()
