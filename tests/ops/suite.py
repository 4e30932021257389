"""What every op is held to. An op plugs in with an OpCase (tests/ops/<op>/case.py); test_properties.py runs
each property on each case.

The error budget, with the float64 reference as truth, in the maximum and in the relative L2 norm:
``error(ours) <= 2 * error(reference in the same dtype) + floor(dtype)``. The error of a few numbers is luck,
so a call that misses the budget of its own reference is held to the largest of the reference's errors on
nearby calls.
"""

from __future__ import annotations

import functools
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aigc_ext.ops._op import NATIVES

alphas = st.one_of(st.none(), st.sampled_from([0.0, 0.2, -0.3, 1.5]))
gains = st.one_of(st.none(), st.sampled_from([0.0, 1.0, -1.7, 0.3]))
clamps = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 1.0, 256.0]))
seeds = st.integers(0, 2**31)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "transposed", "channels_last", "offset")


@dataclass(frozen=True)
class Call:
    """One call of an op: float64 tensors by argument name (None is allowed), and the other arguments."""

    inputs: Mapping[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = {k: None if v is None else tuple(v.shape) for k, v in self.inputs.items()}
        return f"Call({shapes}, {self.options})"


def total(tensors: Iterable[Tensor]) -> Tensor:
    """The sum as a tensor. For a type checker, `sum` may also return the integer 0 that it starts from."""
    return functools.reduce(torch.add, tensors)


@dataclass(frozen=True)
class OpCase:
    name: str
    function: Callable[..., Any]  # function(**inputs, **options) -> Tensor or tuple of tensors
    reference: Callable[..., Any]
    calls: st.SearchStrategy[Call]  # sizes from 0
    # A few elements, nothing on a corner of f: for numeric differentiation.
    small_calls: st.SearchStrategy[Call]
    # large_call(): enough elements for several threads; large_call(scale): that many times as many
    large_call: Callable[..., Call]
    constant: tuple[str, ...] = ()  # inputs that have no gradient
    twice_differentiable: bool = True
    keeps_format: bool = True  # the first output has the memory format of the input `x`
    own_sums: bool = True  # contains no product of PyTorch's, whose bits depend on the number of threads
    # Replaces the 2 in half types, where function and reference round different intermediates.
    half_factor: float = 2.0
    decomposes_to_reference: bool = True  # bit for bit; else to another form in plain PyTorch
    cpu_only: bool = False  # elsewhere the function is PyTorch's own
    dtypes: tuple[torch.dtype, ...] = DTYPES
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)


def all_cases() -> list[OpCase]:
    """The lists CASES of all files tests/ops/<op>/case.py."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob("*/case.py"))
    modules = [importlib.import_module(f"{__package__}.{folder}.case") for folder in folders]
    return [case for module in modules for case in module.CASES]


def seeded(shape: Sequence[int], seed: int, scale: float = 1.0) -> Tensor:
    """Normal float64 values that depend on the seed alone, not on the device (Hypothesis shrinks a seed, not
    a million floats)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), dtype=torch.float64, generator=generator, device="cpu") * scale
    return values.to(torch.get_default_device())


def case_id(value: Any) -> str:
    """A test's name for a parameter: never a tensor's values, which differ between the suite's processes."""
    if isinstance(value, dict):
        return ",".join(f"{name}:{type(part).__name__}" for name, part in value.items())
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, (tuple, list)):
        return " ".join(map(case_id, value))[:40]
    return str(value)[:40] if isinstance(value, (str, int, float)) else type(value).__name__


@st.composite
def shapes(draw: st.DrawFn, min_dims: int = 1, max_dims: int = 4, max_side: int = 9) -> tuple[int, ...]:
    """Small shapes with sizes from 0; now and then one side is longer than any vector register."""
    sides = draw(st.lists(st.integers(0, max_side), min_size=min_dims, max_size=max_dims))
    if draw(st.booleans()):
        sides[draw(st.integers(0, len(sides) - 1))] = draw(st.sampled_from([16, 17, 33, 64, 100]))
    return tuple(sides)


