from __future__ import annotations

import copy
import functools
import io
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from aigc_ext import ops
from aigc_ext.nn import FusedRun, Linear, SkippedRun, _choosing, _fusible, _gains, fuse_, unfuse_
from aigc_ext.ops.conv3x3 import has_conv3x3
from tests.ops.suite import total

# PyTorch uses its own deprecated torch.jit in Inductor and in forward-mode differentiation.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


# ---- helpers ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def all_pairs_pay(request, monkeypatch):
    """Fuses what is too small to pay."""
    if not request.node.get_closest_marker("chooses"):
        monkeypatch.setattr(_gains, "pays", lambda *_: True)


@pytest.fixture
def op_calls(monkeypatch):
    """The names of the fused ops that run, in order."""
    calls: list[str] = []

    def recorded(name, op, *arguments, **options):
        calls.append(name)
        return op(*arguments, **options)

    for name in (
        "linear_act",
        "conv2d_act",
        "conv_transpose2d_act",
        "batch_norm_act",
        "group_norm_act",
        "bias_act",
    ):
        monkeypatch.setattr(ops, name, functools.partial(recorded, name, getattr(ops, name)))
    return calls


def fused_copy(model):
    fused = copy.deepcopy(model)
    fuse_(fused)
    return fused


def results(model, x):
    """Output, gradients, and second-order gradients with respect to the input and all parameters."""
    x = x.clone().requires_grad_()
    inputs = [x, *model.parameters()]
    y = model(x)
    first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    penalty = total(g.square().sum() for g in first)
    second = torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)
    return [y, *first, *second]


def assert_same(fused, reference, x):
    torch.testing.assert_close(results(fused, x), results(reference, x), rtol=1e-8, atol=1e-8)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5, bias=False), nn.Tanh(), nn.Linear(5, 2))


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.3, inplace=True),
    nn.LeakyReLU(-0.5),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.ELU(),
    nn.SELU(),
    nn.Softplus(),
    nn.SiLU(),
]
LAYERS = {
    "linear": (nn.Linear(4, 5), (3, 4)),
    "linear without bias": (nn.Linear(4, 5, bias=False), (3, 4)),
    "linear on a vector": (nn.Linear(4, 5), (4,)),
    "linear on a sequence": (nn.Linear(4, 5), (2, 3, 4)),
    "conv1d": (nn.Conv1d(2, 4, 3, dilation=2), (2, 2, 9)),
    "conv2d": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), (2, 2, 5, 6)),
    "conv2d without bias": (nn.Conv2d(2, 4, 3, bias=False), (2, 2, 5, 6)),
    "conv2d without batch": (nn.Conv2d(2, 4, 3), (2, 5, 6)),
    "conv2d reflect": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 6)),
    "conv2d same": (nn.Conv2d(2, 4, 3, padding="same"), (2, 2, 5, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "conv_transpose1d": (nn.ConvTranspose1d(2, 4, 3, stride=2), (2, 2, 5)),
    "conv_transpose2d": (
        nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (2, 2, 5, 6),
    ),
    "conv_transpose2d without batch": (nn.ConvTranspose2d(2, 4, 3), (2, 5, 6)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2), (1, 2, 2, 2, 2)),
    "batch_norm1d": (nn.BatchNorm1d(3), (4, 3)),
    "batch_norm2d": (nn.BatchNorm2d(3), (4, 3, 2, 5)),
    "batch_norm3d": (nn.BatchNorm3d(3), (4, 3, 2, 3, 2)),
    "group_norm": (nn.GroupNorm(2, 4, eps=1e-3), (3, 4, 2, 5)),
    "group_norm on rows": (nn.GroupNorm(2, 4), (3, 4)),
    "group_norm without weights": (nn.GroupNorm(2, 4, affine=False), (3, 4, 5)),
    "instance_norm1d": (nn.InstanceNorm1d(3, affine=True), (4, 3, 5)),
    "instance_norm2d": (nn.InstanceNorm2d(3, eps=1e-3), (4, 3, 2, 5)),
    "instance_norm3d": (nn.InstanceNorm3d(3), (4, 3, 2, 3, 2)),
    "layer_norm": (nn.LayerNorm(5, elementwise_affine=False), (4, 3, 5)),
    "layer_norm of a vector": (nn.LayerNorm(5, 1e-3, elementwise_affine=False), (5,)),
    "layer_norm of images": (nn.LayerNorm((3, 2, 5), elementwise_affine=False), (4, 3, 2, 5)),
}


