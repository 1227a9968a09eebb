"""Builds quamba._C, the CPU kernels. Metadata is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent

setup(
    ext_modules=[
        CppExtension(
            "quamba._C",
            sources=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp")),
            depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[hi]*")),
            # -fopenmp only to compile: at::parallel_for must run in the OpenMP runtime that torch has loaded
            # -ffp-contract=off: kernels spell their fused multiply-adds, see vec.h
            extra_compile_args=[
                "-O3",
                "-fopenmp",
                "-fno-math-errno",
                "-ffp-contract=off",
                "-Wall",
                "-Werror=return-type",
                "-Wno-psabi",
            ],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
