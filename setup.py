"""Builds quamba._C, the CPU kernels, and libraries of csrc/cuda (see tools/build_cuda.py). Metadata: pyproject.toml."""

import sys
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CppExtension

ROOT = Path(__file__).parent
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[hi]*"))
sys.path.insert(0, str(ROOT / "tools"))

from build_cuda import BuildKernels, libraries  # noqa: E402

setup(
    ext_modules=[
        CppExtension(
            "quamba._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp")),
            # other flags or another torch make other objects
            depends=["setup.py", torch.version.__file__, *HEADERS],
            # -fopenmp only to compile: at::parallel_for must run in the OpenMP runtime that torch has loaded
            # -ffp-contract=off: kernels spell their fused multiply-adds, see vec.h
            # -g0: Python's own flags ask for debugging symbols, which take as long as the compilation itself
            extra_compile_args=[
                "-O3",
                "-g0",
                "-fopenmp",
                "-fno-math-errno",
                "-ffp-contract=off",
                "-Wall",
                "-Werror=return-type",
                "-Wno-psabi",
            ],
        ),
        *libraries(),
    ],
    cmdclass={"build_ext": BuildKernels},
)
