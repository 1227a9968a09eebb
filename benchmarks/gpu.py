"""TPOT and TTFT of quantized models on a GPU beside float16, and what share of the memory's speed decoding reaches.

    python -m benchmarks.gpu                                       # every shape and system: half an hour
    python -m benchmarks.gpu --shapes 130m --systems fp16,w8a8 --rounds 3
    python -m benchmarks.gpu --systems w8a8-library,w8a8-own       # which of them should multiply a prompt's rows
    python -m benchmarks.gpu --device cpu --shapes tiny            # tries the script where no GPU is

Models are random: speed depends on their sizes alone. TPOT: milliseconds of a decoded token, batch 1, as a CUDA graph
where the model can be one; TTFT: of a prompt up to its first token. GB/s: the bytes of weights and states that a token
reads, over its time, beside a copy on the same device, which reads and writes.

Dims: B sequences, L prompt tokens, V vocabulary.
"""

import argparse
import datetime
import gc
import json
import sys
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

import quamba
from benchmarks.speed.make_model import random_model
from benchmarks.speed.shapes import SHAPES, VOCAB, Shape
from quamba import QuambaError, ops
from quamba.evaluation.latency import TPOT, TTFT, Spread, random_prompt, time_run
from quamba.generation.decoder import Decoder
from quamba.generation.recorded_step import RecordedStep
from quamba.storage.files import write_text_atomically
from quamba.study.markdown import markdown_table
from quamba.weights.method import WeightMethod

GPU_SHAPES = {
    shape.name: shape
    for shape in (
        SHAPES["130m"],
        Shape("2.8b", 2560, 64, max_tokens=2048, decode_steps=64),
        Shape("mamba2-2.7b", 2560, 64, max_tokens=2048, decode_steps=64, model_type="mamba2"),
        Shape("tiny", 64, 2, max_tokens=2048, decode_steps=4),
    )
}
SYSTEMS = ("fp16", "w8a8", "w4a8", "w4a16")
FORCED = {f"w8a8-{name}": name for name in ops.INT8_PRODUCTS}  # where w8a8 lets sizes decide
SYSTEMS_HELP = f"of {', '.join(SYSTEMS)}; not by default: {', '.join(FORCED)}"
COPY_BYTES = 1 << 30
CALIBRATION = (4, 64)  # windows, tokens: the scales have to be sane only


class FloatDecoder:
    """transformers' own model in float16, with mamba-ssm's kernels where they are installed, used as a `Decoder` is."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.reset()

    def reset(self) -> None:
        """Forgets the sequence."""
        self._cache = DynamicCache(config=self.model.config)
        self._recorded = RecordedStep(self._step)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> Tensor:
        """int64 [1, L] -> logits [1, V] of the last position."""
        return self.model(ids, cache_params=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def step(self, ids: Tensor) -> Tensor:
        """int64 [1] -> logits [1, V]."""
        return self._recorded(ids, self._states)

    def _step(self, ids: Tensor) -> Tensor:
        return self.prefill(ids[:, None])

    def _states(self) -> list[Tensor]:
        layers = self._cache.layers
        return [state for layer in layers for state in (layer.conv_states[0], layer.recurrent_states[0])]


def decoder_of(system: str, shape: Shape, device: torch.device) -> FloatDecoder | Decoder:
    """A random model of the shape on the device, as that system runs it."""
    model = random_model(shape)
    if system == "fp16":
        return FloatDecoder(model.to(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32))
    windows = torch.randint(VOCAB, CALIBRATION, generator=torch.Generator().manual_seed(0))
    model = quamba.quantize(
        model.to(device),
        None,
        scheme=system.partition("-")[0],
        weights=WeightMethod("rtn"),  # speed does not depend on which integers there are
        calibration=None if system.endswith("a16") else windows,
        quantize_embedding=True,
        quantize_lm_head=True,
        progress=False,
    )
    return Decoder(model)


def tensor_bytes(module: nn.Module) -> dict[int, int]:
    """Bytes by address of the tensors that a module holds."""
    return {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}


def bytes_of_token(model: nn.Module) -> int:
    """Bytes of the weights that a token reads: all but the embedding, of which it reads a row. A head without tensors
    of its own reads the embedding's."""
    head = model.get_output_embeddings()
    tensors, head_tensors = tensor_bytes(model), tensor_bytes(getattr(head, "table", head))
    unread = tensor_bytes(model.get_input_embeddings()).keys() - head_tensors.keys()
    return sum(size for address, size in tensors.items() if address not in unread)