# ---- what fused runs compute -----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("layer", ["linear", "conv2d", "conv_transpose2d"])
def test_every_activation_is_the_users(layer, activation, op_calls):
    layer, shape = LAYERS[layer]
    reference = copy.deepcopy(nn.Sequential(layer, activation)).double()
    fused = fused_copy(reference)
    assert_same(fused, reference, torch.randn(shape, dtype=torch.float64))
    assert len(op_calls) == 1


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_the_users(name, op_calls):
    layer, shape = LAYERS[name]
    reference = copy.deepcopy(nn.Sequential(layer, nn.Sigmoid())).double()
    assert_same(fused_copy(reference), reference, torch.randn(shape, dtype=torch.float64))
    ops_of = {"linear": "linear_act", "batch_norm": "batch_norm_act"}
    ops_of |= dict.fromkeys(("group_norm", "instance_norm", "layer_norm"), "group_norm_act")
    ops_of |= {
        name: f"{name.split()[0]}_act" for name in ("conv2d", "conv2d without bias", "conv_transpose2d")
    }
    assert op_calls == [ops_of.get(name, ops_of.get(name.split()[0].rstrip("123d"), "bias_act"))]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (mlp(), (7, 6)),
        (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(4, 4, 4, stride=2, padding=1),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(4 * 3 * 3, 8),
                nn.Softplus(),
                nn.Linear(8, 1),
            ),
            (3, 2, 6, 6),
        ),
    ],
    ids=["mlp", "conv net"],
)
def test_r1_penalty_and_its_gradient_are_the_users(model, shape):
    reference = copy.deepcopy(model).double()
    fused = fused_copy(reference)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def r1_gradients(discriminator):
        (dx,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        penalty = dx.square().sum() / len(x)
        parameters = list(discriminator.parameters())
        gradients = torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
        return penalty, *gradients

    ours, theirs = r1_gradients(fused), r1_gradients(reference)
    assert theirs[0] > 0
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_float64(dtype, op_calls):
    reference = mlp().double()
    fused = fused_copy(reference).to(dtype)
    x = torch.randn(5, 6, dtype=torch.float64)
    ours = fused(x.to(dtype))
    assert ours.dtype == dtype
    assert len(op_calls) == 2
    torch.testing.assert_close(ours.double(), reference(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("layer", ["linear", "linear without bias", "conv2d", "conv_transpose2d"])
def test_autocast_gives_the_users_dtype(layer, activation, op_calls):
    layer, shape = LAYERS[layer]
    reference = nn.Sequential(layer, activation)
    fused = fused_copy(reference)
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fused(x), reference(x)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.03)
    assert len(op_calls) == (0 if isinstance(activation, nn.Softplus) else 1)
    ours.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters())


def test_channels_last_is_kept():
    fused = fused_copy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).to(memory_format=torch.channels_last)
    y = fused(torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_empty_batch():
    assert fused_copy(mlp())(torch.randn(0, 6)).shape == (0, 2)


def test_compiled_forward_and_backward():
    reference = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.GroupNorm(2, 4), nn.SiLU(), nn.InstanceNorm2d(4), nn.ReLU()),
        *(nn.Flatten(), parametrizations.weight_norm(nn.Linear(16, 4)), nn.SiLU()),
    )
    fused = fused_copy(reference)
    compiled = torch.compile(fused, fullgraph=True)
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(compiled(x), reference(x))
    compiled(x).square().sum().backward()
    reference(x).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


# ---- norms where PyTorch has more to say -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features:UserWarning")
@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.InstanceNorm2d(3), torch.randn(3, 4, 5)),
        (nn.InstanceNorm1d(3, affine=True), torch.randn(3, 5)),
        (nn.InstanceNorm2d(3), torch.randn(2, 4, 4, 5)),
        (nn.GroupNorm(2, 4), torch.randn(0, 4, 3)),
        (nn.InstanceNorm1d(3), torch.randn(0, 3, 5)),
        (nn.LayerNorm(3, elementwise_affine=False), torch.randn(2, 0, 3)),
        (nn.LayerNorm(3, elementwise_affine=False), torch.randn(5, 3).t().contiguous().t()),
        (nn.GroupNorm(2, 4), torch.randn(2, 4, 5, dtype=torch.bfloat16)),
        (nn.InstanceNorm1d(4, affine=True), torch.randn(2, 4, 5, dtype=torch.float16)),
        (nn.LayerNorm(5, elementwise_affine=False), torch.randn(2, 4, 5, dtype=torch.bfloat16)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else str(list(value.shape)),
)
def test_norms_of_other_inputs_are_the_users(norm, x):
    reference = nn.Sequential(copy.deepcopy(norm), nn.Tanh())
    ours, theirs = fused_copy(reference)(x), reference(x)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("norm", "shape", "dtype"),
    [
        (nn.InstanceNorm2d(3), (2, 3, 1, 1), torch.float32),
        (nn.InstanceNorm2d(3, affine=True), (2, 4, 3, 3), torch.float32),
        (nn.InstanceNorm2d(3), (2, 3, 4), torch.float64),
        (nn.InstanceNorm2d(3), (2, 3), torch.float32),
        (nn.GroupNorm(4, 4), (1, 4), torch.float32),
        (nn.GroupNorm(4, 4), (4,), torch.float32),
        (nn.GroupNorm(2, 4), (2, 4, 3), torch.float64),
        (nn.GroupNorm(2, 4, dtype=torch.bfloat16), (2, 4, 3), torch.float32),
        (nn.LayerNorm((3, 4), elementwise_affine=False), (2, 4, 3), torch.float32),
        (nn.LayerNorm((3, 4), elementwise_affine=False), (4,), torch.float32),
    ],
    ids=str,
)
def test_what_a_norm_refuses_is_refused(norm, shape, dtype):
    reference, x = nn.Sequential(norm, nn.ReLU()), torch.randn(shape, dtype=dtype)

    def outcome(model):
        try:
            return model(x).shape
        except Exception as error:
            return type(error), str(error)

    assert outcome(fused_copy(reference)) == outcome(reference)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm((4, 5, 6), elementwise_affine=False)],
    ids=str,
)
def test_norms_keep_pytorchs_memory_format(norm):
    reference = nn.Sequential(norm, nn.SiLU())
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    for images in (x, x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)):
        assert fused_copy(reference)(images).stride() == reference(images).stride()


