"""Copies of the ops under other paths: stand-ins with the module paths, names and signatures of projects."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aigc_ext import compat, ops
from aigc_ext.compat import _gradfix

MUST_NOT_RUN = 'raise RuntimeError("would compile kernels")\n'
FUSED_ACT = """
class FusedLeakyReLU:
    def __init__(self, channel, bias=True, negative_slope=0.2, scale=2 ** 0.5): ...
def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2 ** 0.5): ...
"""
OLD_FUSED_ACT = """
import torch
if torch.cuda.is_available():
    fused = None
class FusedLeakyReLUFunction: ...
class FusedLeakyReLU:
    def __init__(self, channel, negative_slope=0.2, scale=2 ** 0.5): ...
def fused_leaky_relu(input, bias, negative_slope=0.2, scale=2 ** 0.5): ...
"""
GPEN_FUSED_ACT = """
class FusedLeakyReLU:
    def __init__(self, channel, negative_slope=0.2, scale=2 ** 0.5, device='cpu'): ...
def fused_leaky_relu(input, bias, negative_slope=0.2, scale=2 ** 0.5, device='cpu'): ...
"""
UPFIRDN2D = "def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)): ...\ndef upfirdn2d_native(input): ...\n"
GPEN_UPFIRDN2D = "def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0), device='cpu'): ...\n"
BIAS_ACT = """
activation_funcs = {}
def bias_act(x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None, impl='cuda'): ...
"""
OFFICIAL = {
    "bias_act": BIAS_ACT,
    "upfirdn2d": """
def setup_filter(f, device=torch.device('cpu'), normalize=True, flip_filter=False, gain=1,
                 separable=None): ...
def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl='cuda'): ...
def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl='cuda'): ...
def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl='cuda'): ...
def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl='cuda'): ...
""",
    "filtered_lrelu": """
import numpy as np
def filtered_lrelu(x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=np.sqrt(2), slope=0.2,
                   clamp=None, flip_filter=False, impl='cuda'): ...
""",
    "fma": "def fma(a, b, c): ...\n",
    "conv2d_gradfix": """
enabled = False
def no_weight_gradients(disable=True): ...
def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): ...
def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1,
                     dilation=1): ...
""",
    "conv2d_resample": """
