"""The step of `ops.mlp_gan_step_` against the same by autograd in plain PyTorch."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from aigc_ext import decompose, ops
from aigc_ext.ops import MLPLearner
from aigc_ext.ops.activations import ACTIVATIONS
from aigc_ext.ops.gan_loss import KINDS
from aigc_ext.ops.mlp_gan_step import _mlp_gan_step_, has_mlp_gan_step
from tests.ops.suite import check_budget

pytestmark = pytest.mark.skipif(
    not has_mlp_gan_step(torch.device("cpu")), reason="this library has no kernel of it"
)


def learner(
    acts: tuple[str, ...],
    widths: tuple[int, ...],
    seed: int,
    *,
    averages: bool = True,
    one_step: bool = False,
    dtype: torch.dtype = torch.float64,
) -> MLPLearner:
    rng = torch.Generator().manual_seed(seed)
    shapes = [s for i, o in pairwise(widths) for s in ((o, i), (o,))]

    def normal() -> list[Tensor]:
        return [torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) / 2 for s in shapes]

    moments = normal(), [t.square() for t in normal()]
    steps = [torch.tensor(3.0) for _ in (shapes[:1] if one_step else shapes)]
    alphas = tuple(0.3 if act == "lrelu" else None for act in acts)
    return MLPLearner(
        *(normal(), [torch.full_like(t, torch.nan) for t in normal()], *moments),
        *(normal() if averages else [], steps),
        acts=acts,
        alphas=alphas,
        gains=tuple(0.9 for _ in acts),
        rates=(1e-2, 0.5, 0.99, 1e-8, 0.1, 0.9),
        skipped=torch.zeros((), dtype=torch.int64),
    )


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    width, seed = st.sampled_from([1, 2, 3, 5, 8, 17, 33, 70]), draw(st.integers(0, 2**20))
    batch, pixels, z_dim = draw(st.sampled_from([1, 2, 3, 7, 16, 65, 140])), draw(width), draw(width)
    # Not in a discriminator, whose logits would all be equal, and right or wrong by rounding.
    any_width = st.just(0) | width
    acts = st.lists(st.sampled_from(sorted(ACTIVATIONS)), max_size=3)
    g_acts, d_acts = tuple(draw(acts)), tuple(draw(acts))
    g_widths = (z_dim, *(draw(any_width) for _ in g_acts), pixels)
    d_widths = (pixels, *(draw(width) for _ in d_acts), draw(st.sampled_from([1, 1, 1, 3])))
    options: dict[str, Any] = {
        "averages": draw(st.booleans()),
        "one_step": draw(st.booleans()),
        "dtype": dtype,
    }
    kind = draw(st.sampled_from(KINDS))
    rng = torch.Generator().manual_seed(seed)
    return {
        "real": torch.randn(batch, 1, 1, pixels, generator=rng, dtype=torch.float64).to(dtype),
        "z": torch.randn(batch, z_dim, generator=rng, dtype=torch.float64).to(dtype),
        "generator": learner(
            (*g_acts, draw(st.sampled_from(["sigmoid", "tanh", "linear"]))), g_widths, seed + 1, **options
        ),
        "discriminator": learner(
            (*d_acts, draw(st.sampled_from(["linear", "swish"]))), d_widths, seed + 2, **options
        ),
        "kind": kind,
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])) if kind in ("logistic", "minimax") else 0.0,
        "l2_weight": draw(st.sampled_from([0.0, 0.3])),
        "gamma": draw(st.sampled_from([0.0, 0.7])),
        "r2": draw(st.booleans()),
        "train_generator": draw(st.booleans()),
        "spare": draw(st.sampled_from([0, 1])),
    }


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors(each)]
    return [value] if isinstance(value, Tensor) else []


def cast(value: Any, dtype: torch.dtype) -> Any:
    """A copy whose numbers, but for steps and counts, are of that dtype."""
    if isinstance(value, MLPLearner):
        return MLPLearner(*(v if name == "steps" else cast(v, dtype) for name, v in value._asdict().items()))
    if isinstance(value, dict):
        return {name: cast(v, dtype) for name, v in value.items()}
    if isinstance(value, list):
        return [cast(v, dtype) for v in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def after(function: Any, call: dict[str, Any], steps: int = 1) -> list[Tensor]:
    """All tensors of a copy of the call after some steps, and the last one's results."""
    call = copy.deepcopy(call)
    for _ in range(steps):
        results = function(**call)
    return [*tensors(results), *tensors(call)]


