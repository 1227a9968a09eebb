"""Builds quamba._C, the CPU kernels, and libraries of csrc/cuda (see tools/build_cuda.py). Metadata: pyproject.toml."""

import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CppExtension

ROOT = Path(__file__).parent
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[hi]*"))
sys.path.insert(0, str(ROOT / "tools"))

from build_cuda import BuildKernels, libraries, switch  # noqa: E402

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
sanitized = switch("QUAMBA_SANITIZE", "as users run them", "with AddressSanitizer and UndefinedBehaviorSanitizer")

setup(
    ext_modules=[
        CppExtension(
            "quamba._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp")),
            # other flags or another torch make other objects
            depends=["setup.py", torch.version.__file__, *HEADERS],
            # -fopenmp only to compile: at::parallel_for must run in the OpenMP runtime that torch has loaded
            # -ffp-contract=off: kernels spell their fused multiply-adds, see vec-inl.h
            # -g0: Python's own flags ask for debugging symbols, which take as long as the compilation itself
            # QUAMBA_SANITIZE=1: what make sanitize runs (tools/sanitize.py)
            extra_compile_args=[
                *(["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZE] if sanitized else ["-O3", "-g0"]),
                "-fopenmp",
                "-fno-math-errno",
                "-ffp-contract=off",
                "-Wall",
                "-Werror=return-type",
                "-Wno-psabi",
            ],
            extra_link_args=SANITIZE if sanitized else [],
        ),
        *libraries(),
    ],
    cmdclass={"build_ext": BuildKernels},
)
