"""Small projects in the call styles that compat serves: some files must not run, and networks must."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aigc_ext import compat, ops

MUST_NOT_RUN = 'raise RuntimeError("would compile kernels")\n'
PROJECTS: dict[str, dict[str, str]] = {
    "stylegan": {
        "torch_utils/__init__.py": "",
        "torch_utils/ops/__init__.py": "",
        **{
            f"torch_utils/ops/{name}.py": MUST_NOT_RUN
            for name in (
                *("bias_act", "upfirdn2d", "filtered_lrelu", "fma", "conv2d_gradfix", "conv2d_resample"),
                "grid_sample_gradfix",
            )
        },
        "networks.py": """
import torch
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, filtered_lrelu, fma
from torch_utils.ops import grid_sample_gradfix, upfirdn2d

class Layer(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.weight = torch.nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.bias = torch.nn.Parameter(torch.zeros(channels))
        self.gain = bias_act.activation_funcs["lrelu"].def_gain

    def forward(self, x):
        x = conv2d_resample.conv2d_resample(
            x=x, w=self.weight, f=self.resample_filter, up=2, padding=1, flip_weight=False)
        x = fma.fma(x, torch.ones(1, x.shape[1], 1, 1), torch.zeros_like(x))
        x = bias_act.bias_act(x, self.bias, act="lrelu", gain=self.gain, clamp=256)
        x = filtered_lrelu.filtered_lrelu(
            x=x, fu=self.resample_filter, fd=self.resample_filter, b=self.bias, up=2, down=2, padding=3)
        x = upfirdn2d.downsample2d(x, self.resample_filter, impl="ref")
        return conv2d_gradfix.conv2d(x, self.weight, padding=1)

def penalty(layer, x):
    conv2d_gradfix.enabled = True
    grid_sample_gradfix.enabled = True
    with conv2d_gradfix.no_weight_gradients():
        (g,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with conv2d_gradfix.no_weight_gradients(disable=False):
        (dw,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    assert dw is not None
    return g.square().sum()
""",
    },
    "rosinality": {
        "op/__init__.py": (
            "from .fused_act import FusedLeakyReLU, fused_leaky_relu\nfrom .upfirdn2d import upfirdn2d\n"
        ),
        "op/fused_act.py": MUST_NOT_RUN,
        "op/upfirdn2d.py": MUST_NOT_RUN,
        "op/conv2d_gradfix.py": MUST_NOT_RUN,
        "networks.py": """
import torch
from op import FusedLeakyReLU, conv2d_gradfix, fused_leaky_relu, upfirdn2d

def run(x, kernel):
    layer = FusedLeakyReLU(x.shape[1])
    assert list(layer.state_dict()) == ["bias"]
    x = upfirdn2d(layer(x), kernel, up=2, pad=(2, 1))
    x = fused_leaky_relu(x, None, 0.2, 1.0)
    return conv2d_gradfix.conv2d(input=x, weight=torch.ones(1, x.shape[1], 1, 1), bias=None)
""",
    },
    "basicsr": {
        "basicsr/__init__.py": "",
        "basicsr/ops/__init__.py": "",
        "basicsr/ops/fused_act/__init__.py": "from .fused_act import FusedLeakyReLU, fused_leaky_relu\n",
        "basicsr/ops/fused_act/fused_act.py": MUST_NOT_RUN,
        "basicsr/ops/upfirdn2d/__init__.py": "from .upfirdn2d import upfirdn2d\n",
        "basicsr/ops/upfirdn2d/upfirdn2d.py": MUST_NOT_RUN,
        "networks.py": """
from basicsr.ops.fused_act import FusedLeakyReLU, fused_leaky_relu
from basicsr.ops.upfirdn2d import upfirdn2d

def run(x, kernel):
    x = FusedLeakyReLU(x.shape[1])(x)
    x = upfirdn2d(x, kernel, up=(2, 2), pad=(2, 1, 2, 1))
    return fused_leaky_relu(x, x.new_zeros(x.shape[1]), scale=1.0).sum(1, keepdim=True)
""",
    },
    "mmcv": {
        "mmcv/__init__.py": "",
        "mmcv/ops/__init__.py": (
            "from .bias_act import bias_act\nfrom .conv2d_gradfix import conv2d, conv_transpose2d\n"
            "from .filtered_lrelu import filtered_lrelu\n"
            "from .fused_bias_leakyrelu import FusedBiasLeakyReLU, fused_bias_leakyrelu\n"
            "from .upfirdn2d import downsample2d, filter2d, upfirdn2d, upsample2d\nnms = 'its own'\n"
        ),
        **{
            f"mmcv/ops/{name}.py": MUST_NOT_RUN
            for name in ("bias_act", "conv2d_gradfix", "filtered_lrelu", "fused_bias_leakyrelu", "upfirdn2d")
        },
        "networks.py": """
from mmcv.ops import FusedBiasLeakyReLU, bias_act, conv2d, downsample2d, filter2d, filtered_lrelu
from mmcv.ops import fused_bias_leakyrelu, nms, upfirdn2d, upsample2d

def run(x, kernel):
    assert nms == "its own"
    x = FusedBiasLeakyReLU(x.shape[1])(x)
    y = upfirdn2d(x, kernel, up=2, pad=(2, 1))
    z = upfirdn2d(x, kernel, 2, 1, [2, 1, 2, 1])
    assert (y == z).all()
    for again in (upsample2d(downsample2d(x, kernel), kernel), filter2d(x, kernel), filtered_lrelu(x)):
        assert again.shape == x.shape
    y = bias_act(fused_bias_leakyrelu(y, y.new_zeros(y.shape[1]), scale=1.0), None, use_custom_op=False)
    return conv2d(y, y.new_ones(1, y.shape[1], 1, 1))
""",
    },
}
ROOTS = ("torch_utils", "op", "basicsr", "mmcv", "networks")


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The compat module of a project whose files can be imported."""
    for name, text in PROJECTS[request.param].items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield getattr(compat, request.param)
    getattr(compat, request.param).uninstall()
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ROOTS]:
        del sys.modules[name]
    importlib.invalidate_caches()


def networks() -> ModuleType:
    return importlib.import_module("networks")


def expected(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    x = F.leaky_relu(x, 0.2) * 2**0.5
    x = ops.upfirdn2d_ref(x, kernel, up=2, padding=[2, 1, 2, 1])
    return F.leaky_relu(x, 0.2).sum(1, keepdim=True)


@pytest.mark.parametrize("project", ["rosinality", "basicsr", "mmcv"], indirect=True)
def test_a_project_runs_on_our_ops(project: Any) -> None:
    torch.manual_seed(0)
    x, kernel = torch.randn(2, 3, 6, 8), torch.rand(4, 4)
    with pytest.raises(RuntimeError, match="would compile"):
        networks()
    forget()
    with project.install() as installation:
        assert "aigc_ext replaces " in str(installation)
        assert not installation.in_place
        torch.testing.assert_close(networks().run(x, kernel), expected(x, kernel))
    forget()
    with pytest.raises(RuntimeError, match="would compile"):
        networks()


@pytest.mark.parametrize("project", ["stylegan"], indirect=True)
def test_stylegan_networks_and_their_penalty(project: Any) -> None:
    torch.manual_seed(0)
    project.install()
    module = networks()
    layer = module.Layer(4)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    y = layer(x)
    f, w = layer.resample_filter, layer.weight
    z = ops.conv2d_resample_ref(x, w, f, up=2, padding=1, flip_weight=False)
    z = ops.bias_act_ref(z, layer.bias, act="lrelu", clamp=256)
    z = ops.filtered_lrelu_ref(z, f, f, layer.bias, up=2, down=2, padding=3)
    z = ops.upfirdn2d_ref(z, f, down=2, padding=1)
    torch.testing.assert_close(y, F.conv2d(z, w, padding=1), rtol=1e-4, atol=1e-4)
    value = module.penalty(layer, x)
    value.backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("project", ["stylegan"], indirect=True)
def test_impl_is_checked(project: Any) -> None:
    with pytest.raises(ValueError, match="impl is 'opencl', but must be 'ref' or 'cuda'"):
        compat.stylegan.bias_act(torch.zeros(1, 2), impl="opencl")
    for function in (compat.stylegan.upsample2d, compat.stylegan.filter2d, compat.stylegan.downsample2d):
        x, f = torch.randn(1, 2, 6, 6), ops.setup_filter([1, 3, 3, 1])
        torch.testing.assert_close(function(x, f, impl="ref"), function(x, f))


@pytest.mark.parametrize("project", ["rosinality"], indirect=True)
def test_modules_that_were_imported_before_are_changed_and_put_back(project: Any, tmp_path: Path) -> None:
    (tmp_path / "op/fused_act.py").write_text(
        "def fused_leaky_relu(x, bias):\n    return 'slow'\nclass FusedLeakyReLU: pass\nother = 1\n"
    )
    (tmp_path / "op/upfirdn2d.py").write_text("def upfirdn2d(*a, **k):\n    return 'slow'\n")
    package = importlib.import_module("op")
    slow = package.fused_leaky_relu
    installation = project.install()
    assert set(installation.in_place) == {"op.fused_act", "op.upfirdn2d"}
    assert "imported before: op.fused_act" in str(installation)
    for module in (package, sys.modules["op.fused_act"]):
        assert module.fused_leaky_relu is not slow
    assert sys.modules["op.fused_act"].other == 1
    assert project.install().in_place == installation.in_place  # again: no harm
    ours = importlib.import_module("op.conv2d_gradfix")
    assert ours.enabled
    project.uninstall()
    for module in (package, sys.modules["op.fused_act"]):
        assert module.fused_leaky_relu is slow
    assert not hasattr(package, "conv2d_gradfix")
    assert "op.conv2d_gradfix" not in sys.modules
    project.uninstall()  # again: no harm
    assert not [finder for finder in sys.meta_path if type(finder).__name__ == "Replacement"]