@settings(max_examples=150)
@given(calls())
def test_it_is_the_step_of_autograd(call: dict[str, Any]) -> None:
    for ours, plain in zip(
        after(ops.mlp_gan_step_, call, 3), after(ops.mlp_gan_step_ref, call, 3), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_discriminator_with_a_layer_without_units() -> None:
    call = {**CALL, "discriminator": learner(("tanh", "linear"), (6, 0, 1), 5)}
    for ours, plain in zip(after(ops.mlp_gan_step_, call), after(ops.mlp_gan_step_ref, call), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12, equal_nan=True)


def fields_after(function: Any, call: dict[str, Any]) -> dict[str, Tensor]:
    """What a step makes, all of a kind in one vector: of single numbers, such as the gradient of the last
    bias, it is luck how far their sums cancel."""
    call = copy.deepcopy(call)
    statistics, fake = function(**call)
    found = {"statistics": statistics, "fake": fake}
    for name in ("generator", "discriminator"):
        for field in ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas"):
            if parts := getattr(call[name], field):
                found[f"{name}.{field}"] = torch.cat([t.flatten() for t in parts])
    return found


@pytest.mark.parametrize("kind", ["logistic", "lsgan", "relativistic_avg"])
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_float32_is_within_the_error_budget(kind: str, gamma: float) -> None:
    """At the sizes of the reference GAN: in a small network all gradients hang on a few slopes, and how the
    roundings on the way there cancel is luck. With an eps of 1: a division by the root of the square alone
    would magnify any error."""
    rng = torch.Generator().manual_seed(0)
    rates = (1e-2, 0.5, 0.99, 1.0, 0.1, 0.9)
    call: dict[str, Any] = {
        "real": torch.rand(64, 1, 28, 28, generator=rng),
        "z": torch.randn(64, 100, generator=rng),
        "generator": learner(
            ("lrelu", "lrelu", "tanh", "sigmoid"), (100, 256, 128, 64, 784), 1, dtype=torch.float32
        )._replace(rates=rates),
        "discriminator": learner(
            ("lrelu", "tanh", "linear"), (784, 128, 64, 1), 2, dtype=torch.float32
        )._replace(rates=rates),
        "kind": kind,
        "gamma": gamma,
        "r2": True,
    }
    for name in ("generator", "discriminator"):
        for weight in call[name].params[::2]:
            weight *= 2 / weight.size(1) ** 0.5
    truth = fields_after(ops.mlp_gan_step_ref, cast(call, torch.float64))
    plain = fields_after(ops.mlp_gan_step_ref, call)
    for name, ours in fields_after(ops.mlp_gan_step_, call).items():
        check_budget(ours, plain[name], truth[name], torch.float32, name)


CALL: dict[str, Any] = {
    "real": torch.rand(4, 2, 3, dtype=torch.float64),
    "z": torch.randn(4, 5, dtype=torch.float64),
    "generator": learner(("lrelu", "sigmoid"), (5, 8, 6), 1),
    "discriminator": learner(("tanh", "linear"), (6, 8, 1), 2),
    "gamma": 0.5,
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["real", "z"])
def test_what_is_not_finite_changes_nothing(value: float, place: str) -> None:
    call = copy.deepcopy(CALL)
    call[place][1] = value
    before = copy.deepcopy(call)
    statistics, _ = ops.mlp_gan_step_(**call)
    assert not statistics[0].isfinite()
    for name in ("discriminator", "generator") if place == "z" else ("discriminator",):
        assert call[name].skipped == 1
        for one, other in zip(
            tensors(call[name][0]) + tensors(call[name][2:6]),
            tensors(before[name][0]) + tensors(before[name][2:6]),
            strict=True,
        ):
            assert torch.equal(one, other)
    assert (call["generator"].skipped == 0) == (place == "real")


def test_an_infinite_loss_with_finite_gradients_is_refused() -> None:
    call = copy.deepcopy(CALL | {"gamma": 0.0, "discriminator": learner(("linear",), (6, 1), 3)})
    call["discriminator"].params[0].fill_(1e308)
    call["real"] = -call["real"] - 10
    plain = copy.deepcopy(call)
    statistics, _ = ops.mlp_gan_step_(**call)
    ops.mlp_gan_step_ref(**plain)
    assert statistics[0].isinf()
    assert call["discriminator"].skipped == plain["discriminator"].skipped == 1


def test_a_step_that_is_taken_in_any_case() -> None:
    call = copy.deepcopy(CALL)
    call["real"][0] = torch.nan
    call["discriminator"] = call["discriminator"]._replace(skip_nonfinite=False)
    ops.mlp_gan_step_(**call)
    assert call["discriminator"].skipped == 0
    assert all(p.isnan().any() for p in call["discriminator"].params)


@pytest.mark.parametrize("layout", ["transposed", "offset"])
def test_inputs_of_any_strides(layout: str) -> None:
    call = copy.deepcopy(CALL)
    for name in ("real", "z"):
        value = call[name]
        if layout == "transposed":
            call[name] = value.transpose(0, -1).contiguous().transpose(0, -1)
        else:
            call[name] = value.new_empty(2 * value.numel() + 1)[1:].as_strided(
                value.shape, [2 * s for s in value.stride()]
            )
            call[name].copy_(value)
    for one, other in zip(after(ops.mlp_gan_step_, call), after(ops.mlp_gan_step_, CALL), strict=True):
        assert torch.equal(one, other) or one.isnan().any()


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    rng = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {
        "real": torch.rand(300, 300, generator=rng),
        "z": torch.randn(300, 40, generator=rng),
        "generator": learner(("lrelu", "sigmoid"), (40, 200, 300), 1, dtype=torch.float32),
        "discriminator": learner(("tanh", "linear"), (300, 250, 1), 2, dtype=torch.float32),
        "gamma": 0.5,
        "l2_weight": 0.1,
    }
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(after(ops.mlp_gan_step_, call))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (3, 5, 7), (16, 784, 130), (65, 100, 256), (7, 600, 67), (300, 9, 80)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_as_exact_as_pytorchs(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Of all three forms: the images of a generator with a linear layer, and its gradients."""
    batch, z_dim, pixels = sizes
    rng = torch.Generator().manual_seed(0)
    call: dict[str, Any] = {
        "real": torch.randn(batch, pixels, generator=rng, dtype=torch.float64).to(dtype),
        "z": torch.randn(batch, z_dim, generator=rng, dtype=torch.float64).to(dtype),
        "generator": learner(("linear",), (z_dim, pixels), 1, dtype=dtype),
        "discriminator": learner(("linear",), (pixels, 1), 2, dtype=dtype),
        "kind": "wgan",  # whose slopes are constants
    }

    def products(function: Any, call: dict[str, Any]) -> list[Tensor]:
        call = copy.deepcopy(call)
        _, fake = function(**call)
        return [fake, call["generator"].grads[0], call["discriminator"].grads[0]]

    truth = products(ops.mlp_gan_step_ref, cast(call, torch.float64))
    plain, ours = (products(function, call) for function in (ops.mlp_gan_step_ref, ops.mlp_gan_step_))
    for i in range(3):
        check_budget(ours[i], plain[i], truth[i], dtype, f"product {i}")


def test_decomposed_is_the_reference() -> None:
    with decompose():
        ours = after(ops.mlp_gan_step_, CALL)
    for one, other in zip(ours, after(ops.mlp_gan_step_ref, CALL), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def native_arguments(call: dict[str, Any]) -> tuple[Any, ...]:
    g, d = call["generator"], call["discriminator"]
    return (
        *(call["real"], call["z"], *g[:6], g.skipped, *d[:6], d.skipped),
        *(",".join(g.acts), [0.2] * 2, [1.0] * 2, list(g.rates), True),
        *(",".join(d.acts), [0.2] * 2, [1.0] * 2, list(d.rates), True),
        *("logistic", 0.0, 0.0, 0.5, True, True, 0),
    )


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.float64):
        torch.library.opcheck(
            torch.ops.aigc.mlp_gan_step_.default, native_arguments(cast(copy.deepcopy(CALL), dtype))
        )


def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ops.mlp_gan_step_, fullgraph=True, backend="aot_eager")
    for one, other in zip(after(compiled, CALL, 2), after(ops.mlp_gan_step_, CALL, 2), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_autograd_is_told_that_weights_were_written() -> None:
    call = copy.deepcopy(CALL)
    weight = call["discriminator"].params[0].requires_grad_()
    loss = (weight * weight).sum()
    ops.mlp_gan_step_(**call)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def changed(network: str, **fields: Any) -> dict[str, Any]:
    call = copy.deepcopy(CALL)
    call[network] = call[network]._replace(**fields)
    return call


def other_weight(network: str, index: int, tensor: Tensor, field: str = "params") -> dict[str, Any]:
    call = copy.deepcopy(CALL)
    getattr(call[network], field)[index] = tensor
    return call


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (CALL | {"kind": "bce"}, ValueError, "kind is 'bce'"),
        (
            CALL | {"kind": "wgan", "label_smoothing": 0.1},
            ValueError,
            "label_smoothing is 0.1, but must be 0",
        ),
        (CALL | {"l2_weight": -1.0}, ValueError, "l2_weight is -1"),
        (CALL | {"z": CALL["z"].half()}, RuntimeError, "z is float16, but must be float32 or float64"),
        (CALL | {"z": CALL["z"].float()}, RuntimeError, "real is float64, but must be float32, as z is"),
        (CALL | {"z": CALL["z"][0]}, RuntimeError, r"z has shape \[5\], but must be \[N, in_features\]"),
        (CALL | {"z": CALL["z"][:0], "real": CALL["real"][:0]}, RuntimeError, "N at least 1"),
        (CALL | {"real": CALL["real"][:3]}, RuntimeError, r"real has shape \[3, 2, 3\], but must be \[4, "),
        (CALL | {"real": CALL["real"][:, :1]}, RuntimeError, "makes 6 numbers, but a real image has 3"),
        (
            CALL | {"z": CALL["z"][:, :4]},
            RuntimeError,
            r"generator: params\[0\] has shape \[8, 5\], but must ",
        ),
        (CALL | {"spare": -1}, RuntimeError, "spare is -1, but must be from 0 to 64"),
        (changed("generator", acts=("tanh", "cosh")), ValueError, "act is 'cosh'"),
        (changed("generator", acts=("tanh",)), ValueError, "1 acts, but 2 alphas"),
        (changed("generator", rates=(0.1,)), RuntimeError, "rates has 1 numbers"),
        (changed("generator", rates=(0.1, 1.0, 0.9, 0.0, 0.0, 0.9)), RuntimeError, "generator: beta1 is 1"),
        (changed("discriminator", rates=(0.1, 0.5, 0.9, 0.0, 0.0, 2.0)), RuntimeError, "ema_decay is 2"),
        (changed("discriminator", grads=[]), RuntimeError, "discriminator: grads has 0 tensors"),
        (
            other_weight("discriminator", 1, torch.zeros(7, dtype=torch.float64)),
            RuntimeError,
            r"discriminator: .*\[7\]",
        ),
        (
            other_weight("discriminator", 0, torch.zeros(6, 8, dtype=torch.float64).t()),
            RuntimeError,
            r"params\[0\] has .* strides \[1, 8\], but must be contiguous",
        ),
        (
            other_weight("discriminator", 0, torch.zeros(6, 8, dtype=torch.float64).t(), "grads"),
            RuntimeError,
            r"grads\[0\] has strides \[1, 8\], but must be contiguous",
        ),
        (
            other_weight("generator", 2, torch.zeros(6, 8), "exp_avgs"),
            RuntimeError,
            r"exp_avgs\[2\] is float32, but must be float64",
        ),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_written(
    call: dict[str, Any], error: type[Exception], message: str
) -> None:
    call = copy.deepcopy(call)
    before = copy.deepcopy(tensors(call))
    with pytest.raises(error, match=message):
        ops.mlp_gan_step_(**call)
    for one, other in zip(tensors(call), before, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_the_native_op_checks_its_own_arguments() -> None:
    good = native_arguments(copy.deepcopy(CALL))
    for place, value, message in (
        (16, "lrelu", "acts has 1 names, but there are 2 layers"),
        (16, "lrelu,tanh,tanh", "acts has more names than there are layers"),
        (17, [0.2], "params has 4 tensors, alphas 1"),
        (26, "?", r"kind is '\?'"),
        (27, 1.5, "label_smoothing is 1.5"),
    ):
        with pytest.raises(RuntimeError, match=message):
            _mlp_gan_step_(*good[:place], value, *good[place + 1 :])
