"""The ops' autograd nodes have a form in C++ and one in Python, whose results must not differ."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from aigc_ext import _native, ops
from aigc_ext.ops._op import records

# Not where the library is missing: a build without it must fail here.
pytestmark = pytest.mark.skipif(
    os.environ.get("AIGC_EXT_AUTOGRAD") == "python", reason="the nodes are Python's, as was asked for"
)
ROOT = Path(__file__).parents[2]


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors_in(item)]
    return []


def derivatives() -> dict[str, list[Tensor | None]]:
    """Of every op's example: results, gradients, those in no_weight_gradients(), and those of a penalty."""
    found: dict[str, list[Tensor | None]] = {}
    for op in records():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            torch.manual_seed(0)
            arguments = op.arguments()
            given = [t for t in tensors_in(list(arguments.values())) if t.is_floating_point()]
            if dtype != torch.float32:
                if any(isinstance(v, (list, tuple)) and tensors_in(v) for v in arguments.values()):
                    continue
                arguments = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in arguments.items()}
                given = [t for t in tensors_in(list(arguments.values())) if t.is_floating_point()]
            if op.name.endswith("_") or "step" in op.name:  # they change their arguments
                continue
            for t in given:
                t.requires_grad_()
            outputs = [t for t in tensors_in(op.public(**arguments)) if t.requires_grad]
            key = f"{op.name} {dtype}"
            found[key] = [t.detach() for t in outputs]
            if not outputs:
                continue
            along = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape) for t in outputs]
            found[key] += torch.autograd.grad(outputs, given, along, retain_graph=True, allow_unused=True)
            for create_graph in (False, True):
                with ops.no_weight_gradients():
                    gradients = torch.autograd.grad(
                        outputs, given[:1], along, retain_graph=True, create_graph=create_graph
                    )
                found[key] += [t.detach() for t in gradients]
            if gradients[0].requires_grad:
                found[key] += torch.autograd.grad(gradients[0].square().sum(), given, allow_unused=True)
    return found


def test_both_forms_have_the_same_bits(tmp_path: Path) -> None:
    code = f"import torch; from {__name__} import derivatives; torch.save(derivatives(), 'python.pt')"
    path = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"AIGC_EXT_AUTOGRAD": "python", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    expected, found = torch.load(tmp_path / "python.pt"), derivatives()
    assert expected.keys() == found.keys()
    assert len(found) > 40
    compared = 0
    for key, tensors in found.items():
        assert len(tensors) == len(expected[key]), key
        for one, other in zip(tensors, expected[key], strict=True):
            assert (one is None) == (other is None), key
            if one is not None:
                assert torch.equal(one, other), key
                compared += 1
    assert compared > 150


def layer(**options: Any) -> tuple[list[Tensor], Tensor]:
    x, w, b = (torch.randn(size, requires_grad=True) for size in ((4, 8), (6, 8), (6,)))
    return [x, w, b], ops.linear_act(x, w, b, act="lrelu", **options)


def test_it_is_the_one_in_use() -> None:
    assert _native.autograd is not None, "csrc/autograd was not built: see setup.py's output"
    _, y = layer()
    assert y.grad_fn is not None
    assert y.grad_fn.name() == "aigc_linear_actBackward"
    assert not isinstance(y.grad_fn, torch.autograd.function.BackwardCFunction)


def test_nodes_are_freed() -> None:
    """With everything that they saved, results among it, which belong to the node itself."""

    class Mark:
        pass

    x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 1, 1, requires_grad=True)
    results = [ops.bias_act(w, act="sigmoid"), ops.conv2d_act(x, w, act="tanh")]
    gone = []
    for y in results:
        assert y.grad_fn is not None
        mark = Mark()
        y.grad_fn.metadata["mark"] = mark  # type: ignore[index]
        gone.append(weakref.ref(mark))
    del results, y, mark
    gc.collect()
    assert [mark() for mark in gone] == [None, None]


def test_a_second_backward_and_a_change_in_place_are_refused() -> None:
    _, y = layer()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()
    (x, *_), y = layer()
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saved_tensors_hooks_and_checkpoints() -> None:
    packed = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        given, y = layer()
    assert any(t is given[0] or torch.equal(t, given[0]) for t in packed)
    expected = torch.autograd.grad(y.sum(), given)
    again = torch.utils.checkpoint.checkpoint(
        lambda x, w, b: ops.linear_act(x, w, b, act="lrelu"), *given, use_reentrant=False
    )
    for one, other in zip(torch.autograd.grad(again.sum(), given), expected, strict=True):
        assert torch.equal(one, other)


def test_an_error_of_a_formula_is_its_own() -> None:
    """Raised in Python, through the engine's C++, and by the op, in C++ alone."""
    x = torch.randn(2, 3, 4, 4)
    weight, mean = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    y = ops.batch_norm_act(x, weight, torch.zeros(3), mean, torch.ones(3), training=False)
    with pytest.raises(RuntimeError, match="there is no gradient with respect to"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="linear_act: x has shape"):
        ops.linear_act(x, torch.ones(2, 5, requires_grad=True))
    with pytest.raises(TypeError, match="but must be a tensor"):
        ops.linear_act(x, None)  # type: ignore[arg-type]


def test_a_hook_may_raise_and_the_next_call_works() -> None:
    (x, *_), y = layer()

    def fails(grad: Tensor) -> None:
        raise KeyError("mine")

    x.register_hook(fails)
    with pytest.raises(KeyError, match="mine"):
        y.sum().backward()
    given, y = layer()
    assert all(t is not None for t in torch.autograd.grad(y.sum(), given))


class Noted(Tensor):
    """A subclass that sees every function."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_and_modes_see_what_they_saw() -> None:
    x = torch.randn(4, 8).as_subclass(Noted)
    assert isinstance(ops.bias_act(x, act="relu"), Noted)
    assert "bias_act.default" in Noted.calls or "bias_act" in " ".join(Noted.calls)

    seen: list[str] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        ops.bias_act(torch.randn(4, 8), act="relu")
    assert any("bias_act" in name for name in seen)


def test_what_the_variable_says(tmp_path: Path) -> None:
    def importing(value: str) -> subprocess.CompletedProcess[str]:
        code = "import aigc_ext._native as n; print(n.autograd is not None)"
        path = os.pathsep.join([str(ROOT), *sys.path])
        environment = os.environ | {"AIGC_EXT_AUTOGRAD": value, "PYTHONPATH": path}
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    assert [importing(value).stdout.strip() for value in ("native", "python")] == ["True", "False"]
    wrong = importing("both").stderr
    assert "AIGC_EXT_AUTOGRAD is 'both', but must be auto, native or python" in wrong


def test_a_library_for_another_torch_is_not_touched(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    monkeypatch.delenv("AIGC_EXT_AUTOGRAD", raising=False)
    assert _native.load_autograd() is None
    monkeypatch.setenv("AIGC_EXT_AUTOGRAD", "native")
    with pytest.raises(ImportError, match=r"AIGC_EXT_AUTOGRAD is native, but .*torch2\.12\.1.* is missing"):
        _native.load_autograd()


def test_compiled_autograd_is_refused_in_words() -> None:
    """It would keep a graph by what a node says of itself, and ours keep Python's values."""
    from torch._dynamo import compiled_autograd

    _, y = layer()
    with (
        compiled_autograd._enable(torch.compile(backend="eager")),
        pytest.raises(NotImplementedError, match="compiled_args not implemented: aigc_linear_actBackward"),
    ):
        y.sum().backward()