def test_running_statistics_are_left_to_pytorch():
    model = nn.Sequential(nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU())
    for example_inputs in (None, torch.randn(2, 4, 5, 5)):
        report = fuse_(model, example_inputs)
        assert report.fused == []
        assert report.skipped[0].reason.startswith("InstanceNorm2d keeps running statistics")


# ---- any Sequential --------------------------------------------------------------------------------------


class SubclassedLinear(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class SubclassedReLU(nn.ReLU):
    def forward(self, input):
        return super().forward(input) + 1


def _hooked(module):
    module.register_forward_hook(lambda module, args, output: output * 0.5)
    return module


WIDTH = 4
MODULES = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: _hooked(nn.Linear(WIDTH, WIDTH)),
    lambda: SubclassedLinear(WIDTH, WIDTH),
    lambda: parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    lambda: torch.nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.1),
    lambda: nn.LeakyReLU(0.1, inplace=True),
    lambda: _hooked(nn.Tanh()),
    nn.Tanh,
    nn.SiLU,
    lambda: nn.ELU(0.5),
    nn.ELU,
    lambda: nn.Softplus(beta=2),
    nn.Softplus,
    SubclassedReLU,
    nn.GELU,
    nn.Identity,
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
]


@st.composite
def sequentials(draw, depth=2):
    pool = [draw(st.sampled_from(MODULES))() for _ in range(draw(st.integers(1, 6)))]
    if depth:
        pool += [draw(sequentials(depth - 1)) for _ in range(draw(st.integers(0, 2)))]
    picks = draw(st.lists(st.integers(0, len(pool) - 1), max_size=8))  # a module may come up several times
    return nn.Sequential(*(pool[i] for i in picks))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@settings(max_examples=60, deadline=None)
@given(model=sequentials(), seed=st.integers(0, 2**31))
def test_any_sequential_stays_itself(model, seed):
    torch.manual_seed(seed)
    model.double()
    # A first activation in place would change x itself.
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    before = [type(m) for m in model.modules()], list(model.state_dict()), repr(model), model(x.clone())
    report = fuse_(model)

    layers = [
        f"{path}.{name}" if path else name
        for path, parent in model.named_modules()
        if isinstance(parent, nn.Sequential)
        for name, child in parent._modules.items()
        if isinstance(child, (nn.Linear, nn.LayerNorm))
    ]
    assert sorted([r.path for r in report.fused] + [r.path for r in report.skipped]) == sorted(layers)
    assert fuse_(model) == report
    _, keys, text, y = before
    assert list(model.state_dict()) == keys
    assert repr(model) == text
    torch.testing.assert_close(model(x.clone()), y, rtol=1e-9, atol=1e-9)
    unfuse_(model)
    assert [type(m) for m in model.modules()] == before[0]


def test_the_report_is_what_runs(op_calls):
    model = nn.Sequential(
        OrderedDict(
            first=nn.Linear(4, 4),
            act=nn.ReLU(),
            block=nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Dropout(0.5)),
            last=nn.Linear(4, 4),
        )
    )
    report = fuse_(model)
    assert report.fused == [FusedRun("first", "Linear+ReLU"), FusedRun("block.0", "Linear+Tanh")]
    assert [s.path for s in report.skipped] == ["last", "block.2"]
    assert "nothing follows it" in report.skipped[0].reason
    assert "Dropout(p=0.5, inplace=False)" in report.skipped[1].reason
    assert str(report).splitlines()[0] == "2 fused, 2 left as they are"
    assert "first: Linear+ReLU" in str(report)
    assert "block.2: what follows it" in str(report)
    model(torch.randn(2, 4))
    assert op_calls == ["linear_act", "linear_act"]


# ---- what stays as it is ---------------------------------------------------------------------------------


def test_the_users_view_of_the_module_is_unchanged():
    model = mlp()
    keys, text, children = list(model.state_dict()), repr(model), list(model)
    parameters = list(model.parameters())
    fuse_(model)
    assert list(model.state_dict()) == keys
    assert repr(model) == text
    assert list(model) == children
    assert len(model) == 5
    assert model[1] is children[1]
    assert isinstance(model, nn.Sequential)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_pieces_compute_what_they_did():
    reference = mlp()
    fused = fused_copy(reference)
    x = torch.randn(3, 6)
    torch.testing.assert_close(fused[0](x), reference[0](x))
    torch.testing.assert_close(fused[0:2](x), reference[0:2](x))
    torch.testing.assert_close(fused[1:](fused[0](x)), reference(x))
    torch.testing.assert_close((fused + nn.Sequential(nn.ReLU()))(x), reference(x).relu())


def test_an_optimizer_made_before_keeps_working():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reference = copy.deepcopy(model)
    reference_optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    fuse_(model)
    x = torch.randn(8, 6)
    for m, o in ((model, optimizer), (reference, reference_optimizer)):
        for _ in range(3):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict())


