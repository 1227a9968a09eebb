"""The emulation of CUDA's threads itself; what these tests say of instructions, a GPU says too, where there is one."""

import pytest
import torch

probe = torch.ops.quamba_probe


@pytest.mark.parametrize("blocks, threads", [(1, 1), (3, 33), (2, 256), (1, 1024)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_threads_meet_at_a_barrier(device, blocks, threads, dynamic):
    x = torch.randn(blocks, threads, device=device)
    assert torch.equal(probe.reverse(x, dynamic), x.flip(1))


@pytest.mark.parametrize("argument", [0, 1, 3, 8, 16, 31])
@pytest.mark.parametrize("width", [2, 8, 32])
def test_shuffles_follow_the_programming_guide(device, argument, width):
    x = torch.randn(32)
    index, xor, up, down, *_ = probe.warp(x.to(device), argument, width).cpu()
    lanes = torch.arange(32)
    first = lanes // width * width
    assert torch.equal(index, x[first + argument % width])
    sources = torch.where((lanes ^ argument) < first + width, lanes ^ argument, lanes)
    assert torch.equal(xor, x[sources])
    assert torch.equal(up, x[torch.where(lanes - argument < first, lanes, lanes - argument)])
    assert torch.equal(down, x[torch.where(lanes + argument >= first + width, lanes, lanes + argument)])


def test_votes_and_reductions(device):
    x = torch.randn(32)
    *_, votes, total, largest = probe.warp(x.to(device), 0, 32).cpu()
    positive = sum(1 << lane for lane in range(32) if x[lane] > 0)
    assert votes.eq(float(positive >> 8)).all()
    torch.testing.assert_close(total, x.sum().expand(32))
    assert largest.eq(x.max()).all()


def test_int8_products_are_exact(device):
    a, b = (torch.randint(-128, 128, (rows, 32), dtype=torch.int8) for rows in (16, 8))
    c = torch.randint(-1000, 1000, (16, 8), dtype=torch.int32)
    expected = c + (a.double() @ b.double().T).int()
    c = c.to(device)
    probe.mma_s8(a.to(device), b.to(device), c)
    assert torch.equal(c.cpu(), expected)


@pytest.mark.parametrize(
    "name, dtype, k, bits", [("mma_bf16", torch.bfloat16, 16, 8), ("mma_tf32", torch.float32, 8, 11)]
)
def test_float_products_are_those_of_the_rounded_values(device, name, dtype, k, bits):
    """Inputs of `bits` bits of mantissa."""
    a, b = (torch.randn(rows, k).to(dtype) for rows in (16, 8))
    c = torch.randn(16, 8)
    rounded = [mantissa(x.float(), bits) for x in (a, b)]
    expected = c + (rounded[0].double() @ rounded[1].double().T).float()
    c = c.to(device)
    getattr(probe, name)(a.to(device), b.to(device), c)
    torch.testing.assert_close(c.cpu(), expected, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("n, valid", [(1, 1), (5, 5), (5, 3), (2, 0)])
def test_asynchronous_copies_arrive_where_they_are_waited_for(device, n, valid):
    x = torch.randn(n, 4)
    expected = torch.cat([x[:valid], torch.zeros(n - valid, 4)])
    assert torch.equal(probe.copy(x.to(device), valid, False).cpu(), expected)


def test_an_asynchronous_copy_that_is_not_waited_for_shows():
    assert probe.copy(torch.randn(3, 4), 3, True).isnan().all()


def mantissa(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x rounded to so many bits, the leading one included."""
    fraction, exponent = torch.frexp(x)
    return torch.ldexp((fraction * 2**bits).round(), exponent - bits)


def fault(number: int, threads: int = 64) -> torch.Tensor:
    return probe.fault(torch.empty(0), number, threads)


def test_shared_memory_that_nothing_wrote_is_nan():
    assert fault(0).isnan().all()


def test_results_that_nothing_wrote_are_nan():
    assert fault(6)[1::2].isnan().all()


def test_a_barrier_that_a_lane_reaches_alone_is_a_deadlock():
    with pytest.raises(RuntimeError, match=r"deadlock.*\(0, 0, 0\) waits at __syncthreads.*waits for .* __shfl_sync"):
        fault(1)


def test_a_lane_of_the_mask_that_never_comes_is_a_deadlock():
    with pytest.raises(RuntimeError, match=r"deadlock.*\(1, 0, 0\) .* waits for the lanes of its mask in __shfl_sync"):
        fault(2)


def test_a_lane_that_its_own_mask_leaves_out_is_reported():
    with pytest.raises(RuntimeError, match=r"__shfl_sync: a lane calls it .*thread \(16, 0, 0\)"):
        fault(3)


def test_a_missing_barrier_shows():
    reversed_ = torch.arange(63, -1, -1).float()
    assert not torch.equal(fault(4), reversed_)


def test_a_write_beyond_dynamic_shared_memory_is_reported():
    with pytest.raises(RuntimeError, match="beyond the dynamic shared memory"):
        fault(5)


@pytest.mark.parametrize("number", [8, 9, 10])
def test_a_vector_that_lies_between_multiples_of_its_size_is_reported(number):
    with pytest.raises(RuntimeError, match=r"misaligned address .* at .*\.(cu|h):\d+ \(thread \(0, 0, 0\)"):
        fault(number)
    assert torch.equal(fault(6)[::2], torch.tensor([2.0, 34.0]).repeat_interleave(16))  # the next launch works


def test_threads_may_end_before_others_meet():
    expected = torch.tensor([2.0, 34.0]).repeat_interleave(16)
    assert torch.equal(fault(6)[::2], expected)


@pytest.mark.parametrize(
    "number, threads, what", [(7, 64, "1048576 bytes of shared memory"), (0, 1025, "1025 threads")]
)
def test_what_no_gpu_takes_is_refused(number, threads, what):
    with pytest.raises(RuntimeError, match=f"no GPU takes .*{what}"):
        fault(number, threads)


def test_a_launch_works_after_one_that_failed():
    for number in (1, 2, 3):
        with pytest.raises(RuntimeError):
            fault(number)
        assert torch.equal(probe.reverse(torch.arange(64.0)[None], False)[0], torch.arange(63.0, -1, -1))
