"""Builds the libraries of csrc/cuda: quamba._C_cuda with nvcc, quamba._C_emulated (the same kernels) with C++.

As a program it is `make cuda-check`: compiles every .cu for ARCHITECTURES, no GPU needed, warnings being errors, and
leaves the registers and spills of each kernel in a log. `python -m tools.build_cuda --library _C_emulated` builds what
the tests of these kernels run.

QUAMBA_CUDA=1 builds _C_cuda and makes nvcc a requirement, 0 leaves it out; without it, a GPU and nvcc decide: compiling
takes minutes. QUAMBA_EMULATED=1, which `make test` sets, builds _C_emulated. What an earlier build has made is
kept up to date. TORCH_CUDA_ARCH_LIST names the architectures of _C_cuda; MAX_JOBS limits parallel compilations. An
object is compiled again when its command, its compiler, torch, or a file that it includes has changed.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from setuptools import Extension
from torch.utils.cpp_extension import BuildExtension

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "quamba"
SOURCES = ROOT / "csrc/cuda"
OBJECTS = ROOT / "build/cuda"  # of both libraries: what cuda-check has compiled, a build need not compile again
DRIVER = Path("/proc/driver/nvidia/version")
ARCHITECTURES = "8.0;9.0+PTX"
TORCH = Path(torch.__file__).parent
INCLUDES = ["-isystem", str(TORCH / "include"), "-isystem", sysconfig.get_paths()["include"]]
COMMON = ["-std=c++20", "-O3", "-DNDEBUG"]
# no fast-math, and no multiply-add that the source does not spell: results are those of the CPU's kernels
NVCC = [*COMMON, "--fmad=false", "-Xcompiler=-Wall,-fPIC,-fvisibility=hidden"]
CXX = [*COMMON, "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Werror=return-type", "-Wno-unknown-pragmas", "-fPIC"]
# one place per library for what templates and inline functions keep: see __shared__ in emulation.h; vectors that lie
# where a GPU cannot read them are errors (emulation.cpp), though a CPU can
EMULATED = [
    *CXX,
    *("-DQUAMBA_EMULATED", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-fsanitize=alignment", "-fno-sanitize-recover=alignment"),
]
LINKED = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


class BuildError(Exception):
    """A compiler is missing, or refused a file."""


@dataclass(frozen=True)
class Unit:
    """One compilation: the command without its output, and where that goes."""

    command: tuple[str, ...]
    target: Path

    def run(self) -> str:
        """The compiler's messages; those of last time where nothing has changed. Raises BuildError."""
        record, log = self.target.with_suffix(".d"), self.target.with_suffix(".log")
        line = f"{shlex.join(self.command)}  # {toolchain(self.command[0])}"
        if self._is_current(line):
            return log.read_text()
        self.target.parent.mkdir(parents=True, exist_ok=True)
        fresh, started = self.target.with_suffix(f".{os.getpid()}.o"), time.time()
        command = [*self.command, "-MMD", "-MF", str(record), "-o", str(fresh)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=ROOT
        )
        if done.returncode:
            raise BuildError(f"{line}\n{done.stdout}")
        log.write_text(f"{line}\n{done.stdout}")
        os.utime(fresh, (started, started))  # what is edited from here on is newer
        os.replace(fresh, self.target)
        return log.read_text()

    def _is_current(self, line: str) -> bool:
        record, log = self.target.with_suffix(".d"), self.target.with_suffix(".log")
        if not (self.target.exists() and record.exists() and log.exists()):
            return False
        if log.read_text().split("\n", 1)[0] != line:
            return False
        inputs = shlex.split(record.read_text().replace("\\\n", " ").partition(":")[2])
        built = self.target.stat().st_mtime
        return all((ROOT / path).exists() and (ROOT / path).stat().st_mtime <= built for path in inputs)


@cache
def toolchain(compiler: str) -> str:
    """The versions of torch and of the compiler: what an object depends on beside its command and our sources."""
    asked = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return f"torch {torch.__version__}, {' '.join(asked.stdout.split())}"


def compile_units(units: list[Unit]) -> str:
    """Their messages in order, compiled MAX_JOBS at a time. Raises BuildError of the first that fails."""
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(jobs) as pool:
        return "\n".join(pool.map(Unit.run, units))


def switch(name: str, off: str, on: str) -> bool | None:
    """What an environment variable that is 0 or 1 asks for; None where it is not set. Raises BuildError on others."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name} must be 0 ({off}) or 1 ({on}), got {value!r}")
    return None if value == "" else value == "1"


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is here: torch sees one, or the driver does, which a torch for CPUs cannot ask."""
    return torch.cuda.is_available() or DRIVER.exists()


def is_built(name: str) -> bool:
    """Whether quamba/ has a library of that name, which a build that left it as it is would make a stale one."""
    return any(PACKAGE.glob(f"{name}.*so"))