class Block(nn.Sequential):
    """A container of the user's, without a forward of its own."""

    def __init__(self, width):
        super().__init__(nn.Linear(width, width), nn.SiLU())
        self.width = width


class Doubled(nn.Sequential):
    def forward(self, input):
        return super().forward(super().forward(input))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.body = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), Block(4))

    def forward(self, x):
        return self.body(self.conv(x).relu().mean((2, 3)))


def _through_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _pickled(protocol, model):
    return pickle.loads(pickle.dumps(model, protocol))


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "torch.save": _through_file,
    **{f"pickle {p}": functools.partial(_pickled, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)},
}


class ReducingBlock(Block):
    """A container that pickles itself in its own way."""

    def __reduce__(self):
        return type(self), (self.width,)


def test_copies_of_a_container_with_its_own_reduce(op_calls):
    model = ReducingBlock(3)
    fuse_(model)
    duplicate = pickle.loads(pickle.dumps(model))
    assert isinstance(duplicate, ReducingBlock)
    assert duplicate.width == 3
    duplicate(torch.randn(1, 3))
    assert op_calls == ["linear_act"]
    unfuse_(duplicate)
    assert type(duplicate) is ReducingBlock


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_copies_are_fused_and_right(make_copy, op_calls):
    model = Net()
    fuse_(model)
    x = torch.randn(2, 1, 5, 5)
    expected = model(x)
    op_calls.clear()
    duplicate = make_copy(model)
    torch.testing.assert_close(duplicate(x), expected, rtol=0, atol=0)
    assert op_calls == ["conv2d_act", "linear_act", "linear_act"]
    assert isinstance(duplicate.body[2], Block)
    assert duplicate.body[2].width == 4
    assert repr(duplicate) == repr(model)
    if make_copy is not copy.copy:
        with torch.no_grad():
            duplicate.body[0].weight.zero_()
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_train_and_eval_reach_the_children():
    reference = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Tanh(), nn.Dropout(0.5)
    )
    fused = fused_copy(reference)
    x = torch.randn(8, 4)
    for mode in (True, False):
        fused.train(mode), reference.train(mode)
        torch.manual_seed(0)
        ours = fused(x)
        torch.manual_seed(0)
        torch.testing.assert_close(ours, reference(x))
    torch.testing.assert_close(fused.state_dict(), reference.state_dict())


