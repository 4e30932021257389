"""attention beyond the property suite: bad arguments, masks, memory formats, memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops.attention import has_attention
from tests.ops.suite import seeded

module = sys.modules["aigc_ext.ops.attention"]  # the package has the function by this name
pytestmark = pytest.mark.skipif(not has_attention(torch.empty(0)), reason="no kernel in this library")

Q, K, V = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 6, 4), torch.zeros(2, 3, 6, 7)
BAD: list[tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ({"q": Q[0]}, RuntimeError, ("q has shape [3, 5, 4]", "[N, heads, queries, width]")),
    ({"k": K[:1]}, RuntimeError, ("k has shape [1, 3, 6, 4]", "[2, 3, keys, 4]", "[2, 3, 5, 4]")),
    ({"k": K[..., :3]}, RuntimeError, ("k has shape [2, 3, 6, 3]", "[2, 3, keys, 4]")),
    ({"v": V[:, :, :5]}, RuntimeError, ("v has shape [2, 3, 5, 7]", "[2, 3, 6, value_width]")),
    ({"v": V.double()}, RuntimeError, ("v is float64", "must be float32")),
    ({"q": Q.int()}, RuntimeError, ("q is int32", "must be float64")),
    ({"k": None}, TypeError, ("k is None", "must be a tensor")),
    ({"q": [1.0]}, TypeError, ("q is [1.0] (list)", "must be a tensor")),
    ({"key_padding_mask": [True]}, TypeError, ("key_padding_mask is [True]", "a tensor or None")),
    ({"key_padding_mask": torch.zeros(2, 5) > 0}, RuntimeError, ("mask has shape [2, 5]", "[2, 6]")),
    ({"key_padding_mask": torch.zeros(2, 6)}, RuntimeError, ("mask is float32", "must be bool")),
    ({"key_padding_mask": torch.zeros(2, 6, device="meta") > 0}, RuntimeError, ("mask is on meta", "cpu")),
    ({"score": "cosine"}, ValueError, ("score is 'cosine'", "'dot' or 'l2'")),
    ({"scale": float("inf")}, RuntimeError, ("scale is inf", "finite")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD)
@pytest.mark.parametrize("function", [ops.attention, ops.attention_ref])
def test_bad_argument(function: Any, arguments: dict[str, Any], kind: Any, parts: tuple[str, ...]) -> None:
    if function is ops.attention_ref and kind is not RuntimeError:
        return  # the public function's to notice
    with pytest.raises(kind) as error:
        function(**{"q": Q, "k": K, "v": V, **arguments})
    for part in ("attention", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


Three = tuple[Tensor, Tensor, Tensor]


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> Three:
    q, k, v = (seeded(shape, i).to(dtype).requires_grad_() for i in range(3))
    return q, k, v


@pytest.mark.parametrize("causal", [False, True])
def test_dot_products_are_those_of_pytorch(causal: bool) -> None:
    q, k, v = inputs(2, 3, 70, 20)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(ops.attention(q, k, v, causal=causal), expected)


@pytest.mark.parametrize("function", [ops.attention, ops.attention_ref])
def test_distances_are_those_of_kim_et_al(function: Any) -> None:
    """Written with the differences themselves; the rows of |q|^2 make no difference to any derivative."""

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        distances = (q[:, :, :, None] - k[:, :, None]).square().sum(-1)
        return (-distances / q.size(-1) ** 0.5).softmax(-1) @ v

    def derivatives(run: Any) -> list[Tensor]:
        leaves = inputs(2, 2, 7, 3)
        o = run(*leaves)
        slopes = torch.autograd.grad(o, leaves, seeded(o.shape, 9), create_graph=True)
        penalty = torch.stack([(g * g).sum() for g in slopes]).sum()
        return [o, *slopes, *torch.autograd.grad(penalty, leaves)]

    ours = derivatives(lambda q, k, v: function(q, k, v, score="l2"))
    for one, other in zip(ours, derivatives(plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_keys_has_zeros_and_no_gradient(score: str, causal: bool) -> None:
    q, k, v = inputs(2, 1, 4, 3)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    o = ops.attention(q, k, v, mask, causal, score)
    empty = torch.zeros(2, 1, 4, dtype=torch.bool)
    empty[0] = True
    empty[1, 0, :2] = causal
    assert (o[empty] == 0).all()
    assert (o[~empty] != 0).all()
    first = torch.autograd.grad(o, (q, k, v), torch.ones_like(o), create_graph=True)
    second = torch.autograd.grad(torch.stack([(g * g).sum() for g in first]).sum(), (q, k, v))
    for dq, dk, dv in (first, second):
        assert (dq[empty] == 0).all()
        assert (dk.detach()[:, 0][mask] == 0).all()
        assert (dv.detach()[:, 0][mask] == 0).all()
        assert all(g.isfinite().all() for g in (dq, dk, dv))


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)])
def test_what_stands_at_padding_is_not_read(score: str, layout: tuple[int, ...]) -> None:
    """The result is that of the other keys alone."""
    mask = torch.zeros(2, 70, dtype=torch.bool)
    mask[:, 3:68:5] = True
    q, k, v = (seeded((2, 2, 70, 5), i) for i in range(3))
    kept = k[:, :, ~mask[0]].clone().requires_grad_(), v[:, :, ~mask[0]].clone().requires_grad_()
    for t in (k, v):
        t.movedim(2, 1)[mask] = float("nan")
    k, v = (t.permute(layout).contiguous().permute(layout).requires_grad_() for t in (k, v))
    q.requires_grad_()
    ours, theirs = ops.attention(q, k, v, mask, score=score), ops.attention(q, *kept, score=score)
    assert torch.equal(ours, theirs)
    got = torch.autograd.grad(ours, (q, k, v), torch.ones_like(ours))
    expected = torch.autograd.grad(theirs, (q, *kept), torch.ones_like(ours))
    assert torch.equal(got[0], expected[0])
    for one, other in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(one[:, :, ~mask[0]], other)
        assert (one[:, :, mask[0]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)])
def test_memory_formats_are_kept_and_give_the_same_bits(order: tuple[int, ...], dtype: torch.dtype) -> None:
    def in_order(t: Tensor) -> Tensor:
        return t.detach().permute(order).contiguous().permute(order).requires_grad_()

    plain = inputs(2, 3, 37, 20, dtype=dtype)
    permuted = in_order(plain[0]), in_order(plain[1]), in_order(plain[2])
    results = []
    for leaves in (plain, permuted):
        o = ops.attention(*leaves)
        slopes = torch.autograd.grad(o, leaves, torch.ones_like(o), create_graph=True)
        penalty = torch.stack([(g.float() ** 2).sum() for g in slopes]).sum()
        results.append([o, *slopes, *torch.autograd.grad(penalty, leaves)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert other.stride() == permuted[0].stride()


def test_a_number_that_is_not_finite_makes_its_rows_nan() -> None:
    for value in (float("nan"), float("inf")):
        q, k, v = inputs(1, 1, 70, 4)
        q = q.detach()
        q[0, 0, 5, 1] = value
        o = ops.attention(q, k, v)
        assert o[0, 0, 5].isnan().all()
        assert o[0, 0, 6:].isfinite().all()


def test_autocast_casts_as_for_pytorchs() -> None:
    q, k, v = inputs(1, 2, 9, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o = ops.attention(q, k, v)
        assert o.dtype == F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
        assert ops.attention_ref(q, k, v).dtype == torch.bfloat16
    assert torch.equal(o, ops.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


@pytest.mark.parametrize("score", ["dot", "l2"])
@pytest.mark.parametrize("causal", [False, True])
def test_the_form_for_cards_computes_the_same(
    score: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's products, for chunks of queries: here on the CPU, in chunks of 7."""
    monkeypatch.setattr(module, "_SCORES_OF_A_CHUNK", 2 * 3 * 11 * 7)
    q, k, v = (seeded((2, 3, n, d), i) for i, (n, d) in enumerate([(23, 5), (11, 5), (11, 4)]))
    a, b, c, do = (seeded(t.shape, 3 + i) for i, t in enumerate([q, k, v, v.new_empty(2, 3, 23, 4)]))
    mask = seeded((2, 11), 9) > 0.5
    mask[1] = True
    for padding in (None, mask):
        options = (0.4, causal, score == "l2")
        lse = torch.ops.aigc.attention(q, k, v, padding, *options)[1]
        for name, arguments in {
            "attention": (q, k, v),
            "attention_backward": (do, q, k, v, lse),
            "attention_double_backward": (a, b, c, do, q, k, v, lse),
        }.items():
            expected = getattr(torch.ops.aigc, name)(*arguments, padding, *options)
            torch.testing.assert_close(module.IN_CHUNKS[name](*arguments, padding, *options), expected)
        for given in ((a, None, None), (None, b, None), (None, None, c)):
            arguments = (*given, do, q, k, v, lse, padding, *options)
            expected = torch.ops.aigc.attention_double_backward(*arguments)
            torch.testing.assert_close(module.IN_CHUNKS["attention_double_backward"](*arguments), expected)


# The kernels' own memory is not PyTorch's, so what counts is the process's.
MEMORY = """
import sys, torch
from aigc_ext import ops

def peak(run):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    run()
    return status("VmHWM") - before

def status(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key)))

def penalty(function, length):
    leaves = [torch.randn(1, 1, length, 32).requires_grad_() for _ in range(3)]
    o = function(*leaves)
    slopes = torch.autograd.grad(o, leaves, torch.ones_like(o), create_graph=True)
    torch.autograd.grad(torch.stack([(g * g).sum() for g in slopes]).sum(), leaves)

torch.set_num_threads(1)
for function in (ops.attention, ops.attention_ref):
    penalty(function, 128)
print(*(peak(lambda: penalty(ops.attention, n)) for n in (2048, 4096)))
print(peak(lambda: penalty(ops.attention_ref, 2048)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_linear_in_the_length() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    short, long, plain = map(int, done.stdout.split())
    assert long < 3 * short, f"{long} kB for twice the length of {short} kB"
    assert short < plain / 4, f"{short} kB, the reference {plain} kB"