def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False): ...
""",
    "grid_sample_gradfix": "enabled = False\ndef grid_sample(input, grid): ...\n",
}
ROSINALITY_INIT = (
    "from .fused_act import FusedLeakyReLU, fused_leaky_relu\nfrom .upfirdn2d import upfirdn2d\n"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    compat.uninstall()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]
    for name in [n for n in sys.modules if n.partition(".")[0] in ROOTS]:
        del sys.modules[name]
    importlib.invalidate_caches()


ROOTS = {
    *("models", "utils", "src", "third_party", "torch_utils", "score_sde", "mapper", "pti", "op", "mmcv"),
    *("face_model", "networks"),
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in {folder for name in files for folder in (root / name).parents if root in folder.parents}:
        if not (folder / "__init__.py").exists():
            (folder / "__init__.py").write_text("")
    importlib.invalidate_caches()


def rosinality(package: str, fused_act: str = FUSED_ACT, upfirdn2d: str = UPFIRDN2D) -> dict[str, str]:
    folder = package.replace(".", "/")
    return {
        f"{folder}/__init__.py": ROSINALITY_INIT,
        f"{folder}/fused_act.py": MUST_NOT_RUN + fused_act,
        f"{folder}/upfirdn2d.py": MUST_NOT_RUN + upfirdn2d,
    }


@pytest.mark.parametrize(
    "fused_act", [FUSED_ACT, OLD_FUSED_ACT, GPEN_FUSED_ACT], ids=["new", "old", "device"]
)
@pytest.mark.parametrize(
    "package",
    [
        "models.stylegan2.op",
        "torch_utils.op_edit",
        "score_sde.op",
        "mapper.stylegan2.op",
        "pti.models.e4e.op",
        "op",
    ],
)
@pytest.mark.parametrize("install", [compat.install, compat.rosinality.install], ids=["all", "family"])
def test_copies_of_fused_act_and_upfirdn2d(root: Path, package: str, fused_act: str, install: Any) -> None:
    write(root, rosinality(package, fused_act))
    torch.manual_seed(0)
    x, b, kernel = torch.randn(2, 3, 6, 8), torch.randn(3), torch.rand(4, 4)
    install()
    copy = importlib.import_module(package)
    layer = copy.FusedLeakyReLU(3)
    assert list(layer.state_dict()) == ["bias"]
    torch.testing.assert_close(layer(x), F.leaky_relu(x, 0.2) * 2**0.5)
    torch.testing.assert_close(copy.fused_leaky_relu(x, b, 0.1, 1.0), F.leaky_relu(x + b[:, None, None], 0.1))
    torch.testing.assert_close(
        copy.upfirdn2d(x, kernel, up=2, pad=(2, 1)), ops.upfirdn2d_ref(x, kernel, 2, 1, [2, 1, 2, 1])
    )
    report = compat.report()
    assert {record.module: dict(record.calls) for record in report.replaced} == {
        f"{package}.fused_act": {"FusedLeakyReLU": 1, "fused_leaky_relu": 1},
        f"{package}.upfirdn2d": {"upfirdn2d": 1},
    }
    assert not report.left
    assert f"{package}.fused_act: FusedLeakyReLU, fused_leaky_relu; calls: " in str(report)
    assert "models.stylegan2.op.fused_act" not in str(report) or package.startswith("models")
    compat.uninstall()
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]
    with pytest.raises(RuntimeError, match="would compile"):
        importlib.import_module(package)


@pytest.mark.parametrize(
    "package",
    [
        "utils.style_ops",
        "src.torch_utils.ops",
        "third_party.stylegan2_official_ops",
        "third_party.gan3_official_ops",
    ],
)
@pytest.mark.parametrize("install", [compat.install, compat.stylegan.install], ids=["all", "family"])
def test_copies_of_torch_utils_ops(root: Path, package: str, install: Any) -> None:
    folder = package.replace(".", "/")
    write(root, {f"{folder}/{name}.py": MUST_NOT_RUN + text for name, text in OFFICIAL.items()})
    install()
    module = {name: importlib.import_module(f"{package}.{name}") for name in OFFICIAL}
    x, b = torch.randn(2, 3, 8, 8), torch.randn(3)
    f = module["upfirdn2d"].setup_filter([1, 3, 3, 1], device=torch.device("cpu"))
    w = torch.randn(4, 3, 3, 3)
    checks = {
        "bias_act": (
            module["bias_act"].bias_act(x, b, act="lrelu", impl="ref"),
            ops.bias_act_ref(x, b, act="lrelu"),
        ),
        "upfirdn2d": (module["upfirdn2d"].upsample2d(x, f), ops.upsample2d_ref(x, f)),
        "filtered_lrelu": (module["filtered_lrelu"].filtered_lrelu(x, b=b), ops.filtered_lrelu_ref(x, b=b)),
        "fma": (module["fma"].fma(x, x, x), x * x + x),
        "conv2d_gradfix": (module["conv2d_gradfix"].conv2d(x, w), F.conv2d(x, w)),
        "conv2d_resample": (
            module["conv2d_resample"].conv2d_resample(x=x, w=w, f=f, down=2, padding=1),
            ops.conv2d_resample_ref(x, w, f, down=2, padding=1),
        ),
    }
    for got, expected in checks.values():
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert module["bias_act"].activation_funcs["lrelu"].def_gain == 2**0.5
    report = compat.report()
    assert {record.module for record in report.replaced} == {f"{package}.{name}" for name in OFFICIAL}
    assert {record.module.rpartition(".")[2] for record in report.replaced if record.calls} == checks.keys()
    assert not report.left


def test_cpu_copies(root: Path) -> None:
    write(
        root,
        {
            "op/fused_act_cpu.py": MUST_NOT_RUN + OLD_FUSED_ACT,
            "op/upfirdn2d_cpu.py": MUST_NOT_RUN + UPFIRDN2D,
        },
    )
    compat.install()
    x = torch.randn(1, 2, 4, 4)
    fused_act = importlib.import_module("op.fused_act_cpu")
    torch.testing.assert_close(fused_act.fused_leaky_relu(x, torch.zeros(2)), F.leaky_relu(x, 0.2) * 2**0.5)
    assert importlib.import_module("op.upfirdn2d_cpu").upfirdn2d(x, torch.ones(1, 1)).equal(x)
    assert len(compat.report().replaced) == 2


@pytest.mark.parametrize("package", ["op", "face_model.op"])
def test_a_copy_with_a_device(root: Path, package: str) -> None:
    write(root, rosinality(package, GPEN_FUSED_ACT, GPEN_UPFIRDN2D))
    compat.rosinality.install()
    copy = importlib.import_module(package)
    x, kernel = torch.randn(2, 3, 4, 4), torch.ones(1, 1)
    # The slope is second here, where the newer form has `bias`.
    layer = copy.FusedLeakyReLU(3, 0.3, 1.0, device="cpu")
    torch.testing.assert_close(layer(x), F.leaky_relu(x, 0.3))
    torch.testing.assert_close(
        copy.fused_leaky_relu(x, torch.zeros(3), 0.3, 1.0, "cpu"), F.leaky_relu(x, 0.3)
    )
    torch.testing.assert_close(
        copy.upfirdn2d(x, kernel, up=1, pad=(1, 0), device="cpu"), F.pad(x, (1, 0, 1, 0))
    )
    with pytest.raises(TypeError, match="multiple values for argument 'bias'"):
        copy.fused_leaky_relu(x, None, bias=None)
    with pytest.raises(TypeError, match="at most 5 positional"):
        copy.fused_leaky_relu(x, None, 0.2, 1.0, "cpu", 1)
    assert list(inspect.signature(copy.upfirdn2d).parameters)[-1] == "device"


def test_defaults_and_order_are_the_copys(root: Path) -> None:
    text = (
        "import math\ndef fused_leaky_relu(input, bias, scale=math.sqrt(9), negative_slope=-0.5 / 2): ...\n"
    )
    write(root, {"models/op/fused_act.py": MUST_NOT_RUN + text})
    compat.install()
    f = importlib.import_module("models.op.fused_act").fused_leaky_relu
    x, b = torch.randn(2, 3), torch.randn(3)
    torch.testing.assert_close(f(x, b), 3 * F.leaky_relu(x + b, -0.25))
    torch.testing.assert_close(f(x, b, 2.0), 2 * F.leaky_relu(x + b, -0.25))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("input, kernel, up=1, down=1, pad=(0, 0), wrap=False", "parameter 'wrap', whose meaning is unknown"),
        ("input, kernel, up=1, down=1, pad=len('x')", "default pad=len('x')"),
        ("input, kernel, **options", "takes any arguments, *options"),
        ("input, taps=None", "parameter 'taps'"),
        ("input, up=1", "has no parameter 'kernel'"),
        ("input, kernel): ...\ndef upfirdn2d(input, kernel, up=1", "defined twice"),
    ],
)
def test_what_is_not_such_a_copy_is_left_and_reported(root: Path, parameters: str, reason: str) -> None:
    text = f"def upfirdn2d({parameters}): return 'own'\n"
    write(root, {"models/op/upfirdn2d.py": text, "models/fma.py": "other = 1\n"})
    compat.rosinality.install()
    assert importlib.import_module("models.op.upfirdn2d").upfirdn2d(1, 2) == "own"
    assert importlib.import_module("models.fma").other == 1
    report = compat.report()
    assert not report.replaced
    assert list(report.left) == ["models.op.upfirdn2d"]
    assert reason in report.left["models.op.upfirdn2d"]
    assert "left      models.op.upfirdn2d: " in str(report)


def test_a_package_can_be_named(root: Path) -> None:
    write(root, {"models/op/upfirdn2d.py": MUST_NOT_RUN + "def upfirdn2d(*arguments, **options): ...\n"})
    x = torch.randn(1, 1, 3, 3)
    with compat.install("rosinality", package="models.op") as installation:
        assert "models.op.upfirdn2d" in str(installation)
        module = importlib.import_module("models.op.upfirdn2d")
        assert module.upfirdn2d(x, torch.ones(1, 1)).equal(x)
    with pytest.raises(ValueError, match="one family must be given"):
        compat.install(package="models.op")
    with pytest.raises(ValueError, match="family is 'stylegan4'"):
        compat.install("stylegan4")


def test_the_projects_own_file_runs_only_for_a_name_that_ours_lack(root: Path) -> None:
    text = UPFIRDN2D.replace("upfirdn2d_native(input): ...", "upfirdn2d_native(input): return 'native'")
    write(root, {"models/op/upfirdn2d.py": "open(__file__ + '.ran', 'w').close()\n" + text})
    compat.install()
    module = importlib.import_module("models.op.upfirdn2d")
    module.upfirdn2d(torch.zeros(1, 1, 2, 2), torch.ones(1, 1))
    assert not hasattr(module, "anything")
    assert not (root / "models/op/upfirdn2d.py.ran").exists()
    assert module.upfirdn2d_native(None) == "native"
    assert (root / "models/op/upfirdn2d.py.ran").exists()
    (record,) = compat.report().replaced
    assert record.own == ["upfirdn2d_native"]
    assert "its own file was run for upfirdn2d_native" in str(record)
    assert module.__file__ == str(root / "models/op/upfirdn2d.py")


def test_copies_that_were_imported_before(root: Path) -> None:
    own = FUSED_ACT.replace("...", "pass") + UPFIRDN2D.replace("...", "return 'own'")
    write(
        root,
        {
            "models/op/__init__.py": "from .ops_in_one_file import *\n",
            "models/op/ops_in_one_file.py": own,
            "models/net.py": (
                "from models.op import upfirdn2d as resample\nrun = lambda x, k: resample(x, k)\n"
            ),
        },
    )
    net = importlib.import_module("models.net")
    x, kernel = torch.randn(1, 1, 3, 3), torch.ones(1, 1)
    assert net.run(x, kernel) == "own"
    installation = compat.install()
    assert "models.op.ops_in_one_file" in installation.in_place
    assert net.run(x, kernel).equal(x)
    assert net.resample is sys.modules["models.op"].upfirdn2d
    compat.uninstall()
    assert net.run(x, kernel) == "own"


def test_an_op_under_a_name_that_is_not_looked_at_is_reported(root: Path) -> None:
    write(root, {"models/layers.py": "def upfirdn2d(input, kernel): return 'own'\n"})
    compat.install()
    module = importlib.import_module("models.layers")
    assert module.upfirdn2d(0, 0) == "own"
    report = compat.report()
    assert not report.replaced
    assert "call install() once more" in report.left["models.layers"]
    compat.install()
    assert module.upfirdn2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1)).item() == 1
    assert "models.layers" not in compat.report().left


def test_a_pickled_layer_needs_only_the_project(root: Path) -> None:
    files = rosinality("models.op")
    write(root, files)
    compat.install()
    text = pickle.dumps(importlib.import_module("models.op").FusedLeakyReLU(3))
    assert b"aigc_ext" not in text
    assert pickle.loads(text).bias.shape == (3,)


def test_calls_are_compiled_without_a_break(root: Path) -> None:
    write(root, rosinality("models.op", GPEN_FUSED_ACT, GPEN_UPFIRDN2D))
    compat.install()
    copy = importlib.import_module("models.op")
    x, b = torch.randn(2, 3), torch.randn(3)
    compiled = torch.compile(
        lambda x, b: copy.fused_leaky_relu(x, b, device="cpu"), fullgraph=True, backend="eager"
    )
    for _ in range(2):
        torch.testing.assert_close(compiled(x, b), 2**0.5 * F.leaky_relu(x + b, 0.2))


def test_mmcv_without_its_compiled_ops(root: Path) -> None:
    loads = "import importlib\ndef load(names):\n    ext = importlib.import_module('mmcv._ext')\n"
    write(
        root,
        {
            "mmcv/ext.py": loads + "    assert all(hasattr(ext, name) for name in names)\n    return ext\n",
            "mmcv/ops/__init__.py": (
                "from .nms import nms\nfrom .fused_bias_leakyrelu import FusedBiasLeakyReLU\n"
            ),
            "mmcv/ops/nms.py": "from ..ext import load\next = load(['nms'])\ndef nms(x): return ext.nms(x)\n",
            "mmcv/ops/fused_bias_leakyrelu.py": """