def test_moves_after_fusing(op_calls):
    model = fused_copy(mlp())
    assert model.double()(torch.randn(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert model.to("meta")(torch.randn(2, 6, dtype=torch.float64, device="meta")).shape == (2, 2)
    assert len(op_calls) == 4


@pytest.mark.parametrize(
    "model", [mlp(), nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU())], ids=["mlp", "conv net"]
)
def test_a_wrong_dtype_is_an_error_as_before(model):
    x = torch.randn(6, 6, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        fused_copy(model)(x)


TRANSFORMS = {
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum())(x),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_torch_func_transforms(transform):
    reference = mlp().double()
    fused = fused_copy(reference)
    x = torch.randn(2, 6, dtype=torch.float64)
    ours, theirs = (
        transform(lambda x, model=model: model(x).square().sum(), x) for model in (fused, reference)
    )
    torch.testing.assert_close(ours, theirs)


def test_forward_mode_runs_unfused(op_calls):
    model = mlp()
    fuse_(model)
    x = torch.randn(2, 6)
    expected = torch.autograd.functional.jvp(model, x, x)[1]
    op_calls.clear()
    with torch.autograd.forward_ad.dual_level():
        y = model(torch.autograd.forward_ad.make_dual(x, x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, expected)
    assert op_calls == []


def test_functional_call_uses_the_given_parameters():
    reference = mlp()
    fused = fused_copy(reference)
    other = {name: torch.randn_like(p) for name, p in reference.named_parameters()}
    x = torch.randn(3, 6)
    torch.testing.assert_close(
        torch.func.functional_call(fused, other, (x,)), torch.func.functional_call(reference, other, (x,))
    )


def test_modules_that_appear_twice():
    torch.manual_seed(0)
    linear, act, block = nn.Linear(4, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    reference = nn.Sequential(linear, act, linear, block, act, block, linear).double()
    fused = fused_copy(reference)
    assert_same(fused, reference, torch.randn(3, 4, dtype=torch.float64))
    assert [r.path for r in fuse_(fused).fused] == ["0", "3.0"]


def test_children_may_change_after_fusing(op_calls):
    model = mlp()
    fuse_(model)
    model[1] = nn.GELU()
    model.append(nn.Sigmoid())
    del model[3]
    x = torch.randn(3, 6)
    expected = x
    for child in model:
        expected = child(expected)
    torch.testing.assert_close(model(x), expected)
    assert op_calls == ["linear_act"]  # the last Linear, with the Sigmoid


def normed(first_norm, second_norm):
    torch.manual_seed(0)
    return nn.Sequential(
        first_norm(nn.Linear(4, 6)), nn.LeakyReLU(0.2), second_norm(nn.Linear(6, 3)), nn.Tanh()
    )


def assert_trains_alike(fused, reference):
    x = torch.randn(5, 4)
    for _ in range(3):  # in training, every forward of a spectral norm is one power iteration
        losses = fused(x).square().sum(), reference(x).square().sum()
        torch.testing.assert_close(*losses)
        for model, loss in zip((fused, reference), losses, strict=True):
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
    torch.testing.assert_close(fused.state_dict(), reference.state_dict())


def test_parametrizations_survive(op_calls):
    norms = parametrizations.spectral_norm, parametrizations.weight_norm
    fused, reference = normed(*norms), normed(*norms)
    report = fuse_(fused)
    assert [r.kind for r in report.fused] == ["ParametrizedLinear+LeakyReLU", "ParametrizedLinear+Tanh"]
    assert_trains_alike(fused, reference)
    assert len(op_calls) == 6
    torch.nn.utils.parametrize.remove_parametrizations(fused[0], "weight")
    parametrizations.orthogonal(fused[0])
    expected = fused[3](fused[2](fused[1](fused[0](torch.ones(1, 4)))))
    torch.testing.assert_close(fused(torch.ones(1, 4)), expected)


@pytest.mark.filterwarnings("ignore:.*_norm.* is deprecated")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_hook_based_norms_survive_unfused(norm, op_calls):
    fused, reference = normed(norm, lambda m: m), normed(norm, lambda m: m)
    report = fuse_(fused)
    assert report.fused == [FusedRun("2", "Linear+Tanh")]
    assert report.skipped[0].path == "0"
    assert "hooks" in report.skipped[0].reason
    assert_trains_alike(fused, reference)
    assert len(op_calls) == 3


# ---- hooks -----------------------------------------------------------------------------------------------

HOOKS = {
    "forward": lambda m, log: m.register_forward_hook(lambda *a: log.append("forward")),
    "forward_pre": lambda m, log: m.register_forward_pre_hook(lambda *a: log.append("forward_pre")),
    "full_backward": lambda m, log: m.register_full_backward_hook(lambda *a: log.append("full_backward")),
    "full_backward_pre": lambda m, log: m.register_full_backward_pre_hook(
        lambda *a: log.append("full_backward_pre")
    ),
}


@pytest.mark.parametrize("hooked", [0, 1], ids=["on the layer", "on the activation"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run_whenever_they_come(kind, hooked, op_calls):
    model, log = mlp(), list[str]()
    handle = HOOKS[kind](model[hooked], log)
    report = fuse_(model)
    assert [r.path for r in report.fused] == ["2"]
    assert report.skipped[0].path == "0"
    assert "hooks" in report.skipped[0].reason
    x = torch.randn(3, 6, requires_grad=True)

    model(x).sum().backward()
    assert log == [kind]
    assert op_calls == ["linear_act"]
    handle.remove()
    model(x).sum().backward()
    assert log == [kind]
    assert len(op_calls) == 3
    HOOKS[kind](model[hooked], log)
    model(x).sum().backward()
    assert log == [kind, kind]
    assert len(op_calls) == 4
    assert [r.path for r in fuse_(model).fused] == ["2"]


def test_a_hook_sees_the_tensor_it_saw_before():
    model, seen = mlp(), []
    fuse_(model)
    x = torch.randn(3, 6)
    plain = nn.functional.linear(x, model[0].weight, model[0].bias)
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model(x)
    torch.testing.assert_close(seen[0], plain)


def test_hooks_on_the_container_and_its_other_children_run():
    inner, log = mlp(), []
    model = nn.Sequential(inner, nn.Flatten())
    model.register_forward_hook(lambda *a: log.append("outer"))
    inner.register_forward_hook(lambda *a: log.append("inner"))
    inner[4].register_forward_hook(lambda *a: log.append("last"))
    report = fuse_(model)
    assert len(report.fused) == 2
    model(torch.randn(2, 6))
    assert log == ["last", "inner", "outer"]


def test_global_hooks_see_every_module():
    model, seen = mlp(), []
    fuse_(model)
    fused = type(model)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *a: seen.append(type(module)))
    try:
        model(torch.randn(2, 6))
        assert len(fuse_(model).fused) == 0
    finally:
        handle.remove()
    assert seen == [nn.Linear, nn.ReLU, nn.Linear, nn.Tanh, nn.Linear, fused]
    assert len(fuse_(model).fused) == 2


def test_a_replaced_forward_is_called():
    model = mlp()
    model[0].forward = lambda input: torch.full((len(input), 8), -1.0)
    report = fuse_(model)
    assert "replaced forward" in report.skipped[0].reason
    torch.testing.assert_close(model(torch.randn(2, 6))[0], model[4].bias)


def test_parameter_hooks_run():
    model, log = mlp(), []
    fuse_(model)
    model[0].weight.register_hook(lambda grad: log.append(grad.shape))
    model(torch.randn(3, 6)).sum().backward()
    assert log == [(8, 6)]


# ---- what is not fused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((nn.Linear(4, 4), nn.ELU(0.5)), "ELU(alpha=0.5)"),
        ((nn.Linear(4, 4), nn.Softplus(beta=2)), "Softplus(beta=2, threshold=20.0)"),
        ((nn.Linear(4, 4), nn.Softplus(threshold=5)), "threshold"),
        ((nn.Linear(4, 4), nn.GELU()), "GELU"),
        ((nn.Linear(4, 4), nn.PReLU()), "the slope of PReLU(num_parameters=1) behind it is learned"),
        ((nn.GroupNorm(2, 4), nn.PReLU(4)), "the slope of PReLU(num_parameters=4) behind it is learned"),
        ((nn.LayerNorm(4), nn.ReLU()), "LayerNorm has a weight for each number of a row"),
        ((nn.Linear(4, 4), nn.ReLU6()), "ReLU6"),
        ((nn.Linear(4, 4), nn.Identity()), "Identity"),
        ((nn.Linear(4, 4), SubclassedReLU()), "SubclassedReLU"),
        ((SubclassedLinear(4, 4), nn.ReLU()), "SubclassedLinear is a subclass"),
        ((Linear(4, 4, act="relu"), nn.ReLU()), "Linear is a subclass"),
        ((nn.Linear(4, 4, dtype=torch.complex64), nn.Tanh()), "floating-point"),
        (
            (parametrizations.orthogonal(nn.Linear(4, 4, bias=False, dtype=torch.complex64)), nn.Tanh()),
            "floating-point",
        ),
    ],
    ids=lambda p: p if isinstance(p, str) else "",
)
def test_unknown_neighbours_are_reported_and_right(pair, reason, op_calls):
    reference = nn.Sequential(*pair)
    fused = copy.deepcopy(reference)
    report = fuse_(fused)
    assert report.fused == []
    assert [s.path for s in report.skipped] == ["0"]
    assert reason in report.skipped[0].reason
    assert type(fused) is nn.Sequential
    x = torch.randn(3, 4, dtype=pair[0].weight.dtype)
    torch.testing.assert_close(fused(x), reference(x))


def test_layers_outside_a_sequential_are_reported():
    model = Net()
    model.extra = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    report = fuse_(model)
    assert report.fused == [
        *(FusedRun("conv", "Conv2d+ReLU"), FusedRun("body.0", "Linear+ReLU")),
        FusedRun("body.2.0", "Linear+SiLU"),
    ]
    reasons = {s.path: s.reason for s in report.skipped}
    assert reasons.keys() == {"extra.0"}
    assert reasons["extra.0"].startswith("ModuleList,")


def test_a_sequential_with_a_forward_of_its_own_is_left_alone(monkeypatch):
    model = nn.Sequential(Doubled(nn.Linear(4, 4), nn.ReLU()))
    x = torch.randn(2, 4)
    expected = model(x)
    report = fuse_(model)
    assert report.fused == []
    assert report.skipped[0].path == "0.0"
    assert "Doubled, which holds it, has a forward() of its own" in report.skipped[0].reason
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)

    patched = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    monkeypatch.setattr(patched, "forward", lambda input: input)
    assert fuse_(patched).fused == []
    assert patched(x) is x


def test_a_parametrized_sequential_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.register_parameter("scale", nn.Parameter(torch.ones(2, 2)))
    parametrizations.orthogonal(model, "scale")
    assert fuse_(model).fused == []
    torch.nn.utils.parametrize.remove_parametrizations(model, "scale")
    assert type(model) is nn.Sequential
    assert len(fuse_(model).fused) == 1


def test_lazy_modules_are_fused_once_they_have_a_shape(op_calls):
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    report = fuse_(model)
    assert report.fused == []
    assert "first input" in report.skipped[0].reason
    x = torch.randn(2, 3)
    expected = model(x)
    assert fuse_(model).fused == [FusedRun("0", "Linear+ReLU")]
    torch.testing.assert_close(model(x), expected)
    assert op_calls == ["linear_act"]


def test_scripted_modules_are_refused():
    model = nn.Module()
    model.traced = torch.jit.trace(mlp(), torch.randn(2, 6))
    model.scripted = torch.jit.script(mlp())
    report = fuse_(model)
    assert report.fused == []
    assert [s.path for s in report.skipped] == ["traced", "scripted"]
    assert all("TorchScript" in s.reason for s in report.skipped)


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_quantized_modules_are_refused():
    model = nn.Sequential(
        torch.ao.nn.intrinsic.LinearReLU(nn.Linear(4, 4), nn.ReLU()),
        torch.ao.nn.quantized.dynamic.Linear(4, 4),
        nn.ReLU(),
    )
    report = fuse_(model)
    assert report.fused == []
    assert [s.path for s in report.skipped] == ["0", "1"]
    assert all("torch.ao.quantization" in s.reason for s in report.skipped)
    model(torch.randn(2, 4))


def test_weights_that_are_not_plain_tensors_run_unfused(op_calls):
    from torch.testing._internal.two_tensor import TwoTensor

    reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    fused = fused_copy(reference)
    for model in (fused, reference):
        weight = model.get_parameter("0.weight").detach()
        model[0].weight = nn.Parameter(TwoTensor(weight, weight + 1))
    x = torch.randn(2, 4)
    ours, theirs = fused(x), reference(x)
    assert type(ours) is TwoTensor
    assert op_calls == []
    torch.testing.assert_close(ours.b, theirs.b)
    assert "plain" in fuse_(fused).skipped[0].reason


INPUTS = {
    "nested": lambda x: torch.nested.nested_tensor([x[:1], x]),
    "jagged": lambda x: torch.nested.nested_tensor([x[:1], x], layout=torch.jagged),
    "sparse": lambda x: x.to_sparse(),
    "sparse_csr": lambda x: x.to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("make_input", INPUTS.values(), ids=INPUTS)
def test_inputs_that_are_not_plain_tensors_run_unfused(make_input, op_calls):
    reference = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    fused = fused_copy(reference)
    x = make_input(torch.randn(2, 4))
    ours, theirs = fused(x), reference(x)
    assert op_calls == []
    assert ours.layout == theirs.layout
    if ours.is_nested:
        ours, theirs = ours.unbind(), theirs.unbind()
    torch.testing.assert_close(ours, theirs)


def test_a_device_without_kernels_runs_unfused(monkeypatch, op_calls):
    model = mlp()
    fuse_(model)
    monkeypatch.setattr("aigc_ext.nn._fusible._DEVICES", ("cuda",))
    model(torch.randn(2, 6))
    assert op_calls == []
    report = fuse_(model)
    assert report.fused == []
    assert "device that has the kernels" in report.skipped[0].reason


def test_a_module_that_is_no_module():
    with pytest.raises(TypeError, match="module is a list"):
        fuse_([nn.Linear(1, 1)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="module is a str"):
        unfuse_("model")  # type: ignore[arg-type]


# ---- other machinery of PyTorch --------------------------------------------------------------------------


def test_torchscript_of_a_fused_module_is_the_unfused_one():
    reference = mlp()
    scripted = torch.jit.script(fused_copy(reference))
    x = torch.randn(2, 6)
    torch.testing.assert_close(scripted(x), reference(x))
    assert "aigc" not in str(scripted.inlined_graph)


def test_fx_tracing_of_a_fused_module_sees_its_children():
    reference = mlp()
    traced = torch.fx.symbolic_trace(fused_copy(reference))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    x = torch.randn(2, 6)
    torch.testing.assert_close(traced(x), reference(x))


def test_a_child_compiled_by_itself_is_called(op_calls):
    model = mlp()
    model[0].compile(backend="eager")
    assert "replaced forward" in fuse_(model).skipped[0].reason
    model(torch.randn(2, 6))
    assert op_calls == ["linear_act"]


# ---- undoing ---------------------------------------------------------------------------------------------


def test_unfuse_gives_every_class_back(op_calls):
    model = Net()
    classes = [type(m) for m in model.modules()]
    fuse_(model)
    assert [type(m) for m in model.modules()] != classes
    unfuse_(model)
    assert [type(m) for m in model.modules()] == classes
    model(torch.randn(1, 1, 4, 4))
    assert op_calls == []
    unfuse_(model)
    assert len(fuse_(model).fused) == 3


def test_unfuse_refuses_a_class_derived_in_the_meantime():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    fuse_(model)
    inner = model[0]
    inner.__class__ = type("Sharded", (type(inner),), {})
    with pytest.raises(RuntimeError, match="0 is a Sharded"):
        unfuse_(model)


def test_skipped_runs_are_plain_data():
    report = fuse_(nn.Sequential(nn.Linear(1, 1)))
    assert report.skipped == [SkippedRun("0", "nothing follows it in its Sequential")]


# ---- what pays -------------------------------------------------------------------------------------------


@pytest.mark.chooses
@pytest.mark.skipif(not has_conv3x3(torch.zeros(1)), reason="this backend's speed does not matter")
@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(256, 256), (1024, 256), []),
        (nn.BatchNorm1d(64), (1024, 64), []),
        (nn.BatchNorm1d(64), (2048, 64), ["batch_norm_act"]),
        (nn.BatchNorm2d(32), (16, 32, 16, 16), ["batch_norm_act"]),
        (nn.InstanceNorm2d(16), (1, 16, 16, 16), ["group_norm_act"]),
        (nn.InstanceNorm2d(64), (8, 64, 8, 8), []),
        (nn.GroupNorm(8, 64), (4, 64, 16, 16), []),
        (nn.GroupNorm(8, 64), (1, 64, 128, 128), ["group_norm_act"]),
        (nn.LayerNorm(512, elementwise_affine=False), (2, 1024, 512), []),
        (nn.Conv1d(64, 64, 3), (8, 64, 1024), []),
        (nn.Conv2d(32, 32, 3, padding=1), (4, 32, 32, 32), ["conv2d_act"]),
        (nn.Conv2d(32, 32, 4, stride=2, padding=1), (4, 32, 32, 32), []),
        (nn.Conv2d(32, 32, 3, padding="same"), (4, 32, 32, 32), []),
        (nn.ConvTranspose2d(32, 32, 3, padding=1), (4, 32, 32, 32), ["conv_transpose2d_act"]),
    ],
    ids=str,
)
def test_without_examples_a_pair_is_one_op_where_that_was_faster(layer, shape, expected, op_calls):
    fused = fused_copy(nn.Sequential(layer, nn.LeakyReLU(0.2)))
    y = fused(torch.randn(shape))
    assert op_calls == expected
    assert y.shape == nn.Sequential(layer, nn.LeakyReLU(0.2))(torch.randn(shape)).shape


@pytest.mark.chooses
def test_without_examples_a_group_norm_needs_channels_last_float32_and_gradients(op_calls):
    model, x = fused_copy(nn.Sequential(nn.GroupNorm(8, 64), nn.SiLU())), torch.randn(4, 64, 16, 16)
    images = x.contiguous(memory_format=torch.channels_last)
    model(images)
    assert op_calls == ["group_norm_act"]
    with torch.no_grad():
        model(images)
    model(x)
    model.requires_grad_(False)(images)
    model.bfloat16()(images.bfloat16().requires_grad_())
    assert op_calls == ["group_norm_act"]
    model.float()(images.requires_grad_())
    assert len(op_calls) == 2


@pytest.mark.chooses
def test_without_examples_a_norm_alone_is_for_the_cpu(op_calls):
    model, x = nn.Sequential(nn.InstanceNorm2d(64), nn.Conv2d(64, 4, 5)), torch.randn(1, 64, 32, 32)
    (run,) = fuse_(model).fused
    assert run.kind == "InstanceNorm2d"
    assert "alone, since what follows it (Conv2d(" in run.when
    model(x)
    assert op_calls == ["group_norm_act"]
    model.to("meta")(x.to("meta"))
    assert op_calls == ["group_norm_act"]


@pytest.mark.chooses
@pytest.mark.parametrize("training", [True, False])
def test_what_was_measured_of_a_norm_holds_for_what_was_measured(training, monkeypatch, op_calls):
    """With gradients, or without."""
    with_gains(monkeypatch, {nn.GroupNorm: 2.0, nn.Conv2d: 0.5})
    alone = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    for model in (nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()), alone):
        x = torch.randn(2, 4, 5, 5)
        assert [run.path for run in fuse_(model.train(training), x).fused] == ["0"]
        for gradients in (True, False):
            op_calls.clear()
            with torch.set_grad_enabled(gradients):
                model(x)
            assert op_calls == ["group_norm_act"] * (gradients == training)