def copy_gigabytes_per_second(device: torch.device) -> float:
    """What a copy reads and writes in a second, the best of ten."""
    source = torch.empty(COPY_BYTES if device.type == "cuda" else COPY_BYTES // 16, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        target[-1:].cpu()  # waits for it
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds) / 1e9


def measure(system: str, shape: Shape, prompts: list[int], rounds: int, device: torch.device) -> dict:
    """A row: the median milliseconds of each figure, and GB/s of decoding."""
    decoder = decoder_of(system, shape, device)
    row = {"system": system, "shape": shape.name}
    for length in prompts:
        prompt = random_prompt(VOCAB, 1, length, seed=0).to(device)
        steps = shape.decode_steps if length == prompts[0] else 0
        with ops.force_cuda_int8_product(FORCED.get(system, ops.cuda_int8_product())):
            runs = [time_run(decoder, prompt, steps) for _ in range(rounds + 1)][1:]  # the first warms up
        row[f"ttft_{length}_ms"] = 1e3 * Spread.of([run[TTFT] for run in runs]).median
        if steps:
            row["tpot_ms"] = 1e3 * Spread.of([run[TPOT] for run in runs]).median
    states = sum(state.nbytes for layer in decoder._cache.layers for state in (*layer.recurrent_states.values(),))
    row["token_bytes"] = bytes_of_token(decoder.model) + 2 * states
    row["gb_s"] = row["token_bytes"] / row["tpot_ms"] / 1e6
    return row


def markdown(rows: list[dict], prompts: list[int], copy_gb_s: float) -> str:
    """The rows as a table, each beside float16 of its shape where that was measured."""
    header = ["shape", "system", "TPOT, ms", *[f"TTFT {length}, ms" for length in prompts], "GB/s", "of a copy"]
    base = {row["shape"]: row for row in rows if row["system"] == "fp16"}

    def cell(row: dict, figure: str) -> str:
        own, other = row[figure], base.get(row["shape"])
        beside = "" if other is None or other is row else f" ({other[figure] / own:.2f}x)"
        return f"{own:.3g}{beside}"

    lines = [header]
    for row in rows:
        figures = ["tpot_ms", *[f"ttft_{length}_ms" for length in prompts]]
        rate = [f"{row['gb_s']:.0f}", f"{100 * row['gb_s'] / copy_gb_s:.0f} %"]
        lines.append([row["shape"], row["system"], *[cell(row, figure) for figure in figures], *rate])
    return markdown_table(lines)


def names(allowed) -> "argparse._ActionType":
    """The type of an option that lists some of `allowed`, separated by commas."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return chosen

    return parse


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = [name for name in GPU_SHAPES if name != "tiny"]
    parser.add_argument("--shapes", type=names(GPU_SHAPES), default=shapes, help=f"of {', '.join(GPU_SHAPES)}")
    parser.add_argument("--systems", type=names((*SYSTEMS, *FORCED)), default=list(SYSTEMS), help=SYSTEMS_HELP)
    parser.add_argument("--prompts", default="512,1024,2048", help="tokens of a prompt (512,1024,2048)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each figure (5)")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script (cuda)")
    parser.add_argument("--output", type=Path, default=Path("build/bench/gpu.json"), help="the rows, JSON")
    return parser.parse_args()


def main() -> None:
    """Measures every system at every shape, one model in memory at a time, and writes the rows after each."""
    args = arguments()
    try:
        prompts = [int(length) for length in args.prompts.split(",")]
        device = ops.check_device(args.device)
    except (QuambaError, ValueError) as error:
        sys.exit(f"benchmarks.gpu: {error}")
    on = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    copy_gb_s, rows = copy_gigabytes_per_second(device), []
    about = {"device": on, "date": str(datetime.date.today()), "copy_gb_s": copy_gb_s}
    about |= {"torch": torch.__version__, "transformers": transformers.__version__}
    for shape in args.shapes:
        for system in args.systems:
            rows.append(measure(system, GPU_SHAPES[shape], prompts, args.rounds, device))
            print(json.dumps(rows[-1]), flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(args.output, json.dumps({**about, "rows": rows}, indent=1))
            gc.collect()
    print(f"\n{about['date']}, {on}, a copy at {copy_gb_s:.0f} GB/s, torch {torch.__version__}\n")
    print(markdown(rows, prompts, copy_gb_s))


if __name__ == "__main__":
    main()
