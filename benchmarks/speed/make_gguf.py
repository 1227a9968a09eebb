"""Writes the GGUF files of a float checkpoint; runs in .venv-bench.

python -m benchmarks.speed.make_gguf build/bench/130m/float build/bench/130m Q8_0 Q4_0
"""

import argparse
import ctypes
import json
import os
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

from .gguf_names import convert_tensor, metadata, tensor_name

FILE_TYPES = ("Q8_0", "Q4_0", "Q4_K_M")  # that llama.cpp makes of a float file


def write_float(checkpoint: Path, target: Path) -> None:
    """Every tensor of a transformers checkpoint in float32, under the names that llama.cpp knows."""
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(target, config["model_type"])
    for key, value in metadata(config).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no mapping)
                if (renamed := tensor_name(name)) is not None:
                    converted = convert_tensor(name, tensors.get_tensor(name), config["model_type"])
                    writer.add_tensor(renamed, np.ascontiguousarray(converted))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, file_type: str) -> None:
    """A quantized copy, as llama.cpp makes them: it chooses the format of each tensor itself."""
    import llama_cpp  # only .venv-bench has it, and float files need none

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    parameters.nthread = os.cpu_count()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise SystemExit(f"llama.cpp could not write {target.name}: its messages stand above")


def main() -> None:
    """One file per type, each whole or absent; the float32 one goes unless it was there or F32 is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a transformers checkpoint")
    parser.add_argument("directory", type=Path, help="folder for the files")
    parser.add_argument("types", nargs="+", choices=["F32", *FILE_TYPES])
    args = parser.parse_args()
    temporary = args.directory / "partial.gguf"
    source = args.directory / "F32.gguf"
    kept = "F32" in args.types or source.exists()
    if not source.exists():
        write_float(args.checkpoint, temporary)
        temporary.replace(source)
    for file_type in args.types:
        if file_type != "F32":
            quantize(source, temporary, file_type)
            temporary.replace(args.directory / f"{file_type}.gguf")
    if not kept:
        source.unlink()


if __name__ == "__main__":
    main()