@pytest.mark.chooses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_without_examples_autocast_works_as_before(dtype):
    """There the second convolution gets another dtype than its weights have."""
    reference = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 4, 3), nn.Tanh()),
    )
    fused, x = fused_copy(reference), torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype):
        got, expected = fused(x), reference(x)
    assert got.dtype is expected.dtype is dtype
    torch.testing.assert_close(got.float(), expected.float(), rtol=0.05, atol=0.05)


@pytest.mark.chooses
def test_a_question_about_the_route_is_not_logged_as_an_answer(caplog):
    caplog.set_level("DEBUG", logger="aigc_ext")
    conv, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(4, 32, 32, 32)
    fused_copy(nn.Sequential(conv, nn.ReLU()))(x)
    takes = [r.getMessage() for r in caplog.records if "conv2d_act takes" in r.getMessage()]
    assert len(takes) == has_conv3x3(x)
    caplog.clear()
    fused_copy(nn.Sequential(nn.Conv2d(32, 32, 5), nn.ReLU()))(x)  # PyTorch's, and so not our op
    assert not [r for r in caplog.records if "conv2d_act takes" in r.getMessage()]


def with_gains(monkeypatch, gains):
    """`fuse_` measures these gains, by the type of the layer."""
    monkeypatch.setattr(_gains, "measured", lambda layer, *_: gains[_fusible.layer_type(layer)])
    monkeypatch.setattr(_choosing, "_gain_of_module", lambda *_: 1.2)


