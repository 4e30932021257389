"""adam_ema_ against its reference and against PyTorch's optimizers; what it refuses; what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from aigc_ext import decompose, ops
from tests.ops.suite import DTYPES, LAYOUTS, case_id, check_budget, seeded, shapes, with_layout

NUMBERS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "ema_decay": 0.95}
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas")


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def arguments(
    sizes: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """What adam_ema_ takes, in the middle of a run: three steps were taken."""
    result: dict[str, Any] = {name: [] for name in LISTS}
    for i, size in enumerate(sizes):
        values = [seeded(size, seed + 10 * i + k) for k in range(5)]
        values[3] = values[3].square()
        for name, value in zip(LISTS, values, strict=True):
            result[name].append(value.to(dtype if name in ("params", "grads") else state_dtype(dtype)))
    return {**result, "steps": [torch.tensor(3.0) for _ in sizes], **NUMBERS}


def clone(value: Any) -> Any:
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value.clone() if isinstance(value, Tensor) else value


def after(function: Callable[..., None], args: dict[str, Any], calls: int = 1) -> dict[str, Tensor]:
    """Every written tensor by name, after calls on copies (not of gradients: a copy would be dense)."""
    args = {name: value if name == "grads" else clone(value) for name, value in args.items()}
    for _ in range(calls):
        function(**args)
    written: dict[str, Tensor] = {}
    for name in ("params", "exp_avgs", "exp_avg_sqs", "emas", "steps"):
        tensors = args[name] if isinstance(args[name], list) else [args[name]]
        written |= {f"{name}[{i}]": tensor for i, tensor in enumerate(tensors)}
    return written


def assert_same_bits(ours: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert ours.keys() == others.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, others[name]), name


sizes_of_lists = st.lists(shapes(), min_size=1, max_size=4)


@pytest.mark.card
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_within_the_error_budget(layout: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(sizes_of_lists, st.sampled_from(DTYPES), st.booleans(), st.booleans(), st.integers(0, 2**31))
    def check(sizes, dtype, averages, one_step, seed):
        args = arguments(sizes, dtype, seed)
        if not averages:
            args["emas"] = None
        if one_step:
            args["steps"] = torch.tensor(3.0)
        exact = {
            name: [t.double() for t in value] if name in LISTS and value is not None else value
            for name, value in args.items()
        }
        args["emas"], exact["emas"] = args["emas"] or [], exact["emas"] or []
        moved = {
            name: [with_layout(t, layout if layout != "offset" else "contiguous") for t in value]
            if name in LISTS
            else value
            for name, value in args.items()
        }
        if layout == "offset":  # states must be dense; a gradient may lie anywhere
            moved["grads"] = [with_layout(t, layout) for t in args["grads"]]
        ours, plain, truth = (
            after(function, given_args, calls=3)
            for function, given_args in (
                (ops.adam_ema_, moved),
                (ops.adam_ema_ref, args),
                (ops.adam_ema_ref, exact),
            )
        )
        for name in truth:
            check_budget(ours[name], plain[name], truth[name], dtype, f"{name}, {dtype}, {layout}")

    check()


@pytest.mark.card
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_those_of_pytorchs_fused_optimizer_and_lerp(
    dtype: torch.dtype, weight_decay: float
) -> None:
    sizes = [(13, 11), (64, 100), (7,), ()]
    args = {**arguments(sizes, dtype), "weight_decay": weight_decay}
    for name in ("exp_avgs", "exp_avg_sqs", "steps"):
        args[name] = [torch.zeros_like(t) for t in args[name]]
    params, emas = [t.clone().requires_grad_() for t in args["params"]], clone(args["emas"])
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    theirs = kind(params, 1e-2, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    for step in range(30):
        args["grads"] = [seeded(size, 1000 * step + i).to(dtype) for i, size in enumerate(sizes)]
        for param, grad in zip(params, args["grads"], strict=True):
            param.grad = grad.clone()
        ops.adam_ema_(**args)
        theirs.step()
        for ema, param in zip(emas, params, strict=True):
            ema.lerp_(param.detach(), 1 - NUMBERS["ema_decay"])
    close: dict[str, Any] = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(args["params"], [p.detach() for p in params], **close)
    torch.testing.assert_close(args["emas"], emas, **close)
    for name, key in (("exp_avgs", "exp_avg"), ("exp_avg_sqs", "exp_avg_sq")):
        torch.testing.assert_close(args[name], [theirs.state[p][key] for p in params], **close)


@pytest.mark.card
def test_steps_of_one_call_may_differ() -> None:
    args = arguments([(5,), (6,), (7,)])
    args["steps"] = [torch.tensor(float(t)) for t in (0, 100, 3)]
    together = after(ops.adam_ema_, args)
    for i in range(3):
        alone = {name: [value[i]] if isinstance(value, list) else value for name, value in args.items()}
        for name, tensor in after(ops.adam_ema_, alone).items():
            assert torch.equal(tensor, together[name.replace("[0]", f"[{i}]")]), name


@pytest.mark.card
def test_floats_and_tensors_give_the_same_bits() -> None:
    args = arguments([(33, 9), (5,)], torch.float64)
    tensors = {
        name: torch.tensor(NUMBERS[name], dtype=torch.float64)
        for name in ("lr", "beta1", "beta2", "weight_decay", "ema_decay")
    }
    expected = after(ops.adam_ema_, args)
    assert_same_bits(after(ops.adam_ema_, {**args, **tensors}), expected)
    for name in ("lr", "weight_decay"):
        assert_same_bits(after(ops.adam_ema_, {**args, name: tensors[name]}), expected)
    args["steps"] = [step.double() for step in args["steps"]]
    assert_same_bits(
        after(ops.adam_ema_, args),
        {k: v.to(expected[k].dtype) for k, v in expected.items()}
        | {k: v.double() for k, v in expected.items() if k.startswith("steps")},
    )


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    args = arguments([(257, 301), (3,), (70_001,), (9, 1000)])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(after(ops.adam_ema_, {**args, "skip_nonfinite": True}))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.card
def test_nothing_around_the_tensors_is_touched() -> None:
    pad, args, buffers = 3, arguments([(5, 7), (1,), (66,)]), []
    for name in LISTS:
        for i, tensor in enumerate(args[name]):
            buffer = torch.full((tensor.numel() + 2 * pad,), torch.pi)
            inside = buffer[pad : pad + tensor.numel()].view(tensor.shape)
            inside.copy_(tensor)
            args[name][i] = inside
            buffers.append(buffer)
    expected = after(ops.adam_ema_, args)  # on aligned copies
    ops.adam_ema_(**args)
    for buffer in buffers:
        assert (buffer[:pad] == torch.pi).all()
        assert (buffer[-pad:] == torch.pi).all()
    for i in range(3):
        assert torch.equal(args["params"][i], expected[f"params[{i}]"])


@pytest.mark.card
@pytest.mark.parametrize("found", [1.0, float("nan")])
def test_found_inf_stops_everything(found: float) -> None:
    args = arguments([(40,), (3, 3)])
    skipped = torch.tensor(6)
    args |= {"found_inf": torch.tensor(found)}
    assert_same_bits(after(ops.adam_ema_, args), after(lambda **_: None, args))
    ops.adam_ema_(**args, skipped=skipped)
    assert skipped == 7
    args["found_inf"] = torch.tensor(0.0)
    ops.adam_ema_(**args, skipped=skipped)
    assert skipped == 7
    assert args["steps"][0] == 4


@pytest.mark.card
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("where", [(0, 0), (0, 199), (1, 0), (2, 16)])
def test_skip_nonfinite_stops_everything(where: tuple[int, int], value: float) -> None:
    args = arguments([(200,), (1,), (17,)])
    assert not torch.equal(
        after(ops.adam_ema_, {**args, "skip_nonfinite": True})["params[0]"], args["params"][0]
    )
    args["grads"][where[0]][where[1]] = value
    skipped = torch.tensor(0)
    args |= {"skip_nonfinite": True, "skipped": skipped}
    assert_same_bits(after(ops.adam_ema_, args), after(lambda **_: None, args))
    ops.adam_ema_(**args)
    assert skipped == 1


@pytest.mark.card
@settings(max_examples=60, deadline=None)
@given(
    st.lists(shapes(), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from([None, float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(LAYOUTS),
    st.data(),
)
def test_any_nonfinite(sizes, dtype, value, layout, data) -> None:
    largest = torch.finfo(dtype).max
    tensors = [seeded(size, i).sign().to(dtype) * largest for i, size in enumerate(sizes)]
    present = False
    full = [i for i, t in enumerate(tensors) if t.numel() > 0]
    if value is not None and full:
        chosen = tensors[data.draw(st.sampled_from(full))].view(-1)
        chosen[data.draw(st.integers(0, chosen.numel() - 1))] = value
        present = True
    tensors = [with_layout(t, layout) for t in tensors]
    found = ops.any_nonfinite(tensors)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found == float(present)
    assert torch.equal(found, ops.any_nonfinite_ref(tensors))


def test_any_nonfinite_needs_a_tensor() -> None:
    with pytest.raises(RuntimeError, match="tensors is empty, but must hold at least one"):
        ops.any_nonfinite([])


@pytest.mark.card
def test_half_weights_have_float32_state() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        args = arguments([(50,)], dtype)
        ops.adam_ema_(**args)
        assert args["params"][0].dtype == dtype
        assert {args[name][0].dtype for name in ("exp_avgs", "exp_avg_sqs", "emas")} == {torch.float32}


@pytest.mark.card
def test_autograd_refuses_a_graph_that_is_out_of_date() -> None:
    args = arguments([(4, 4)])
    w = args["params"][0].requires_grad_()
    loss = torch.ones(2, 4, requires_grad=True).mm(w).sum()
    ops.adam_ema_(**args)
    assert w.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.card
def test_opcheck() -> None:
    def flat(args: dict[str, Any]) -> tuple[Any, ...]:
        return (*args.values(), None, torch.tensor(0), True)

    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(torch.ops.aigc.adam_ema_.default, flat(arguments([(3, 4), (5,)], dtype)))
    args = arguments([(3, 4), (5,)])
    numbers = {name: torch.tensor(number) for name, number in NUMBERS.items() if name != "eps"}
    torch.library.opcheck(torch.ops.aigc.adam_ema_.tensor, flat({**args, **numbers}))
    torch.library.opcheck(torch.ops.aigc.any_nonfinite.default, (args["grads"],))


def test_compiles_in_one_graph() -> None:
    args = arguments([(3, 4), (5,)])
    torch._dynamo.reset()
    compiled = torch.compile(ops.adam_ema_, fullgraph=True, backend="aot_eager")
    assert_same_bits(after(compiled, args, calls=2), after(ops.adam_ema_, args, calls=2))


def test_decomposed_is_the_reference() -> None:
    args = {**arguments([(3, 4), (5,)]), "skip_nonfinite": True}
    with decompose():
        ours = after(ops.adam_ema_, args)
        assert ops.any_nonfinite(args["grads"]) == 0
    assert_same_bits(ours, after(ops.adam_ema_ref, args))


def two(**changes: Any) -> dict[str, Any]:
    return {**arguments([(3, 4), (3, 4)]), **changes}


def replaced(name: str, tensor: Tensor) -> dict[str, Any]:
    return {name: [arguments([(3, 4), (3, 4)])[name][0], tensor]}


BAD = [
    *(
        (replaced(name, torch.zeros(3, 5)), (f"{name}[1]", "shape [3, 5]", "shape [3, 4]"))
        for name in LISTS[1:]
    ),
    *(
        (replaced(name, torch.zeros(4, 3).t()), (f"{name}[1]", "strides [1, 3]", "strides [4, 1]"))
        for name in LISTS[2:]
    ),
    *(
        (
            replaced(name, torch.zeros(3, 4).double()),
            (f"{name}[1] is float64", "must be float32", "params[1]"),
        )
        for name in LISTS[1:]
    ),
    (replaced("exp_avgs", torch.zeros(3, 4).half()), ("exp_avgs[1] is float16", "must be float32")),
    (replaced("params", torch.zeros(3, 8)[:, ::2]), ("params[1]", "strides [8, 2]", "dense")),
    (replaced("params", torch.zeros(3, 4, dtype=torch.int64)), ("params[1] is", "must be float64, float32")),
    (
        replaced("params", torch.zeros(3, 4, dtype=torch.complex64)),
        ("params[1] is", "must be float64, float32"),
    ),
    *(({name: two()[name][:1]}, (f"{name} has 1 tensors", "params has 2")) for name in LISTS[1:]),
    ({"steps": [torch.zeros(())] * 3}, ("steps has 3 tensors", "params has 2")),
    ({"steps": torch.zeros(2)}, ("steps[0]", "shape [2]", "one number")),
    ({"steps": torch.tensor(3)}, ("steps[0]", "float32 or float64")),
    ({"lr": -1.0}, ("lr is -1", "at least 0")),
    ({"lr": float("nan")}, ("lr is nan", "at least 0")),
    ({"beta1": 1.0}, ("beta1 is 1", "less than 1")),
    ({"beta2": -0.1}, ("beta2 is -0.1", "at least 0")),
    ({"eps": -1e-8}, ("eps is -1e-08", "at least 0")),
    ({"weight_decay": -0.5}, ("weight_decay is -0.5", "at least 0")),
    ({"ema_decay": 1.5}, ("ema_decay is 1.5", "between 0 and 1")),
    ({"lr": torch.tensor([0.1, 0.2])}, ("lr", "shape [2]", "one number")),
    ({"lr": torch.tensor(1)}, ("lr", "float32 or float64")),
    ({"weight_decay": torch.zeros(2)}, ("weight_decay", "shape [2]", "one number")),
    ({"found_inf": torch.tensor(1)}, ("found_inf", "float32")),
    ({"found_inf": torch.zeros(2)}, ("found_inf", "[2]", "one float32 number")),
    ({"skipped": torch.tensor(0.0)}, ("skipped", "int64")),
    ({"found_inf": torch.tensor(0.0), "skip_nonfinite": True}, ("found_inf and skip_nonfinite", "together")),
    (replaced("grads", torch.zeros(3, 4, device="meta")), ("grads[1] is on meta", "must be on cpu")),
]


@pytest.mark.parametrize(("changes", "parts"), BAD, ids=case_id)
def test_bad_argument(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    args = two(**changes)
    kept = clone(args["params"][0])
    with pytest.raises(RuntimeError) as error:
        ops.adam_ema_(**args)
    for part in ("adam_ema_", *parts):
        assert part in str(error.value), f"{part!r} is not in {str(error.value)!r}"
    assert torch.equal(args["params"][0], kept)


@pytest.mark.card
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("params[0]", "params[1]"),
        ("params[0]", "emas[0]"),
        ("grads[0]", "params[0]"),
        ("grads[0]", "exp_avgs[1]"),
        ("exp_avgs[0]", "exp_avg_sqs[0]"),
    ],
)
def test_shared_memory_is_refused(first: str, second: str) -> None:
    args, storage = two(), torch.randn(18)
    for offset, place in ((0, first), (6, second)):
        args[place[:-3]][int(place[-2])] = storage[offset : offset + 12].view(3, 4)
    kept = storage.clone()
    with pytest.raises(RuntimeError, match="overlap in memory") as error:
        ops.adam_ema_(**args)
    assert first in str(error.value)
    assert second in str(error.value)
    assert torch.equal(storage, kept)


@pytest.mark.card
def test_gradients_may_share_memory() -> None:
    args = two()
    args["grads"][1] = args["grads"][0]
    apart = {**args, "grads": [g.clone() for g in args["grads"]]}
    expected = after(ops.adam_ema_, apart)
    ops.adam_ema_(**args)
    assert torch.equal(args["params"][1], expected["params[1]"])


def test_a_sparse_gradient_is_refused() -> None:
    args = two()
    args["grads"][1] = args["grads"][1].to_sparse()
    with pytest.raises(NotImplementedError, match=r"adam_ema_.*SparseCPU"):
        ops.adam_ema_(**args)