def on_meta(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, with the tensors on the meta device."""
    return {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()}


def with_layout(x: Tensor, layout: str) -> Tensor:
    """The same values in other memory: a leaf that shares nothing with ``x``."""
    x = x.detach()
    if layout == "transposed" and x.dim() >= 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "channels_last" and x.dim() >= 3:
        order = [0, *range(2, x.dim()), 1]
        back = [order.index(d) for d in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    if layout == "offset":  # a pointer aligned to one element only, and elements that are not adjacent
        base = x.new_full((x.numel() * 2 + 1,), float("nan"))
        view = (
            base[1:].as_strided(x.shape, [s * 2 for s in x.contiguous().stride()]) if x.numel() else x.clone()
        )
        return view.copy_(x)
    if layout == "misaligned":  # the same kind of pointer, but adjacent elements
        return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    return x.clone(memory_format=torch.contiguous_format)


def prepare(
    call: Call, case: OpCase, dtype: torch.dtype, layout: str = "contiguous"
) -> dict[str, Tensor | None]:
    """The call's inputs as leaves of that dtype and layout on the case's device, requiring gradients."""
    prepared = {}
    for name, value in call.inputs.items():
        if value is not None:
            value = value.to(case.device)
            value = with_layout(value.to(dtype), layout) if value.is_floating_point() else value.clone()
            value.requires_grad_(value.is_floating_point() and name not in case.constant)
        prepared[name] = value
    return prepared


def outputs_of(
    function: Callable[..., Any], inputs: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, ...]:
    result = function(**inputs, **options)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def values_and_gradients(
    function: Callable[..., Any],
    inputs: dict[str, Tensor | None],
    options: dict[str, Any],
    seed: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Outputs, and the gradients of all inputs for random cotangents that are rounded to ``dtype``."""
    outputs = outputs_of(function, inputs, options)
    result = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    leaves = {k: v for k, v in inputs.items() if v is not None and v.requires_grad}
    used = [(i, y) for i, y in enumerate(outputs) if y.requires_grad]
    if leaves and used:
        cotangents = [seeded(y.shape, seed + i).to(dtype).to(y) for i, y in used]
        gradients = torch.autograd.grad(
            [y for _, y in used], list(leaves.values()), cotangents, allow_unused=True
        )
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                result[f"gradient of {name}"] = gradient
    return result


# The float64 reference has an error of its own, absolutely about this: sigmoid' = y(1 - y), for one, cancels.
TRUTH_ERROR = 1e-15
# A result may be off by a few roundings even where the plain computation happens to be exact.
FLOOR = {
    torch.float64: 1e-13,
    torch.float32: 4 * torch.finfo(torch.float32).eps,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


def check_budget(
    ours: Tensor,
    plain: Tensor,
    truth: Tensor,
    dtype: torch.dtype,
    what: str,
    factor: float = 2.0,
    nearby: Callable[[], Iterable[Tensor]] = tuple,
) -> None:
    """``error(ours) <= factor * error(plain) + floor(dtype)``; NaN in the same places; shape and dtype of
    ``plain``. ``nearby()`` gives the reference's errors on other calls, of which the largest may count."""
    assert ours.shape == truth.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    assert ours.dtype == plain.dtype, f"{what}: {ours.dtype}, but the reference gives {plain.dtype}"
    finite = truth.isfinite() & plain.isfinite()
    assert torch.equal(ours[~finite].isnan(), plain[~finite].isnan()), f"{what}: NaN in other places"
    ours, plain, truth = (t[finite].double() for t in (ours, plain, truth))
    if truth.numel() == 0:
        return
    assert ours.isfinite().all(), f"{what}: not finite where the reference is"
    for norm, order in (("maximum", float("inf")), ("L2", 2.0)):
        size, error, plain_error = (
            torch.linalg.vector_norm(t, order).item() for t in (truth, ours - truth, plain - truth)
        )
        floor = FLOOR[dtype] * size + TRUTH_ERROR * max(size, 1)
        if error > factor * plain_error + floor:
            plain_error = max([plain_error, *(torch.linalg.vector_norm(e, order).item() for e in nearby())])
        allowed = factor * plain_error + floor
        assert error <= allowed, (
            f"{what}: {norm} error {error:.3g} > {allowed:.3g} (plain: {plain_error:.3g})"
        )


@contextmanager
def without_onednn(dtype: torch.dtype) -> Iterator[None]:
    """Inside, PyTorch computes in bfloat16 by itself: oneDNN's convolutions can be anything there
    (``_dtype_route`` in aigc_ext/ops/conv2d_act.py), and a budget relative to garbage proves nothing."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(before and dtype != torch.bfloat16)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def reference_results(
    case: OpCase, call: Call, dtype: torch.dtype, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and gradients of the reference in ``dtype``, and in float64 for the same rounded inputs."""
    rounded = {
        k: v if v is None or not v.is_floating_point() else v.to(dtype).double()
        for k, v in call.inputs.items()
    }
    with without_onednn(dtype):
        plain = values_and_gradients(case.reference, prepare(call, case, dtype), call.options, seed, dtype)
    exact = prepare(Call(rounded, call.options), case, torch.float64)
    return plain, values_and_gradients(case.reference, exact, call.options, seed, dtype)


def reference_errors(case: OpCase, call: Call, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """What the reference's roundings do to each result. In float64 they are told from those in float32, since
    the reference is the truth itself."""
    rounded_to = torch.float32 if dtype == torch.float64 else dtype
    plain, truth = reference_results(case, call, rounded_to, seed)
    scale = torch.finfo(dtype).eps / torch.finfo(rounded_to).eps
    return {name: (plain[name].double() - truth[name].double()) * scale for name in truth}


def nearby_call(call: Call, seed: int) -> Call:
    """The same call with every number moved by about a percent: as well conditioned, otherwise rounded."""
    inputs = {
        k: v if v is None or not v.is_floating_point() else v * (1 + 0.01 * seeded(v.shape, seed + i))
        for i, (k, v) in enumerate(call.inputs.items())
    }
    return Call(inputs, call.options)


def check_call(case: OpCase, call: Call, dtype: torch.dtype, layout: str, seed: int) -> None:
    """Values and first gradients of one call within the budget."""
    ours = values_and_gradients(case.function, prepare(call, case, dtype, layout), call.options, seed, dtype)
    plain, truth = reference_results(case, call, dtype, seed)
    assert ours.keys() == plain.keys(), f"{case.name}: {sorted(ours)} instead of {sorted(plain)}"

    @functools.cache
    def nearby_errors() -> list[dict[str, Tensor]]:
        return [reference_errors(case, nearby_call(call, seed + i), dtype, seed + i) for i in range(1, 9)]

    for name in truth:
        what = f"{case.name}, {dtype}, {layout}, {name}"
        factor = case.half_factor if dtype.itemsize == 2 else 2.0
        nearby = functools.partial(lambda name: [errors[name] for errors in nearby_errors()], name)
        check_budget(ours[name], plain[name], truth[name], dtype, what, factor, nearby)


def check_nonfinite(function: Callable[..., Tensor], reference: Callable[..., Tensor], value: float) -> None:
    """One number that is NaN or infinite comes out as in plain PyTorch."""
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    x[1, 2, 0] = value
    torch.testing.assert_close(function(x), reference(x), equal_nan=True)


# ---- native calls ------------------------------------------------------------------------------------------


class NativeCalls(TorchDispatchMode):
    """Notes the calls of our native ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "aigc":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def native_calls(case: OpCase) -> list[tuple[Any, tuple[Any, ...]]]:
    """Calls of all native ops behind small calls of a case and its first and second derivatives, in several
    dtypes and layouts; at most a few of each op. Tensors with a gradient require it."""
    found: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
    kinds = [(torch.float32, "contiguous"), (torch.float32, "channels_last"), (case.dtypes[-1], "contiguous")]
    for call in examples(case.small_calls, 2):
        for dtype, layout in kinds:
            with NativeCalls() as seen:
                _run_to_second_order(case, call, dtype, layout)
            for overload, arguments in seen.calls:
                found.setdefault((overload, *(_kind(value) for value in arguments)), (overload, arguments))
    taken: Counter[Any] = Counter()
    result = []
    for overload, arguments in found.values():
        taken[overload] += 1
        if taken[overload] <= _CALLS_OF_EACH:
            result.append((overload, _as_leaves(overload, arguments)))
    return result


_CALLS_OF_EACH = 4


def _run_to_second_order(case: OpCase, call: Call, dtype: torch.dtype, layout: str) -> None:
    inputs = prepare(call, case, dtype, layout)
    with torch.no_grad():
        outputs_of(case.function, inputs, call.options)
    leaves = [t for t in inputs.values() if t is not None and t.requires_grad]
    for wanted in (leaves, leaves[:1]):
        outputs = [y for y in outputs_of(case.function, inputs, call.options) if y.requires_grad]
        cotangents = [torch.randn_like(y).requires_grad_() for y in outputs]
        slopes = torch.autograd.grad(outputs, wanted, cotangents, create_graph=True, allow_unused=True)
        squares = [(g * g).sum() for g in slopes if g is not None and g.requires_grad]
        if squares and case.twice_differentiable:
            torch.autograd.grad(total(squares), [*leaves, *cotangents], allow_unused=True)


def _kind(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_kind, value))
    if isinstance(value, Tensor):
        return value.dtype, value.dim(), value.is_contiguous()
    return value if isinstance(value, (bool, str)) else type(value)


def _as_leaves(overload: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the tensors in the same layout, which require a gradient if the op has one for them."""
    names = [argument.name for argument in overload._schema.arguments]
    saves = dict(zip(names, arguments, strict=False)).get("save", True)
    wrt = NATIVES[overload.name().removeprefix("aigc::")].wrt if saves else ()

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [leaf(name, item) for item in value]
        if not isinstance(value, Tensor):
            return value
        copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return copy.copy_(value.detach()).requires_grad_(name in wrt and value.is_floating_point())

    return tuple(leaf(name, value) for name, value in zip(names, arguments, strict=False))


def examples(strategy: st.SearchStrategy[Call], count: int) -> list[Call]:
    """That many calls, the same in every run, the largest first."""
    found: list[Call] = []

    @settings(max_examples=20, database=None, derandomize=True, deadline=None)
    @given(strategy)
    def collect(call: Call) -> None:
        found.append(call)

    collect()
    found.sort(
        key=lambda call: sum(0 if t is None else t.numel() for t in call.inputs.values()), reverse=True
    )
    return found[:count]
