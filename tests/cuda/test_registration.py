"""Every op has a CUDA kernel, compiled for GPUs and emulated; a build without them says how to get them."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from quamba import ops
from quamba.ops.emulated import has_emulated_kernel
from quamba.ops.schemas import SCHEMAS

needs_cuda_build = pytest.mark.skipif(find_spec("quamba._C_cuda") is None, reason="built without nvcc")


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_has_an_emulated_kernel(name):
    assert has_emulated_kernel(name)


@needs_cuda_build
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_has_a_cuda_kernel_where_nvcc_built_it(name):
    assert ops.has_kernel(name, "cuda")


def test_import_quamba_loads_no_emulation():
    code = "import sys, quamba; print('quamba._C_emulated' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_a_library_that_does_not_load_is_an_error_that_says_so():
    code = """
import importlib.machinery, sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "quamba._C_cuda" else None
    def create_module(self, spec):
        raise ImportError("undefined symbol: cudaNothing")
    def exec_module(self, module): ...
sys.meta_path.insert(0, Broken())
import quamba.ops
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "CUDA kernels do not load (undefined symbol: cudaNothing)" in run.stderr.splitlines()[-1]


def _build(tmp_path, **env: str) -> str:
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    assert run.returncode != 0
    return run.stderr.splitlines()[-1]


def test_cuda_kernels_that_are_required_need_nvcc(tmp_path):
    assert "QUAMBA_CUDA=1 needs nvcc on PATH" in _build(tmp_path, QUAMBA_CUDA="1", PATH=str(tmp_path))


def test_a_wrong_switch_is_refused_by_name(tmp_path):
    assert re.search(r"QUAMBA_CUDA must be 0 .* got 'yes'", _build(tmp_path, QUAMBA_CUDA="yes"))


def test_architectures_are_those_of_torchs_list():
    from tools.build_cuda import BuildError, architecture_flags

    assert architecture_flags("8.0;9.0a+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=[sm_90a,compute_90a]",
    ]
    with pytest.raises(BuildError, match=r"'7\.5' is no compute capability from 8\.0 on"):
        architecture_flags("8.0 7.5")


def test_a_build_without_cuda_kernels_refuses_cuda_tensors_and_says_how_to_build():
    """Dispatched as a CUDA tensor's op is; the reference, which would serve any device, does not run."""
    code = """
import importlib.util, torch
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "quamba._C_cuda" else found(name, *rest)
from torch._subclasses.fake_tensor import FakeTensorMode
from quamba import QuambaError, ops
assert not ops.has_kernel("quantize", "cuda")
try:
    op = torch.ops.quamba.quantize.default
    op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), torch.ones(2), torch.ones(()))
except QuambaError as error:
    print(error)
try:
    with FakeTensorMode():
        ops.check_device("cuda")
except QuambaError as error:
    print(error)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith("quantize met a cuda tensor, and this build has no cuda kernels: build them with")
    assert "no cuda kernels" in lines[1]
    assert "QUAMBA_CUDA=1 python setup.py build_ext --inplace" in lines[1]
