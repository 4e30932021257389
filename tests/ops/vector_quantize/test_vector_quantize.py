"""vector_quantize beyond the property suite: ties, near ties, what is not finite, memory, bad arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import decompose, ops
from aigc_ext.ops.vector_quantize import code_rows, code_rows_ref, code_sums, code_sums_ref
from tests.ops.suite import DTYPES, LAYOUTS, seeded, with_layout

ROOT = Path(__file__).parents[3]


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """By differences in float64, code after code."""
    distances = torch.stack([(x.double() - code.double()).square().sum(-1) for code in codebook], -1)
    return distances.argmin(-1)


def shuffled(count: int, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    return order.to(torch.get_default_device())


@pytest.mark.card
def test_the_example_of_the_definition() -> None:
    codes, indices = ops.vector_quantize(
        torch.tensor([[0.9, 0.1], [2.0, 2.1]]), torch.tensor([[2.0, 2.0], [1.0, 0.0], [0.0, 9.0]])
    )
    assert indices.tolist() == [1, 0]
    assert codes.tolist() == [[1.0, 0.0], [2.0, 2.0]]


@pytest.mark.card
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codes", [3, 64, 200])
def test_the_lowest_of_a_tie(dtype: torch.dtype, codes: int) -> None:
    """Codes that are there twice, and rows in the middle of two codes."""
    half = seeded((codes, 5), 1).to(dtype)
    codebook = torch.cat([half, half])[shuffled(2 * codes, 2)]
    _, indices = ops.vector_quantize(half, codebook)
    assert torch.equal(indices, (half[:, None] == codebook).all(2).int().argmax(1))

    places = torch.arange(codes, dtype=torch.float64).mul(2).to(dtype)
    order = shuffled(codes, 3)
    codebook = torch.zeros(codes, 7, dtype=dtype)
    codebook[:, 3] = places[order]
    x = torch.zeros(codes - 1, 7, dtype=dtype)
    x[:, 3] = places[:-1] + 1
    x = x[x[:, 3] % 2 == 1]  # the others are rounded
    place_of = order.argsort()
    lower = place_of[((x[:, 3].double() - 1) / 2).long()], place_of[((x[:, 3].double() + 1) / 2).long()]
    _, indices = ops.vector_quantize(x, codebook)
    assert torch.equal(indices, torch.minimum(*lower))


@pytest.mark.card
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 0.0])
def test_rows_far_from_zero_and_near_to_each_other(dtype: torch.dtype, scale: float) -> None:
    """Their scores are the same but for rounding; of no two is it known which is larger."""
    centre = seeded((6,), 1) * 1000
    x, codebook = (
        (centre + scale * seeded((n, 6), seed)).to(dtype).requires_grad_() for n, seed in ((300, 2), (150, 3))
    )
    codes, indices = ops.vector_quantize(x, codebook)
    assert torch.equal(indices, nearest(x, codebook))
    assert torch.equal(codes, codebook[indices])


@pytest.mark.card
def test_distances_that_overflow_float32() -> None:
    x, codebook = seeded((60, 3), 1).float() * 1e25, seeded((70, 3), 2).float() * 1e25
    assert torch.equal(ops.vector_quantize(x, codebook)[1], nearest(x, codebook))
    codebook[5] *= 1e-25
    assert torch.equal(ops.vector_quantize(x, codebook)[1], nearest(x, codebook))


@pytest.mark.card
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("function", [ops.vector_quantize, ops.vector_quantize_ref])
def test_rows_that_are_not_finite(function: Any, dtype: torch.dtype) -> None:
    x, codebook = seeded((2, 3, 5, 7), 1).to(dtype), seeded((9, 3), 2).to(dtype)
    expected = function(x, codebook)[1]
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = x.clone()
        broken[1, 2, 3, 4] = value
        broken.requires_grad_()
        leaf = codebook.clone().requires_grad_()
        codes, indices = function(broken, leaf)
        assert indices[1, 3, 4] == -1
        assert codes[1, :, 3, 4].isnan().all()
        assert codes.isnan().sum() == 3
        indices = indices.clone()
        indices[1, 3, 4] = expected[1, 3, 4]
        assert torch.equal(indices, expected)
        dx, dcodes = torch.autograd.grad(codes, (broken, leaf), torch.ones_like(codes))
        assert dcodes.sum() == (x.numel() / 3 - 1) * 3  # the row has no part in it
        assert torch.equal(dx, torch.ones_like(x))


@pytest.mark.card
@pytest.mark.parametrize("function", [ops.vector_quantize, ops.vector_quantize_ref])
def test_codes_that_are_not_finite(function: Any) -> None:
    x, codebook = seeded((100, 3), 1).float(), seeded((80, 3), 2).float()
    codebook[70, 1] = float("inf")
    codebook[3, 0] = -float("inf")
    rest = torch.ones(80, dtype=torch.bool)
    rest[[3, 70]] = False
    assert torch.equal(function(x, codebook)[1], rest.nonzero()[:, 0][nearest(x, codebook[rest])])
    codebook[66, 2] = codebook[71, 2] = float("nan")
    codes, indices = function(x, codebook)
    assert (indices == 66).all()
    assert torch.equal(codes.isnan(), codebook[66].isnan().expand(100, 3))
    everywhere = torch.full((4, 3), float("inf"))
    assert (function(x, everywhere)[1] == 0).all()


@pytest.mark.card
@pytest.mark.parametrize("function", [ops.vector_quantize, ops.vector_quantize_ref])
def test_the_gradient_of_x_is_that_of_the_codes(function: Any) -> None:
    """To every order, and that of the codebook is left out if it is detached."""
    x, codebook = seeded((2, 4, 3, 5), 1).requires_grad_(), seeded((6, 4), 2).requires_grad_()
    weights = seeded((2, 4, 3, 5), 3).requires_grad_()
    codes, indices = function(x, codebook)
    loss = (codes.square() * weights).sum()
    dx, dcodes = torch.autograd.grad(loss, (x, codebook), create_graph=True)
    torch.testing.assert_close(dx, 2 * weights * codes)
    expected = torch.zeros(6, 4, dtype=torch.float64)
    expected = expected.index_add(0, indices.flatten(), dx.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(dcodes, expected)
    # A penalty: codes in dx and dcodes pass their gradient on to x and codebook.
    penalty = dx.square().sum()
    second = torch.autograd.grad(penalty, (x, codebook, weights))
    torch.testing.assert_close(second[0], 8 * weights.square() * codes)
    torch.testing.assert_close(second[1], code_sums_ref(second[0], indices, 6))
    torch.testing.assert_close(second[2], 8 * weights * codes.square())
    detached, _ = function(x, codebook.detach())
    (dx,) = torch.autograd.grad(detached.sum(), x)
    assert torch.equal(dx, torch.ones_like(x))


@pytest.mark.card
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 20, 5, 13), 1), ((3, 7, 20), 2), ((20, 9), 0), ((33, 20), 1)]
)
def test_rows_and_sums_of_given_indices(shape: tuple[int, ...], dim: int, layout: str) -> None:
    x = with_layout(seeded(shape, 1), layout)
    sizes = [*shape[:dim], *shape[dim + 1 :]]
    indices = torch.randint(-2, 9, sizes, generator=torch.Generator().manual_seed(2), device="cpu").to(
        x.device
    )
    codebook = seeded((7, 20), 3)
    for i in (indices, torch.stack([indices, indices], -1)[..., 0]):
        torch.testing.assert_close(code_sums(x, i, 7, dim), code_sums_ref(x, indices, 7, dim))
        rows = code_rows(codebook, i, dim)
        assert rows.is_contiguous()
        torch.testing.assert_close(rows, code_rows_ref(codebook, indices, dim), equal_nan=True)
    if len(shape) == 4:
        rows = code_rows(codebook, indices, dim, channels_last=True)
        assert rows.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(rows, code_rows_ref(codebook, indices, dim), equal_nan=True)
    with decompose():
        assert torch.equal(code_sums(x, indices, 7, dim), code_sums_ref(x, indices, 7, dim))


@pytest.mark.card
def test_sums_of_many_numbers_keep_their_digits() -> None:
    """More rows than a part has, all of one code; float32 would lose the ones."""
    x = torch.ones(40_000, 3)
    x[0] = 2.0**26
    sums = code_sums(x, torch.zeros(40_000, dtype=torch.int64), 2)
    assert sums.tolist() == [[2.0**26 + 40_000] * 3, [0.0] * 3]


@pytest.mark.card
def test_dtypes_are_promoted_and_autocast_changes_nothing() -> None:
    x, codebook = seeded((50, 8), 1).bfloat16(), seeded((20, 8), 2).float()
    codes, indices = ops.vector_quantize(x, codebook)
    assert codes.dtype == torch.float32
    assert torch.equal(indices, nearest(x, codebook))
    for function in (ops.vector_quantize, ops.vector_quantize_ref):
        with torch.autocast(x.device.type, torch.bfloat16):
            got = function(x.float(), codebook)
        assert torch.equal(got[0], codes)
        assert torch.equal(got[1], indices)


X, CODES = torch.zeros(2, 3, 4, 5), torch.zeros(6, 3)
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": "x"}, TypeError, "x is 'x'"),
    ({"codebook": None}, TypeError, "codebook is None"),
    ({"x": X.int()}, RuntimeError, "x is int32, but must be float64"),
    ({"codebook": CODES.long()}, RuntimeError, "codebook is int64, but must be float64"),
    ({"codebook": CODES[:, :2]}, RuntimeError, r"codebook has shape \[6, 2\], but must be \[codes, 3\]"),
    ({"codebook": CODES[:0]}, RuntimeError, r"codebook has shape \[0, 3\], .* with one code at least"),
    ({"codebook": CODES[0]}, RuntimeError, r"codebook has shape \[3\], but must be \[codes, numbers\]"),
    ({"dim": 4}, RuntimeError, "dim is 4, but must be from -4 to 3"),
    ({"x": torch.zeros(())}, RuntimeError, "dim is 1, but a tensor of shape"),
]


@pytest.mark.parametrize(("changed", "error", "match"), BAD)
def test_a_wrong_argument_is_named(changed: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ops.vector_quantize(**{"x": X, "codebook": CODES, **changed})


ISA = """
import torch
from aigc_ext import ops
x, codebook = (torch.randn(n, 40, generator=torch.Generator().manual_seed(n)) for n in (3000, 300))
print(torch.ops.aigc.instruction_set(), ops.vector_quantize(x + 100, codebook + 100)[1].sum().item())
print(ops.vector_quantize((x + 100).bfloat16(), (codebook + 100).bfloat16())[1].sum().item())
"""


@pytest.mark.skipif("simt" in os.environ.get("AIGC_EXT_BACKEND", ""), reason="of the CPU's kernels")
def test_the_indices_do_not_depend_on_the_instruction_set() -> None:
    """Many of these rows are too near to the middle of two codes for float32 to tell."""
    results = set()
    sets = ["baseline", "avx2", "avx512"]
    for name in sets[: sets.index(torch.ops.aigc.instruction_set()) + 1]:
        environment = os.environ | {
            "AIGC_EXT_ISA": name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        command = [sys.executable, "-c", ISA]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        used, *numbers = done.stdout.split()
        assert used == name
        results.add(tuple(numbers))
    assert len(results) == 1, results


# The kernels' own memory is not PyTorch's, so what counts is the process's.
MEMORY = """
import torch
from aigc_ext import ops

def status(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))

def peak(run):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    run()
    return status("VmHWM") - before

def train(function, rows, codes):
    x, codebook = torch.randn(rows, 16).requires_grad_(), torch.randn(codes, 16).requires_grad_()
    y = function(x, codebook)[0]
    torch.autograd.grad(y.sum(), (x, codebook))

torch.set_num_threads(1)
for function in (ops.vector_quantize, ops.vector_quantize_ref):
    train(function, 128, 64)
print(peak(lambda: train(ops.vector_quantize, 16384, 2048)))
print(peak(lambda: train(ops.vector_quantize_ref, 16384, 2048)))
# All rows are as near to every code: each is compared again with all of them.
x, codebook = torch.zeros(1024, 16), torch.ones(2048, 16)
print(peak(lambda: ops.vector_quantize(x, codebook)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_matrix_of_distances_is_never_there() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    ours, plain, ties = map(int, done.stdout.split())
    matrix = 16384 * 2048 * 4 // 1024
    assert plain > matrix, "the test sees less than there is"
    assert ours < matrix / 8, f"{ours} kB, the matrix of distances alone is {matrix} kB"
    assert ties < matrix / 16 / 2, f"{ties} kB, the matrix of distances alone is {matrix // 16} kB"
