"""What the property suite does not know of the adversarial losses: their formulas by hand, options,
statistics, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext import decompose, ops
from aigc_ext.ops.gan_loss import KINDS, RELATIVISTIC

T = TypeVar("T")

both = pytest.mark.parametrize("decomposed", [False, True], ids=["native", "decomposed"])
per_kind = pytest.mark.parametrize("kind", KINDS)

REAL = [1.5, -0.25, 0.75]
FAKE = [-0.5, 0.125, 2.0]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def discriminator_by_hand(kind: str, r: list[float], f: list[float]) -> list[float]:
    """The loss of each pair of logits."""
    mr, mf = mean(r), mean(f)
    term = {
        "logistic": lambda a, b: softplus(-a) + softplus(b),
        "minimax": lambda a, b: softplus(-a) + softplus(b),
        "hinge": lambda a, b: max(0.0, 1 - a) + max(0.0, 1 + b),
        "lsgan": lambda a, b: (a - 1) ** 2 / 2 + b**2 / 2,
        "wgan": lambda a, b: b - a,
        "relativistic": lambda a, b: softplus(b - a),
        "relativistic_avg": lambda a, b: softplus(mf - a) + softplus(b - mr),
    }[kind]
    return [term(a, b) for a, b in zip(r, f, strict=True)]


def generator_by_hand(kind: str, f: list[float], r: list[float]) -> list[float]:
    if kind in RELATIVISTIC:
        return discriminator_by_hand(kind, f, r)
    term = {
        "logistic": lambda b: softplus(-b),
        "minimax": lambda b: -softplus(b),
        "hinge": lambda b: -b,
        "lsgan": lambda b: (b - 1) ** 2 / 2,
        "wgan": lambda b: -b,
    }[kind]
    return [term(b) for b in f]


def leaf(values: list[float] | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.as_tensor(values).to(dtype, copy=True).requires_grad_()


def run(decomposed: bool, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    if not decomposed:
        return function(*args, **kwargs)
    with decompose():
        return function(*args, **kwargs)


@pytest.mark.card
@both
@per_kind
def test_formulas(kind: str, decomposed: bool) -> None:
    for losses, compute in (
        (
            discriminator_by_hand(kind, REAL, FAKE),
            lambda reduction: run(
                decomposed, ops.discriminator_loss, leaf(REAL), leaf(FAKE), kind, reduction=reduction
            ),
        ),
        (
            generator_by_hand(kind, FAKE, REAL),
            lambda reduction: run(
                decomposed, ops.generator_loss, leaf(FAKE), leaf(REAL), kind, reduction=reduction
            ),
        ),
    ):
        expected = torch.tensor(losses, dtype=torch.float64)
        for reduction, value in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
            torch.testing.assert_close(compute(reduction), value, rtol=1e-12, atol=0)


@pytest.mark.card
@both
def test_batches_of_different_sizes_have_their_own_means(decomposed: bool) -> None:
    fake = [*FAKE, -1.0, 3.0]
    for kind in KINDS:
        if kind == "relativistic":
            continue
        loss = run(decomposed, ops.discriminator_loss, leaf(REAL), leaf(fake).reshape(5, 1), kind)
        mr, mf = mean(REAL), mean(fake)
        if kind == "relativistic_avg":
            expected = mean([softplus(mf - a) for a in REAL]) + mean([softplus(b - mr) for b in fake])
        else:
            zeros_real = mean(discriminator_by_hand(kind, REAL, [0.0] * 3))
            zeros_fake = mean(discriminator_by_hand(kind, [0.0] * 5, fake))
            zeros = mean(discriminator_by_hand(kind, [0.0], [0.0]))
            expected = zeros_real + zeros_fake - zeros
        assert loss.item() == pytest.approx(expected, rel=1e-12)


@both
def test_label_smoothing_is_binary_cross_entropy_with_that_target(decomposed: bool) -> None:
    real, fake = leaf(REAL), leaf(FAKE)
    for kind in ("logistic", "minimax"):
        loss = run(decomposed, ops.discriminator_loss, real, fake, kind, label_smoothing=0.2)
        target = torch.full_like(real, 0.8)
        expected = F.binary_cross_entropy_with_logits(real, target)
        expected = expected + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        torch.testing.assert_close(loss, expected)
        gradients = torch.autograd.grad(loss, (real, fake))
        for ours, theirs in zip(gradients, torch.autograd.grad(expected, (real, fake)), strict=True):
            torch.testing.assert_close(ours, theirs)


@both
@per_kind
def test_l2_weight_adds_half_the_mean_square_of_all_logits(kind: str, decomposed: bool) -> None:
    real, fake = leaf(REAL), leaf(FAKE)
    with_l2 = run(decomposed, ops.discriminator_loss, real, fake, kind, l2_weight=0.3)
    without = run(decomposed, ops.discriminator_loss, real, fake, kind)
    torch.testing.assert_close(with_l2 - without, 0.15 * (real.square().mean() + fake.square().mean()))


@both
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)], ids=["logits", "patches"])
def test_generator_l2_is_of_the_images(shape: tuple[int, ...], decomposed: bool) -> None:
    fake, images, weight = torch.randn(shape).double(), leaf(torch.randn(3, 1, 4, 5)), torch.rand(3).double()
    norms = images.square().sum((1, 2, 3)) * weight
    per_logit = torch.Size(shape[1:]).numel()
    for reduction, expected in (("mean", norms.mean()), ("sum", per_logit * norms.sum())):
        loss = run(
            decomposed,
            ops.generator_loss,
            fake,
            l2_weight=0.4,
            images=images,
            weight=weight,
            reduction=reduction,
        )
        plain = run(decomposed, ops.generator_loss, fake, weight=weight, reduction=reduction)
        torch.testing.assert_close(loss - plain, 0.2 * expected)
        (gradient,) = torch.autograd.grad(loss, images)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(0.2 * expected, images, retain_graph=True)[0]
        )
    none = run(
        decomposed, ops.generator_loss, fake, l2_weight=0.4, images=images, weight=weight, reduction="none"
    )
    assert none.shape == fake.shape


@pytest.mark.card
@both
@per_kind
def test_weight_multiplies_losses_and_means_divide_by_the_count(kind: str, decomposed: bool) -> None:
    real, fake = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    weight = torch.tensor([0.0, 1.0, 2.5, 0.5]).double()
    losses = run(decomposed, ops.discriminator_loss, real, fake, kind, l2_weight=0.2, reduction="none")
    loss = run(decomposed, ops.discriminator_loss, real, fake, kind, l2_weight=0.2, weight=weight)
    torch.testing.assert_close(loss, (losses * weight[:, None]).sum() / 12)


@pytest.mark.card
@per_kind
def test_large_logits_in_float32(kind: str) -> None:
    real, fake = leaf([1e4, -1e4, 0.0], torch.float32), leaf([-1e4, 1e4, 0.0], torch.float32)
    loss = ops.discriminator_loss(real, fake, kind, reduction="none")
    gradients = torch.autograd.grad(loss.sum(), (real, fake))
    truth = ops.discriminator_loss_ref(real.detach().double(), fake.detach().double(), kind, reduction="none")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)
    generator = ops.generator_loss(fake, real, kind)
    assert generator.isfinite()
    assert torch.autograd.grad(generator, fake)[0].isfinite().all()


@pytest.mark.card
def test_infinite_logits_have_the_limits_of_the_loss() -> None:
    inf = math.inf
    real, fake = torch.tensor([inf, -inf]), torch.tensor([-inf, inf])
    loss = ops.discriminator_loss(real, fake, reduction="none")
    assert loss.tolist() == [0, inf]


@pytest.mark.card
def test_gradient_of_a_mean_over_many_half_precision_logits_does_not_underflow() -> None:
    real, fake = (torch.zeros(1, 1, 512, 512, dtype=torch.float16, requires_grad=True) for _ in range(2))
    loss = ops.discriminator_loss(real, fake)
    assert loss.dtype == torch.float32
    (loss * 2**16).backward()  # as a gradient scaler does
    assert real.grad is not None
    assert real.grad.dtype == torch.float16
    torch.testing.assert_close(real.grad, torch.full_like(real, -0.5 * 2**16 / 512**2), rtol=1e-3, atol=0)
    assert ops.discriminator_loss_and_grad(real, fake)[2].abs().min() > 0


@pytest.mark.card
@both
@per_kind
def test_nan_gives_nan(kind: str, decomposed: bool) -> None:
    for position in range(2):
        logits = [torch.tensor(REAL), torch.tensor(FAKE)]
        logits[position][1] = math.nan
        for reduction in ("mean", "sum"):
            assert run(decomposed, ops.discriminator_loss, *logits, kind, reduction=reduction).isnan()
    assert run(decomposed, ops.generator_loss, logits[1], logits[0], kind).isnan()


@pytest.mark.card
@both
@per_kind
def test_empty_batches(kind: str, decomposed: bool) -> None:
    for shape in ((0,), (0, 1), (2, 0), (0, 1, 4, 4)):
        real, fake = (torch.zeros(shape, requires_grad=True) for _ in range(2))
        weight = torch.ones(shape[0])
        for reduction, check in (
            ("mean", lambda t: t.isnan().all() and t.shape == ()),
            ("sum", lambda t: t == 0),
            ("none", lambda t, shape=shape: t.shape == shape),
        ):
            for loss in (
                run(
                    decomposed,
                    ops.discriminator_loss,
                    real,
                    fake,
                    kind,
                    weight=weight,
                    reduction=reduction,
                    l2_weight=0.1,
                ),
                run(decomposed, ops.generator_loss, fake, real, kind, weight=weight, reduction=reduction),
            ):
                if kind == "relativistic_avg" and reduction == "sum":
                    check = torch.isfinite  # an empty sum of terms that contain the mean of nothing
                assert check(loss)
                assert torch.autograd.grad(loss.sum(), fake)[0].shape == shape
    stats = run(decomposed, ops.discriminator_loss_and_stats, torch.zeros(0), torch.zeros(0), kind)[1]
    assert all(value.isnan() for value in stats)


@pytest.mark.card
def test_one_empty_batch_does_not_spoil_the_sum() -> None:
    loss = ops.discriminator_loss(torch.zeros(0), torch.zeros(3), reduction="sum")
    assert loss.item() == pytest.approx(3 * math.log(2))


# ---- statistics -------------------------------------------------------------------------------------------


@pytest.mark.card
@both
@per_kind
def test_statistics(kind: str, decomposed: bool) -> None:
    r, f = [1.5, -0.5, 0.75, 0.25], [-0.5, 0.125, 2.0, -3.0]  # of mean 0.5 and -0.34375
    _, stats = run(decomposed, ops.discriminator_loss_and_stats, leaf(r), leaf(f), kind)
    if kind in ("logistic", "minimax"):
        scores = mean([sigmoid(x) for x in r]), mean([sigmoid(x) for x in f])
    else:
        scores = mean(r), mean(f)
    accuracies = {
        "logistic": (3 / 4, 2 / 4),
        "minimax": (3 / 4, 2 / 4),
        "hinge": (3 / 4, 2 / 4),
        "lsgan": (2 / 4, 3 / 4),
        "wgan": (3 / 4, 3 / 4),
        "relativistic": (2 / 4, 2 / 4),
        "relativistic_avg": (3 / 4, 3 / 4),
    }
    expected = (*scores, *accuracies[kind])
    for name, value, wanted in zip(stats._fields, stats, expected, strict=True):
        assert value.dtype == torch.float32, name
        assert value.shape == (), name
        assert not value.requires_grad, name
        assert value.item() == pytest.approx(wanted, rel=1e-6), name


@both
def test_nan_and_undecided_logits_are_not_right(decomposed: bool) -> None:
    logits = torch.tensor([math.nan, 0.0])
    _, stats = run(decomposed, ops.discriminator_loss_and_stats, logits, logits)
    assert stats.acc_real == 0
    assert stats.acc_fake == 0
    assert stats.d_real.isnan()


# ---- the form without autograd ----------------------------------------------------------------------------


@pytest.mark.card
@both
@per_kind
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_grad_is_the_loss_and_its_gradient(
    kind: str, reduction: str, dtype: torch.dtype, decomposed: bool
) -> None:
    real, fake = (leaf(torch.randn(5, 3), dtype) for _ in range(2))
    weight = torch.rand(5)
    options: dict[str, Any] = {"kind": kind, "weight": weight, "reduction": reduction}
    smoothing = 0.1 if kind in ("logistic", "minimax") else 0.0
    loss, stats = ops.discriminator_loss_and_stats(real, fake, label_smoothing=smoothing, **options)
    gradients = torch.autograd.grad(loss.sum(), (real, fake))
    result = run(
        decomposed, ops.discriminator_loss_and_grad, real, fake, label_smoothing=smoothing, **options
    )
    torch.testing.assert_close(result[0], loss.detach())
    torch.testing.assert_close(result[1], stats)
    for ours, theirs in zip(result[2:], gradients, strict=True):
        assert ours.dtype == loss.dtype
        assert not ours.requires_grad
        torch.testing.assert_close(ours.to(dtype), theirs)
    assert not result[0].requires_grad

    loss = ops.generator_loss(fake, real, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), fake)
    value, d_fake = run(decomposed, ops.generator_loss_and_grad, fake, real, **options)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(d_fake.to(dtype), gradient)
    assert not value.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_backward_from_the_gradients_trains(dtype: torch.dtype) -> None:
    initial = torch.randn(3, 1)
    weights = [leaf(initial, dtype) for _ in range(2)]
    x, z = torch.randn(8, 3).to(dtype), torch.randn(8, 3).to(dtype)
    ops.discriminator_loss(x @ weights[0], z @ weights[0]).backward()
    real, fake = x @ weights[1], z @ weights[1]
    _, _, d_real, d_fake = ops.discriminator_loss_and_grad(real, fake)
    torch.autograd.backward([real, fake], [d_real, d_fake])
    assert weights[1].grad is not None
    assert weights[1].grad.dtype == dtype
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


# ---- autograd ---------------------------------------------------------------------------------------------


@per_kind
def test_gradient_through_an_unrolled_step_of_the_discriminator(kind: str) -> None:
    """G's gradient through D's update (Metz et al. 2017) needs the second derivative of D's loss."""

    def gradient(discriminator_loss: Callable[..., Tensor], generator_loss: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(0)
        w, images = leaf(torch.randn(4, 1)), leaf(torch.randn(6, 4))
        real = torch.randn(6, 4).double()
        d_loss = discriminator_loss(real @ w, images @ w, kind)
        (step,) = torch.autograd.grad(d_loss, w, create_graph=True)
        loss = generator_loss(images @ (w - 0.5 * step), real @ (w - 0.5 * step), kind)
        return torch.autograd.grad(loss, images)[0]

    ours = gradient(ops.discriminator_loss, ops.generator_loss)
    plain = gradient(ops.discriminator_loss_ref, ops.generator_loss_ref)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    assert ours.abs().sum() > 0


def test_only_the_gradients_asked_for() -> None:
    real, fake = torch.randn(5), leaf(torch.randn(5), torch.float32)
    loss = ops.discriminator_loss(real, fake, "relativistic_avg")
    loss.backward()
    assert fake.grad is not None
    assert real.grad is None
    with torch.no_grad():
        assert not ops.discriminator_loss(fake, fake).requires_grad
        assert not ops.generator_loss(fake).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(
            ops.discriminator_loss(torch.randn(5) * 0, torch.zeros(5)), torch.tensor(2 * math.log(2))
        )
        torch.testing.assert_close(ops.generator_loss(torch.zeros(5)), torch.tensor(math.log(2)))


@per_kind
def test_the_registered_ops_have_the_functions_derivatives(kind: str) -> None:
    """Called by name, as a compiled graph does, they go through the dispatcher."""
    real, fake = leaf(torch.randn(5, 2)), leaf(torch.randn(5, 2))
    loss = torch.ops.aigc.discriminator_loss(real, fake, None, kind, 0.0, 0.1, "mean")[0]
    expected = ops.discriminator_loss(real, fake, kind, l2_weight=0.1)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (real, fake)), torch.autograd.grad(expected, (real, fake)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    if kind not in RELATIVISTIC:
        loss = torch.ops.aigc.generator_loss(fake, None, kind, "mean")
        (gradient,) = torch.autograd.grad(loss, fake)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(ops.generator_loss(fake, kind=kind), fake)[0]
        )


