"""Memory on a card: more elements than 32 bits can count, misaligned pointers, no memory kept."""

from __future__ import annotations

import fcntl
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import ops
from tests.cuda.calls import CASES, BoundCall, check_same, has_product, orders
from tests.ops.suite import OpCase, check_call

pytestmark = pytest.mark.cuda

GIB = 1 << 30
per_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name, indirect=True)


@pytest.fixture
def enough_memory() -> Iterator[None]:
    """Lets one test run at a time, however many processes run the suite."""
    with (Path(tempfile.gettempdir()) / "aigc_ext_large_tensors.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < 26 * GIB:
            pytest.skip(f"needs 26 GiB of free device memory, and {free / GIB:.1f} GiB are free")
        yield
        torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((2, 4, 2**28 + 3), 1),  # the bias is constant on rows of which each fits, not their sum
        ((2**25 + 5, 65), 1),  # the bias runs along the rows
        ((1, 1, 2**31 + 9), 1),  # one row alone is too long
    ],
    ids=["rows", "columns", "one row"],
)
def test_more_than_two_to_the_31_elements(
    enough_memory: None, shape: tuple[int, ...], dim: int, device: torch.device
) -> None:
    x = torch.empty(shape, dtype=torch.float16, device=device)
    assert x.numel() > 2**31
    x.normal_(generator=torch.Generator(device).manual_seed(1)).requires_grad_()
    b = torch.linspace(-1, 1, shape[dim], device=device).half().requires_grad_()
    options: dict[str, Any] = {"dim": dim, "act": "lrelu", "alpha": 0.25, "gain": 1.0, "clamp": 2.0}
    y = ops.bias_act(x, b, **options)
    dy = torch.full((1, 1, 1), 2.0**-16, dtype=torch.float16, device=device).expand(shape)
    dx, db = torch.autograd.grad(y, (x, b), dy if len(shape) == 3 else dy[0].expand(shape))

    # The same in parts that are small enough, which the rest of the suite holds to the reference.
    sums = torch.zeros(shape[dim], dtype=torch.float64, device=device)
    for part, part_dx, part_y, channels in parts(shape, x.detach(), dx, y.detach()):
        leaf = part.clone().requires_grad_()
        expected = ops.bias_act(leaf, b.detach()[channels], **options)
        assert torch.equal(part_y, expected)
        (gradient,) = torch.autograd.grad(expected, leaf, torch.full_like(expected, 2.0**-16))
        assert torch.equal(part_dx, gradient)
        rest = [d for d in range(part.dim()) if d != dim]
        sums[channels] += part_dx.sum(rest, dtype=torch.float64)
    torch.testing.assert_close(db.double(), sums, rtol=2 * torch.finfo(torch.float16).eps, atol=0)


def parts(shape: tuple[int, ...], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Views of about 2^26 elements that make up the tensors, and the channels that they have."""
    if len(shape) == 2:
        rows = (1 << 26) // shape[1]
        for start in range(0, shape[0], rows):
            yield *(t[start : start + rows] for t in tensors), slice(None)
    else:
        for n in range(shape[0]):
            for c in range(shape[1]):
                for start in range(0, shape[2], 1 << 26):
                    piece = (slice(n, n + 1), slice(c, c + 1), slice(start, start + (1 << 26)))
                    yield *(t[piece] for t in tensors), slice(c, c + 1)


@per_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_misaligned_inputs(case: OpCase, dtype: torch.dtype) -> None:
    for scale in (1, 3):
        check_call(case, case.large_call(scale), dtype, "misaligned", seed=2)
    if has_product(case):
        return
    for order in orders(case):
        aligned, moved = BoundCall(case, order, dtype), BoundCall(case, order, dtype, "misaligned")
        assert all(t.data_ptr() % 16 for t in moved.inputs.values() if t is not None)
        check_same(case, moved(), aligned(), f"misaligned, order {order}")


@per_case
def test_calls_leave_no_device_memory_behind(case: OpCase) -> None:
    run = BoundCall(case, max(orders(case)))

    def in_use() -> int:
        run()
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(case.device)

    before = in_use()
    for _ in range(5):
        run()
    assert in_use() == before
