"""Every op has a schema, a fake, a reference and a kernel, and says what runs."""

import os
import subprocess
import sys

import pytest
import torch

from quamba import ops
from quamba.errors import QuambaError
from quamba.ops import reference
from quamba.ops.schemas import FAKES, MAX_CONV_WIDTH, SCHEMAS

from .arguments import valid_arguments


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_of_the_schema_list_has_a_cpu_kernel(name):
    assert ops.has_kernel(name, "cpu"), f"the built extension lacks {name}"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_op_has_a_reference_and_a_fake(name):
    assert callable(getattr(reference, name))
    assert name in FAKES


def test_backends_names_the_instruction_set_of_each_op(capability):
    assert ops.cpu_capability() == capability
    assert ops.backends("cpu") == dict.fromkeys(SCHEMAS, capability)


def test_a_capability_that_the_machine_lacks_is_refused_by_name():
    with pytest.raises(ValueError, match=r"avx9000.*portable"), ops.force_cpu_capability("avx9000"):
        pass


def test_the_environment_forces_a_capability():
    code = "from quamba import ops; print(ops.cpu_capability())"
    env = {**os.environ, "QUAMBA_CPU_CAPABILITY": "portable"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.strip() == "portable"


def test_the_reference_runs_only_when_asked_for():
    code = "from quamba import ops; print(ops.cpu_capability(), *set(ops.backends('cpu').values()))"
    env = {**os.environ, "QUAMBA_REFERENCE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert run.stdout.split() == ["reference", "reference"]


@pytest.mark.parametrize("device", ["cuda", "warp-drive"])
def test_a_device_without_kernels_is_refused_by_name(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(QuambaError, match=device):
        ops.check_device(device)


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_fake_and_kernel_agree(name):
    """torch's own checks: declared mutations are the real ones, and the fake gives the kernel's shapes and dtypes."""
    torch.library.opcheck(
        getattr(torch.ops.quamba, name).default, valid_arguments()[name], test_utils=("test_schema", "test_faketensor")
    )


def test_a_wrong_capability_in_the_environment_is_one_error():
    code = "from quamba import ops; ops.check_device('cpu')"
    env = {**os.environ, "QUAMBA_CPU_CAPABILITY": "avx9000"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert "QuambaError: QUAMBA_CPU_CAPABILITY: CPU capability 'avx9000'" in run.stderr.splitlines()[-1]


def test_the_width_limit_is_the_kernels():
    x = torch.randn(1, 2, 3)
    ops.causal_conv1d(x, torch.randn(3, MAX_CONV_WIDTH), None, None)
    with pytest.raises(ValueError, match="conv width"):
        ops.causal_conv1d(x, torch.randn(3, MAX_CONV_WIDTH + 1), None, None)