def test_autocast_needs_no_cast() -> None:
    w = torch.randn(3, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        real, fake = torch.randn(8, 3) @ w, torch.randn(8, 3) @ w
        assert real.dtype == torch.bfloat16
        loss, stats = ops.discriminator_loss_and_stats(real, fake)
        generator = ops.generator_loss(fake)
    assert loss.dtype == generator.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in stats)
    truth = ops.discriminator_loss_ref(real.double(), fake.double())
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)  # bfloat16 would be off by 1e-3
    (loss + generator).backward()
    assert w.grad is not None
    assert w.grad.isfinite().all()


def test_dtypes_are_promoted() -> None:
    half, single, double = (torch.randn(4).to(t) for t in (torch.float16, torch.float32, torch.float64))
    assert ops.discriminator_loss(half, single).dtype == torch.float32
    assert ops.discriminator_loss(half, double).dtype == torch.float64
    assert ops.generator_loss(single, double, "relativistic").dtype == torch.float64
    assert ops.discriminator_loss(half, half, weight=double).dtype == torch.float32


def test_statistics_need_no_synchronization() -> None:
    """On fake tensors, reading a value raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        real, fake = torch.randn(8, 1, requires_grad=True), torch.randn(8, 1, requires_grad=True)
        loss, stats, d_real, _ = ops.discriminator_loss_and_grad(real, fake)
        assert (loss.shape, d_real.shape, stats.acc_fake.shape) == ((), (8, 1), ())
        loss, stats = ops.discriminator_loss_and_stats(real, fake)
        loss.backward()
        assert real.grad is not None
        assert real.grad.shape == (8, 1)


def test_reduction_none_keeps_the_memory_format() -> None:
    real, fake = (
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2)
    )
    for dtype in (torch.float32, torch.float16):
        loss = ops.discriminator_loss(real.to(dtype), fake.to(dtype), reduction="none")
        assert loss.is_contiguous(memory_format=torch.channels_last)
        mixed = ops.discriminator_loss(real.to(dtype), fake.contiguous().to(dtype), reduction="none")
        torch.testing.assert_close(loss, mixed, rtol=0, atol=0, check_stride=False)
        assert mixed.is_contiguous()


@pytest.mark.parametrize("function", [ops.discriminator_loss_and_stats, ops.discriminator_loss_and_grad])
def test_fullgraph_compile(function: Callable[..., tuple[Any, ...]]) -> None:
    torch._dynamo.reset()
    real, fake = leaf(torch.randn(6, 1), torch.float32), leaf(torch.randn(6, 1), torch.float32)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(real, fake), function(real, fake), strict=True):
        torch.testing.assert_close(ours, expected)


# ---- errors -----------------------------------------------------------------------------------------------

X = torch.zeros(4)


@both
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.discriminator_loss(X, X, "bce"), ValueError, "but must be one of logistic, minimax"),
        (lambda: ops.generator_loss(X, kind="bce"), ValueError, "kind is 'bce'"),
        (lambda: ops.discriminator_loss(X, X, reduction="avg"), ValueError, "reduction is 'avg'"),
        (lambda: ops.discriminator_loss(X, X, label_smoothing=1.0), ValueError, "label_smoothing is 1,"),
        (lambda: ops.discriminator_loss(X, X, label_smoothing=-0.1), ValueError, "label_smoothing is -0.1"),
        (
            lambda: ops.discriminator_loss(X, X, label_smoothing=math.nan),
            ValueError,
            "label_smoothing is nan",
        ),
        (lambda: ops.discriminator_loss(X, X, "hinge", 0.1), ValueError, "must be 0 for kind hinge"),
        (lambda: ops.discriminator_loss(X, X, l2_weight=-1.0), ValueError, "l2_weight is -1,"),
        (lambda: ops.discriminator_loss(X, X, l2_weight=math.inf), ValueError, "l2_weight is inf"),
        (lambda: ops.generator_loss(X, l2_weight=math.nan), ValueError, "l2_weight is nan"),
        (lambda: ops.generator_loss(X, l2_weight=0.1), ValueError, "images is None, but l2_weight is 0.1"),
        (
            lambda: ops.generator_loss(X, l2_weight=0.1, images=torch.zeros(3, 2)),
            RuntimeError,
            r"images has shape \[3, 2\]",
        ),
        (lambda: ops.generator_loss(X, kind="relativistic"), ValueError, "real_logits is None"),
        (lambda: ops.generator_loss_and_grad(X, kind="relativistic_avg"), ValueError, "real_logits is None"),
        (
            lambda: ops.discriminator_loss(X, X[:3], "relativistic"),
            RuntimeError,
            r"real_logits has shape \[4\] and fake_logits \[3\].*must be equal",
        ),
        (lambda: ops.discriminator_loss(X, X[:3], reduction="none"), RuntimeError, "must be equal"),
        (
            lambda: ops.discriminator_loss(X, X, weight=torch.ones(3)),
            RuntimeError,
            r"weight has shape \[3\], but must have one number for each sample of real_logits",
        ),
        (
            lambda: ops.discriminator_loss(X, X[:3], weight=torch.ones(4)),
            RuntimeError,
            r"weight has shape \[4\].* fake_logits, whose shape is \[3\]",
        ),
        (lambda: ops.generator_loss(X, weight=torch.ones(4, 1)), RuntimeError, r"weight has shape \[4, 1\]"),
        (
            lambda: ops.generator_loss(X.sum(), weight=torch.ones(1)),
            RuntimeError,
            r"fake_logits, whose shape is \[\]",
        ),
        (
            lambda: ops.discriminator_loss(1.5, X),  # type: ignore[arg-type]
            TypeError,
            r"real_logits is 1.5 \(float\)",
        ),
        (
            lambda: ops.discriminator_loss_and_grad(X, None),  # type: ignore[arg-type]
            TypeError,
            "fake_logits is None, but must be a ten",
        ),
        (
            lambda: ops.discriminator_loss(X, X, weight=[1]),  # type: ignore[arg-type]
            TypeError,
            r"weight is \[1\] \(list\)",
        ),
        (
            lambda: ops.generator_loss(None),  # type: ignore[arg-type]
            TypeError,
            "generator_loss: fake_logits is None",
        ),
        (
            lambda: ops.generator_loss(X, images=[X]),  # type: ignore[arg-type]
            TypeError,
            r"images is \[tensor.*or None",
        ),
        (
            lambda: ops.discriminator_loss(X, X, l2_weight=X[:1]),  # type: ignore[arg-type]
            TypeError,
            "l2_weight is tensor",
        ),
        (
            lambda: ops.discriminator_loss(X, X, label_smoothing="0"),  # type: ignore[arg-type]
            TypeError,
            r"label_smoothing is '0' \(str",
        ),
        (
            lambda: ops.discriminator_loss(X.int(), X),
            RuntimeError,
            "discriminator_loss: real_logits is int32, but must be float64, float32, float16 or bfloat16",
        ),
        # A relativistic generator's loss is the discriminator's with the roles swapped; errors don't show it.
        (
            lambda: ops.generator_loss(X.int(), X, "relativistic"),
            RuntimeError,
            "generator_loss: fake_logits is int32",
        ),
        (
            lambda: ops.generator_loss(X[:3], X, "relativistic"),
            RuntimeError,
            r"generator_loss: real_logits has shape \[4\] and fake_logits \[3\]",
        ),
        (
            lambda: ops.generator_loss_and_grad(X[:3], X, "relativistic_avg", torch.ones(3)),
            RuntimeError,
            r"each sample of real_logits, whose shape is \[4\]",
        ),
    ],
)
def test_bad_arguments(
    call: Callable[[], object], error: type[Exception], message: str, decomposed: bool
) -> None:
    with pytest.raises(error, match=message):
        run(decomposed, call)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@both
def test_logits_must_be_floating_point(dtype: torch.dtype, decomposed: bool) -> None:
    with pytest.raises(RuntimeError, match=r"real_logits .*must be float64, float32, float16 or bfloat16"):
        run(decomposed, ops.discriminator_loss, X.to(dtype), X.to(dtype))
    with pytest.raises(RuntimeError, match=r"fake_logits .*must be float64"):
        run(decomposed, ops.generator_loss, X.to(dtype))


def test_meta_tensors_are_checked_as_real_ones_are() -> None:
    meta = X.to("meta")
    assert ops.discriminator_loss(meta, meta).device.type == "meta"
    for call, message in (
        (lambda: ops.discriminator_loss(meta, X), "fake_logits is on cpu, but must be on meta"),
        (lambda: ops.discriminator_loss(meta, meta[:3], "relativistic"), r"real_logits has shape \[4\]"),
        (lambda: ops.discriminator_loss(meta.int(), meta.int()), "real_logits is int32"),
        (lambda: ops.discriminator_loss(meta, meta, weight=meta[:3]), r"weight has shape \[3\]"),
        (lambda: ops.discriminator_loss(meta, meta, weight=X), "weight is on cpu"),
        (lambda: ops.generator_loss(meta, weight=meta[:3]), r"weight has shape \[3\]"),
        (lambda: ops.generator_loss(meta.bool()), "fake_logits is bool"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_the_native_ops_check_for_themselves() -> None:
    op = torch.ops.aigc.discriminator_loss_and_grad
    for arguments, message in (
        ((X, X, None, "bce", 0.0, 0.0, "mean"), "kind is 'bce'"),
        ((X, X, None, "logistic", 0.0, 0.0, "avg"), "reduction is 'avg'"),
        ((X, X, None, "logistic", 1.5, 0.0, "mean"), "label_smoothing is 1.5"),
        ((X, X, None, "wgan", 0.1, 0.0, "mean"), "kind wgan"),
        ((X, X, None, "logistic", 0.0, math.nan, "mean"), "l2_weight is nan"),
        ((X, X.double(), None, "logistic", 0.0, 0.0, "mean"), "fake_logits is float64"),
        ((X, X, X.double(), "logistic", 0.0, 0.0, "mean"), "weight is float64"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(*arguments)
    with pytest.raises(RuntimeError, match="compares two batches"):
        torch.ops.aigc.generator_loss(X, None, "relativistic", "mean")