from ..ext import load
ext = load(['fused_bias_leakyrelu'])
class FusedBiasLeakyReLU:
    def __init__(self, num_channels, negative_slope=0.2, scale=2**0.5): ...
def fused_bias_leakyrelu(input, bias, negative_slope=0.2, scale=2**0.5): ...
""",
        },
    )
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\._ext"):
        importlib.import_module("mmcv.ops")
    compat.mmcv.install()
    mmcv_ops = importlib.import_module("mmcv.ops")
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(mmcv_ops.FusedBiasLeakyReLU(3)(x), F.leaky_relu(x, 0.2) * 2**0.5)
    with pytest.raises(RuntimeError, match="op nms is not built"):
        mmcv_ops.nms(x)
    assert "mmcv._ext" in str(compat.report())


def test_an_mmcv_with_its_compiled_ops_keeps_them(root: Path) -> None:
    write(root, {"mmcv/__init__.py": "", "mmcv/_ext.py": "nms = 'compiled'\n"})
    compat.mmcv.install()
    assert importlib.import_module("mmcv._ext").nms == "compiled"


# ---- conv2d_gradfix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [3, 16])
def test_gradfix_is_pytorchs_convolution(transposed: bool, dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 64, size, size, dtype=dtype), torch.randn(64, 64, 3, 3, dtype=dtype)

    def results(convolve: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
        for leaf in inputs:
            leaf.requires_grad_()
        y = convolve(*inputs, padding=1)
        values = [y, *torch.autograd.grad(y.square().sum(), inputs)]
        return [value.double() for value in values]

    got = results(_gradfix.conv_transpose2d if transposed else _gradfix.conv2d, x, w)
    expected = results(
        F.conv_transpose2d if transposed else F.conv2d, x.detach().double(), w.detach().double()
    )
    tolerance = 1e-4 if dtype is torch.float32 else 0.03
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_gradfix_at_tiny_sizes_is_one_node_of_pytorch() -> None:
    """Ours took 2 times as long as this node."""
    x, w = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(3, 3, 3, 3, requires_grad=True)
    node = _gradfix.conv2d(x, w).grad_fn
    assert node is not None
    assert node.name() == "ConvolutionBackward0"
    node = _gradfix.conv_transpose2d(x, w).grad_fn
    assert node is not None
    assert node.name() == "ConvolutionBackward0"


# ---- what old code meets on today's libraries ----------------------------------------------------------


def run(root: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (root / "train.py").write_text(textwrap.dedent(script))
    command = [sys.executable, *(arguments or ("-m", "aigc_ext.compat", "train.py", "--lr", "1"))]
    environment = {
        "PYTHONPATH": str(Path(compat.__file__).parents[2]),
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)


def test_a_script_runs_unchanged(root: Path) -> None:
    write(root, rosinality("models.op"))
    result = run(
        root,
        """
        import sys, torch
        from models.op import fused_leaky_relu
        if __name__ == "__main__":
            print(fused_leaky_relu(torch.ones(1, 1), torch.ones(1)).item() > 2, sys.argv)
        """,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "True ['train.py', '--lr', '1']\n"
    assert (
        "replaced  models.op.fused_act: FusedLeakyReLU, fused_leaky_relu; calls: fused_leaky_relu 1"
        in result.stderr
    )


@pytest.mark.parametrize("way", ["program", "install"])
def test_integer_betas_are_explained(root: Path, way: str) -> None:
    script = """
        import torch
        from aigc_ext import compat
        INSTALL
        options = dict(lr=0.002,
                       betas=[0, 0.99])
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], **options)
        """
    if way == "program":
        result = run(root, script.replace("INSTALL", ""))
    else:
        result = run(root, script.replace("INSTALL", "compat.rosinality.install()"), "train.py")
    assert result.returncode == 1
    assert "ValueError: betas must be either both floats or both Tensors" in result.stderr
    assert "write floats here:" in result.stderr
    assert "train.py:6: betas=[0, 0.99])\n    betas=(0.0, 0.99)" in result.stderr


def test_explanations_name_the_line(root: Path) -> None:
    result = run(root, "import pkg_resources.nothing\n")
    assert result.returncode == 1
    if "No module named 'pkg_resources'" in result.stderr:
        assert "train.py:1: import pkg_resources.nothing" in result.stderr
    (root / "x.pt").write_bytes(pickle.dumps({"model": 1}))
    result = run(root, "import torch, pathlib\ntorch.save(pathlib.Path('x'), 'x.pt')\ntorch.load('x.pt')\n")
    assert "add weights_only=False here:" in result.stderr
    assert "train.py:3: torch.load('x.pt')" in result.stderr


def test_nothing_is_explained_after_uninstall_and_other_errors_are_not() -> None:
    hook = sys.excepthook
    with compat.install():
        assert sys.excepthook is not hook
    assert sys.excepthook is hook
    assert compat.explain(ValueError("betas")) is None
    assert compat.explain(ModuleNotFoundError("x", name="x")) is None
    text = compat.explain(ModuleNotFoundError("No module named 'torch._six'", name="torch._six"))
    assert text is not None
    assert "torch.inf" in text
