"""bias_act and noise_bias_act: bad arguments, and facts that the property suite does not cover."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext import ops
from aigc_ext.ops.activations import ACTIVATIONS
from tests.ops.suite import case_id, on_meta

NAN, INF = float("nan"), float("inf")
SMOOTH = [name for name, act in ACTIVATIONS.items() if not act.piecewise_linear]


def image(**options: Any) -> Tensor:
    return torch.randn(2, 3, 4, 5, **options)


def check_error(error: pytest.ExceptionInfo[Exception], parts: tuple[str, ...]) -> None:
    for part in parts:
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"


# ---- bad arguments: the error names the argument, its value and what is allowed ----------------------------

BAD_OPTIONS = [
    *(
        ({"act": act}, ValueError, ("act is", repr(act), "linear, relu"))
        for act in ("gelu", "", "ReLU", 1, None)
    ),
    ({"act": ["relu"]}, ValueError, ("act is ['relu']", "linear, relu")),
    *(
        ({name: value}, ValueError, (f"{name} is {value}", "must be finite"))
        for name in ("alpha", "gain")
        for value in (NAN, INF, -INF, 10**400)
    ),
    *(({"clamp": v}, ValueError, (f"clamp is {v}", "None or at least 0")) for v in (-1, -1e-9, NAN, -INF)),
    *(
        (
            {name: value},
            TypeError,
            (f"{name} is {value!r} ({type(value).__name__})", "must be a float or an int"),
        )
        for name in ("alpha", "gain", "clamp")
        for value in ("1", [1.0], 1j, torch.tensor(1.0), torch.ones(2))
    ),
]


@pytest.mark.parametrize(("options", "kind", "parts"), BAD_OPTIONS, ids=case_id)
def test_bad_option(options: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    calls = (
        lambda: ops.bias_act(image(), **options),
        lambda: ops.bias_act_ref(image(), **options),
        lambda: ops.noise_bias_act(image(), torch.randn(2, 1, 4, 5), torch.ones(()), **options),
        lambda: ops.linear_act(image(), torch.randn(6, 5), **options),
    )
    for call in calls:
        with pytest.raises(kind) as error:
            call()
        check_error(error, parts)


BAD_TENSORS = [
    ({"x": torch.zeros(2, 3, dtype=dtype)}, RuntimeError, ("x is", name, "must be float64"))
    for dtype, name in (
        (torch.int32, "int32"),
        (torch.int64, "int64"),
        (torch.uint8, "uint8"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
        (torch.float8_e4m3fn, "Float8_e4m3fn"),
    )
] + [
    ({"b": torch.zeros(3, dtype=torch.int32)}, RuntimeError, ("b is int32", "must be float64")),
    ({"b": torch.zeros(3, dtype=torch.bool)}, RuntimeError, ("b is bool", "must be float64")),
    ({"b": torch.zeros(3, dtype=torch.complex64)}, RuntimeError, ("b is complex64", "must be float64")),
    ({"b": torch.zeros(3, dtype=torch.float8_e5m2)}, RuntimeError, ("b is float8_e5m2", "must be float64")),
    ({"x": image().int(), "b": torch.zeros(3)}, RuntimeError, ("x is int32", "must be float64")),
    ({"b": torch.zeros(4)}, RuntimeError, ("b has shape [4]", "must be [3]", "[2, 3, 4, 5]", "dim 1")),
    ({"b": torch.zeros(3, 1)}, RuntimeError, ("b has shape [3, 1]", "must be [3]")),
    ({"b": torch.zeros(())}, RuntimeError, ("b has shape []", "must be [3]")),
    ({"b": torch.zeros(0)}, RuntimeError, ("b has shape [0]", "must be [3]")),
    ({"b": torch.zeros(3), "dim": 4}, RuntimeError, ("dim is 4", "from -4 to 3")),
    ({"b": torch.zeros(3), "dim": -5}, RuntimeError, ("dim is -5", "from -4 to 3")),
    ({"b": torch.zeros(3), "dim": 2**63 - 1}, RuntimeError, ("dim is 9223372036854775807", "from -4 to 3")),
    ({"b": torch.zeros(3), "dim": 2**70}, RuntimeError, ("'dim'", str(2**70), "'int'")),
    ({"b": torch.zeros(3), "dim": 1.5}, RuntimeError, ("'dim'", "1.5", "'int'")),
    ({"b": torch.zeros(3), "dim": None}, RuntimeError, ("'dim'", "None", "'int'")),
    ({"x": torch.zeros(3), "b": torch.zeros(3)}, RuntimeError, ("dim is 1", "from -1 to 0", "[3]")),
    (
        {"x": torch.zeros(()), "b": torch.zeros(1), "dim": 0},
        RuntimeError,
        ("dim is 0", "[]", "no dimensions"),
    ),
    *(
        ({"x": value}, TypeError, ("bias_act: x is", type(value).__name__, "must be a tensor"))
        for value in ([1.0], 1.0, image().numpy())
    ),
    ({"x": None}, TypeError, ("bias_act: x is None", "must be a tensor")),
    ({"b": [1.0, 2.0, 3.0]}, TypeError, ("b is [1.0, 2.0, 3.0] (list)", "must be a tensor or None")),
    ({"b": 1.0}, TypeError, ("b is 1.0 (float)", "must be a tensor or None")),
    ({"x": image().to_sparse()}, RuntimeError, ("aigc::bias_act", "SparseCPU")),
    ({"b": torch.zeros(3).to_sparse()}, RuntimeError, ("aigc::bias_act", "SparseCPU")),
    ({"x": image(device="meta"), "b": torch.zeros(3)}, RuntimeError, ("b is on cpu", "must be on meta")),
    ({"b": torch.zeros(3, device="meta")}, RuntimeError, ("b is on meta", "must be on cpu")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD_TENSORS, ids=case_id)
def test_bad_tensor(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(kind) as error:
        ops.bias_act(**{"x": image(), **arguments})
    check_error(error, parts)


BAD_NOISE = [
    ({"noise": torch.zeros(2, 3, 4, 5)}, RuntimeError, ("noise has shape [2, 3, 4, 5]", "[N or 1, 1, ...]")),
    ({"noise": torch.zeros(3, 1, 4, 5)}, RuntimeError, ("noise has shape [3, 1, 4, 5]", "[2, 3, 4, 5]")),
    ({"noise": torch.zeros(1, 4, 5)}, RuntimeError, ("noise has shape [1, 4, 5]",)),
    ({"noise": torch.zeros(2, 1, 4, 1)}, RuntimeError, ("noise has shape [2, 1, 4, 1]",)),
    ({"noise": torch.zeros(2, 1, 5, 4)}, RuntimeError, ("noise has shape [2, 1, 5, 4]",)),
    ({"noise": torch.zeros(())}, RuntimeError, ("noise has shape []",)),
    ({"noise": torch.zeros(2, 1, 4, 5).int()}, RuntimeError, ("noise is int32", "must be float64")),
    ({"noise": None}, TypeError, ("noise is None", "must be a tensor")),
    ({"noise": 0.5}, TypeError, ("noise is 0.5 (float)", "must be a tensor")),
    ({"noise": torch.zeros(2, 1, 4, 5, device="meta")}, RuntimeError, ("noise is on meta", "on cpu")),
    ({"strength": torch.zeros(2)}, RuntimeError, ("strength has shape [2]", "one number")),
    ({"strength": torch.zeros(0)}, RuntimeError, ("strength has shape [0]", "one number")),
    ({"strength": 0.5}, TypeError, ("strength is 0.5 (float)", "must be a tensor")),
    ({"strength": None}, TypeError, ("strength is None", "must be a tensor")),
    ({"strength": torch.zeros((), device="meta")}, RuntimeError, ("strength is on meta", "on cpu")),
    ({"b": torch.zeros(4)}, RuntimeError, ("b has shape [4]", "must be [3]")),
    ({"x": torch.zeros(3), "noise": torch.zeros(3)}, RuntimeError, ("dim is 1", "[3]")),
    ({"x": torch.zeros(()), "noise": torch.zeros(())}, RuntimeError, ("dim is 1", "no dimensions")),
]


@pytest.mark.parametrize(("arguments", "kind", "parts"), BAD_NOISE, ids=case_id)
def test_bad_noise(arguments: dict[str, Any], kind: type[Exception], parts: tuple[str, ...]) -> None:
    good = {"x": image(), "noise": torch.randn(2, 1, 4, 5), "strength": torch.ones(())}
    with pytest.raises(kind) as error:
        ops.noise_bias_act(**{**good, **arguments})
    # The native op is bias_act's, and it compares the devices before it knows whether there is noise.
    op = "bias_act" if "meta" in parts[0] else "noise_bias_act"
    check_error(error, (f"{op}: ", *parts))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"b": torch.zeros(4)}, ("b has shape [4]", "must be [3]")),
        ({"b": torch.zeros(3, 1)}, ("b has shape [3, 1]", "must be [3]")),
        ({"b": torch.zeros(3), "dim": 7}, ("dim is 7",)),
        ({"x": image().int()}, ("x is int32", "must be float64")),
    ],
)
def test_the_fake_kernel_refuses_what_the_real_one_refuses(
    arguments: dict[str, Any], parts: tuple[str, ...]
) -> None:
    arguments = {"x": image(), **arguments}
    with pytest.raises(RuntimeError) as error:
        ops.bias_act(**on_meta(arguments))
    check_error(error, parts)


# ---- direct calls with arguments that lie ------------------------------------------------------------------


def backward(**changes: Any) -> tuple[Tensor, ...]:
    x, b = image(), torch.randn(3)
    act = changes.get("act", "lrelu")
    mask = torch.ops.aigc.bias_act(x, b, None, None, 1, act, 0.2, 1.0, 1.0, True)[1]
    arguments = {
        "dy": image(),
        "x": x,
        "b": b,
        "noise": None,
        "strength": None,
        "mask": mask,
        "dim": 1,
        "act": act,
        "alpha": 0.2,
        "gain": 1.0,
        "clamp": 1.0,
        "channels_last": False,
        "need_b": True,
        "need_strength": False,
    }
    return torch.ops.aigc.bias_act_backward(**{**arguments, **changes})


def test_the_honest_backward_call_works() -> None:
    for act in ("lrelu", "tanh"):
        dx, db, _ = backward(act=act)
        assert (dx.shape, db.shape) == ((2, 3, 4, 5), (3,))


LIES = [
    ({"mask": torch.zeros(0, dtype=torch.uint8)}, "mask"),
    ({"mask": torch.zeros(1, dtype=torch.uint8)}, "mask"),
    ({"mask": torch.zeros(1000, dtype=torch.uint8)}, "mask"),
    ({"mask": torch.zeros(36, dtype=torch.uint8)[::2]}, "mask"),
    ({"mask": torch.zeros(18, dtype=torch.float32)}, "mask"),
    ({"mask": None}, "mask"),
    ({"clamp": None}, "mask"),  # the mask has one plane too many
    ({"act": "relu", "mask": torch.zeros(9, dtype=torch.uint8)}, "mask"),  # and one plane too few
    ({"dy": torch.randn(2, 3, 4, 50)}, "mask"),
    ({"dy": torch.randn(6, 20), "channels_last": True}, "channels_last"),
    ({"dy": torch.randn(()), "b": None, "need_b": False, "channels_last": True}, "channels_last"),
    ({"dy": torch.randn(())}, "dim is 1"),
    ({"dy": image().int()}, "dy is int32"),
    ({"dim": 4}, "dim is 4"),
    ({"dim": 3}, "b has shape [3]"),
    ({"b": None}, "b is not given"),
    ({"b": torch.randn(3, dtype=torch.float64)}, "b is float64, but must be float32"),
    ({"need_strength": True}, "noise is not given"),
    ({"noise": torch.randn(2, 1, 4, 5)}, "given together"),
    ({"noise": torch.randn(2, 1, 4, 6), "strength": torch.ones(())}, "noise has shape [2, 1, 4, 6]"),
    ({"act": "tanh", "x": None}, "needs x"),
    ({"act": "tanh", "x": torch.randn(2, 3, 4)}, "x has shape [2, 3, 4], but dy has shape [2, 3, 4, 5]"),
    ({"act": "tanh", "x": image().half()}, "x is float16, but must be float32"),
    ({"gain": NAN}, "gain is nan"),
    ({"alpha": INF}, "alpha is inf"),
    ({"clamp": -1.0}, "clamp is -1"),
    ({"dy": image(device="meta")}, "must be on meta"),
]


@pytest.mark.parametrize(("changes", "part"), LIES, ids=case_id)
def test_a_backward_call_that_lies(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(RuntimeError) as error:
        backward(**changes)
    check_error(error, (part,))


DOUBLE_LIES = [
    ({"u": torch.randn(2, 3, 4)}, "u has shape [2, 3, 4], but x has shape [2, 3, 4, 5]"),
    ({"dy": torch.randn(2, 3, 4, 6)}, "dy has shape [2, 3, 4, 6]"),
    ({"dy": image().double()}, "dy is float64, but must be float32"),
    ({"act": "lrelu"}, "whose second derivative is zero"),
    ({"b": None}, "not given"),
    ({"need_strength": True}, "not given"),
    ({"b": torch.randn(2)}, "b has shape [2]"),
    ({"channels_last": True, **{k: torch.randn(6, 3) for k in ("u", "dy", "x")}}, "channels_last"),
]


@pytest.mark.parametrize(("changes", "part"), DOUBLE_LIES, ids=case_id)
def test_a_double_backward_call_that_lies(changes: dict[str, Any], part: str) -> None:
    arguments = {
        "u": image(),
        "dy": image(),
        "x": image(),
        "b": torch.randn(3),
        "noise": None,
        "strength": None,
    }
    options = {"dim": 1, "act": "tanh", "alpha": 0.0, "gain": 1.0, "clamp": None}
    flags = {"channels_last": False, "need_b": True, "need_strength": False}
    with pytest.raises(RuntimeError) as error:
        torch.ops.aigc.bias_act_double_backward(**{**arguments, **options, **flags, **changes})
    check_error(error, (part,))


# ---- facts -------------------------------------------------------------------------------------------------


@pytest.mark.card
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_in_nan_out(act: str, dtype: torch.dtype) -> None:
    for size in (1, 37):
        for clamp in (None, 0.0, 1.0):
            for where in ("x", "b"):
                x = torch.zeros(size, 2, dtype=dtype)
                b = torch.zeros(2, dtype=dtype)
                (x[size // 2] if where == "x" else b)[1] = NAN
                x.requires_grad_()
                y = ops.bias_act(x, b, act=act, clamp=clamp)
                expected = (x + b).isnan()
                assert torch.equal(y.isnan(), expected), (size, clamp, where)
                assert expected.any()


@pytest.mark.card
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 2.0, INF])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_infinite_and_extreme_inputs_as_in_pytorch(act: str, clamp: float | None, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([INF, -INF, largest, -largest, 0.0, -0.0, 88.8, -88.8] * 3, dtype=dtype)
    gradients = []
    for function in (ops.bias_act, ops.bias_act_ref):
        leaf = x.clone().requires_grad_()
        y = function(leaf, act=act, gain=1.0, clamp=clamp)
        gradients.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
    (y, gradient), (expected_y, expected_gradient) = gradients
    torch.testing.assert_close(y, expected_y, equal_nan=True)
    if clamp is not None:
        # Where the clamp (or a NaN before it) stops the gradient, ours is 0. PyTorch's is 0 too at
        # first, but is then multiplied by f', which is NaN for swish at infinity.
        expected_gradient = torch.where(expected_gradient.isnan() & (gradient == 0), 0, expected_gradient)
    torch.testing.assert_close(gradient, expected_gradient, equal_nan=True)


@pytest.mark.card
@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_gradient_of_clamp_on_its_boundary_is_one(act: str) -> None:
    x = torch.tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0] * 3, requires_grad=True)
    y = ops.bias_act(x, act=act, alpha=1.0, gain=1.0, clamp=1.0)
    (ours,) = torch.autograd.grad(y.sum(), x)
    (references,) = torch.autograd.grad(ops.bias_act_ref(x, act=act, alpha=1.0, gain=1.0, clamp=1.0).sum(), x)
    below = 0.0 if act == "relu" else 1.0
    expected = torch.tensor([0.0, below, below, 1.0, 1.0, 0.0] * 3)
    assert torch.equal(ours, expected)
    assert torch.equal(references, expected)


@pytest.mark.card
@pytest.mark.parametrize("act", SMOOTH)
def test_gradient_of_clamp_on_its_boundary_is_one_for_smooth_activations(act: str) -> None:
    x = torch.linspace(0.1, 2.0, 20, dtype=torch.float64, requires_grad=True)
    clamp = ops.bias_act(x.detach(), act=act, gain=1.0).max().item()  # at x = 2 the result is the limit
    gradients = [
        torch.autograd.grad(ops.bias_act(x, act=act, gain=1.0, clamp=limit)[-1], x)[0][-1]
        for limit in (clamp, math.nextafter(clamp, 0.0), None)
    ]
    assert gradients[0] == gradients[2] > 0
    assert gradients[1] == 0


@pytest.mark.parametrize(("act", "clamp"), [("lrelu", None), ("relu", 1.0), ("linear", 1.0)])
def test_a_backward_without_what_the_forward_had_to_save(act: str, clamp: float | None) -> None:
    x = image(requires_grad=True)
    with pytest.raises(RuntimeError, match="needs save=True"):
        torch.ops.aigc.bias_act(x, None, None, None, 1, act, 0.2, 1.0, clamp, False)


@pytest.mark.card
def test_linear_without_clamp_saves_nothing() -> None:
    y, mask = torch.ops.aigc.bias_act(
        image(requires_grad=True), None, None, None, 1, "linear", 0.0, 2.0, None, True
    )
    assert mask.numel() == 0
    y.sum().backward()


@pytest.mark.card
def test_no_mask_is_kept_without_a_gradient() -> None:
    class MaskSizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.append(result[1].numel())
            return result

    for grad_mode, requires_grad, kept in ((True, False, 0), (False, True, 0), (True, True, 15)):
        sizes: list[int] = []
        x = image(requires_grad=requires_grad)
        with torch.set_grad_enabled(grad_mode), MaskSizes():
            ops.bias_act(x, act="lrelu")
        assert sizes == [kept]


@pytest.mark.card
def test_dim_is_not_looked_at_without_a_bias() -> None:
    for x in (torch.randn(()), torch.randn(5), torch.randn(2, 3)):
        x = x.double().requires_grad_()
        y = ops.bias_act(x, act="tanh")
        torch.testing.assert_close(y, x.tanh())
        assert torch.autograd.gradgradcheck(lambda t: ops.bias_act(t, act="tanh"), x)


@pytest.mark.card
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide_bias", [True, False])
def test_mixed_dtypes_are_promoted(narrow: torch.dtype, wide_bias: bool) -> None:
    x, b = image(), torch.randn(3)
    x, b = (x.to(narrow), b) if wide_bias else (x, b.to(narrow))
    leaves = [x.requires_grad_(), b.requires_grad_()]
    y = ops.bias_act(x, b, act="lrelu")
    expected = ops.bias_act_ref(x, b, act="lrelu")
    assert y.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    for ours, plain in zip(*(torch.autograd.grad(t.sum(), leaves) for t in (y, expected)), strict=True):
        assert ours.dtype == plain.dtype
        torch.testing.assert_close(ours, plain)


@pytest.mark.card
def test_noise_and_strength_are_promoted_too() -> None:
    x, noise, strength = (
        image(dtype=torch.bfloat16),
        torch.randn(1, 1, 4, 5),
        torch.ones((), dtype=torch.float64),
    )
    y = ops.noise_bias_act(x, noise, strength, act="lrelu")
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, ops.noise_bias_act_ref(x.double(), noise.double(), strength, act="lrelu"))


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("float64", "bfloat16")])
def test_autocast_follows_the_widest_input(dtypes: tuple[str, str]) -> None:
    x, b = image(dtype=getattr(torch, dtypes[0])), torch.randn(3, dtype=getattr(torch, dtypes[1]))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.bias_act(x, b, act="swish")
    assert y.dtype == torch.promote_types(x.dtype, b.dtype)
    torch.testing.assert_close(y, ops.bias_act(x, b, act="swish"), rtol=0, atol=0)


@pytest.mark.card
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by PyTorch's own formulas
def test_forward_mode_differentiation() -> None:
    x, tangent = image(dtype=torch.float64), image(dtype=torch.float64)
    with forward_ad.dual_level():
        y = ops.bias_act(forward_ad.make_dual(x, tangent), act="tanh", gain=2.0)
        primal, jvp = forward_ad.unpack_dual(y)
    torch.testing.assert_close(primal, 2 * x.tanh())
    torch.testing.assert_close(jvp, 2 * (1 - x.tanh() ** 2) * tangent)


@pytest.mark.card
def test_lazy_negation_is_resolved() -> None:
    x = torch._neg_view(image())
    assert x.is_neg()
    assert torch.equal(ops.bias_act(x, act="lrelu"), ops.bias_act(x.clone().resolve_neg(), act="lrelu"))


@pytest.mark.card
def test_compiled_code_runs_the_kernel() -> None:
    targets: list[Any] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    x = image()
    y = torch.compile(ops.bias_act, fullgraph=True, backend=record)(x, act="lrelu")
    assert torch.ops.aigc.bias_act.default in targets
    assert torch.equal(y, ops.bias_act(x, act="lrelu"))