def find_nvcc() -> str | None:
    """nvcc, where a build with CUDA kernels is wanted and possible. Raises BuildError if it is required and missing."""
    required = switch("QUAMBA_CUDA", "no CUDA kernels", "required")
    wanted = has_gpu() or is_built("_C_cuda") if required is None else required
    nvcc = shutil.which("nvcc") if wanted else None
    if required and nvcc is None:
        raise BuildError("QUAMBA_CUDA=1 needs nvcc on PATH: install the CUDA toolkit, 12.0 or newer")
    return nvcc


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's flags for a list like TORCH_CUDA_ARCH_LIST's, '8.0;9.0a+PTX'. Raises BuildError naming a wrong entry."""
    flags = []
    for entry in architectures.replace(";", " ").split():
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None or int(match[1]) < 8:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {entry!r} is no compute capability from 8.0 on, like 9.0 or 9.0+PTX"
            )
        number = match[1] + match[2] + match[3]
        code = f"[sm_{number},compute_{number}]" if match[4] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    if not flags:
        raise BuildError("TORCH_CUDA_ARCH_LIST is empty")
    return flags


def cuda_units(nvcc: str, architectures: str) -> list[Unit]:
    """A compilation by nvcc of every .cu file."""
    command = (nvcc, *NVCC, "-Xptxas=-v", *INCLUDES, *architecture_flags(architectures), "-c")
    return [
        Unit((*command, str(path.relative_to(ROOT))), OBJECTS / "nvcc" / f"{path.stem}.o")
        for path in sorted(SOURCES.glob("*.cu"))
    ]


def cxx_unit(source: Path, flags: list[str], directory: str) -> Unit:
    """A compilation by the C++ compiler, whatever the file is called."""
    command = (*cxx(), *flags, *INCLUDES, "-c", "-x", "c++", str(source.relative_to(ROOT)))
    return Unit(command, OBJECTS / directory / f"{source.stem}.o")


def cxx() -> list[str]:
    """The C++ compiler."""
    return shlex.split(os.environ.get("CXX") or "c++")


class KernelLibrary(Extension):
    """`_C_cuda` or `_C_emulated`; its sources are csrc/cuda, its build is `build` below."""

    def __init__(self, name: str, nvcc: str | None = None) -> None:
        super().__init__(name, sources=[])
        self.nvcc = nvcc

    def build(self, target: Path) -> None:
        """Compiles what is not compiled, links `target`. Raises BuildError."""
        module = SOURCES / "module.cpp"
        if self.nvcc:
            architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
            units = [*cuda_units(self.nvcc, architectures), cxx_unit(module, CXX, "nvcc")]
            # the runtime is linked statically: the library loads where no CUDA is installed
            link = [self.nvcc, "-shared", "-cudart=static", "-Xlinker=--no-as-needed", "-Xlinker=--exclude-libs=ALL"]
        else:
            sources = [*sorted(SOURCES.glob("*.cu")), SOURCES / "emulation.cpp", module]
            units = [cxx_unit(source, EMULATED, "emulated") for source in sources]
            link = [*cxx(), "-shared", "-Wl,--no-as-needed"]
        print(compile_units(units))
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([*link, *(str(unit.target) for unit in units), *LINKED, "-o", str(target)], check=True)


class BuildKernels(BuildExtension):
    """torch's build_ext, and ours for kernel libraries."""

    def build_extension(self, ext: Extension) -> None:
        if isinstance(ext, KernelLibrary):
            try:
                ext.build(Path(self.get_ext_fullpath(ext.name)))
            except BuildError as error:
                sys.exit(f"error: {error}")
        else:
            super().build_extension(ext)


def libraries() -> list[Extension]:
    """The kernel libraries to build here: `_C_cuda` and `_C_emulated`, each where it is asked for (see above)."""
    try:
        nvcc = find_nvcc()
        asked = switch("QUAMBA_EMULATED", "no emulation", "build it, for tests")
    except BuildError as error:
        sys.exit(f"error: {error}")
    emulated = is_built("_C_emulated") if asked is None else asked
    found = [KernelLibrary("quamba._C_emulated")] if emulated else []
    return [*found, KernelLibrary("quamba._C_cuda", nvcc)] if nvcc else found


def check(nvcc: str, log: Path) -> str:
    """Compiles every .cu and writes what ptxas says of each kernel to `log`; the summary. Raises BuildError."""
    units = cuda_units(nvcc, ARCHITECTURES)
    report = compile_units(units)
    warnings = [line for line in report.splitlines() if re.search(r"\bwarning\b", line, re.IGNORECASE)]
    if warnings:  # errors here alone: a newer compiler's must not stop a user's build
        raise BuildError("\n".join(["the CUDA kernels compile with warnings:", *warnings]))
    log.write_text(report)
    spills = re.findall(r"[1-9]\d* bytes spill stores", report)
    kernels = report.count("Compiling entry function")  # of every architecture
    return f"{len(units)} files compiled for {ARCHITECTURES}: {kernels} kernels, {len(spills)} spill registers ({log})"


def main() -> None:
    """Compile the CUDA kernels to see that they compile, or build one library of them beside the others."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--log", type=Path, default=ROOT / "build/cuda-check.log", help="registers and spills")
    parser.add_argument("--library", choices=["_C_cuda", "_C_emulated"], help="build quamba/LIBRARY, and nothing else")
    arguments = parser.parse_args()
    nvcc = shutil.which("nvcc")
    if nvcc is None and arguments.library != "_C_emulated":
        sys.exit("cuda-check needs nvcc on PATH: install the CUDA toolkit, 12.0 or newer (a GPU is not needed)")
    try:
        if arguments.library is None:
            print(check(nvcc, arguments.log))
        else:
            target = PACKAGE / (arguments.library + sysconfig.get_config_var("EXT_SUFFIX"))
            KernelLibrary(arguments.library, nvcc if arguments.library == "_C_cuda" else None).build(target)
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