def small_network():
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.LeakyReLU(0.1)),
        *(nn.Flatten(), nn.Linear(3 * 4 * 4, 2), nn.Tanh()),
    )


@pytest.mark.chooses
def test_with_examples_a_pair_is_one_op_where_it_wins(monkeypatch, op_calls):
    with_gains(monkeypatch, {nn.Conv2d: 0.9, nn.BatchNorm2d: 1.5, nn.Linear: 1.02})
    model, x = small_network(), torch.randn(2, 2, 6, 6)
    report = fuse_(model, x)
    assert [(run.path, run.when) for run in report.fused] == [("2", "measured 1.50 times as fast")]
    assert {skip.path: skip.reason for skip in report.skipped} == {
        "0": "as one op it is measured 0.90 times as fast",
        "5": "as one op it is measured 1.02 times as fast",
    }
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        op_calls.clear()
        copied(x)
        assert op_calls == ["batch_norm_act"]
    with_gains(monkeypatch, {nn.Conv2d: 2.0, nn.BatchNorm2d: 0.5, nn.Linear: 2.0})
    fuse_(model, [x])  # again
    op_calls.clear()
    model(x)
    assert op_calls == ["conv2d_act", "linear_act"]
    unfuse_(model)
    assert vars(model).keys() == vars(small_network()).keys()


@pytest.mark.chooses
@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(training, op_calls):
    model = small_network().train(training)
    parametrizations.spectral_norm(model[0])
    expected = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 2, 6, 6, requires_grad=True)
    before = torch.get_rng_state()
    report = fuse_(model, x)
    assert {"conv2d_act", "batch_norm_act", "linear_act"} <= set(op_calls)
    assert len(report.fused) + len(report.skipped) == 3
    assert all(
        "measured" in text for text in [*(r.when for r in report.fused), *(s.reason for s in report.skipped)]
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.chooses
def test_a_layer_that_the_examples_do_not_reach_is_judged_by_the_rule(monkeypatch):
    with_gains(monkeypatch, {nn.Linear: 0.5})

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.idle = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            return self.used(x)

    report = fuse_(Half(), torch.randn(2, 3))
    assert [(run.path, run.when) for run in report.fused] == [("idle.0", "on the CPU never")]
    assert [skip.path for skip in report.skipped] == ["used.0"]
