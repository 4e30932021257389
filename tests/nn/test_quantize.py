from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from aigc_ext import ops
from aigc_ext.nn import FiniteScalarQuantizer, VectorQuantizer

IMAGES = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))


def spread(layer: VectorQuantizer) -> VectorQuantizer:
    """With codes like the features."""
    with torch.no_grad():
        layer.codebook.normal_(generator=torch.Generator().manual_seed(2))
        if layer.ema:
            layer.sums.copy_(layer.codebook * layer.counts[:, None])
    return layer


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_codes_and_loss_are_those_of_the_paper(layout):
    layer = spread(VectorQuantizer(7, 4, beta=0.3).double())
    x = IMAGES.double()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    out = layer(x)
    codes, indices = ops.vector_quantize_ref(x, layer.codebook.detach())
    assert torch.equal(out.codes, codes)
    assert torch.equal(out.indices, indices)
    assert out.codes.stride() == x.stride()
    nearest = layer.codebook[indices].movedim(-1, 1)
    loss = F.mse_loss(nearest, x.detach()) + 0.3 * F.mse_loss(x, nearest.detach())
    torch.testing.assert_close(out.loss, loss)
    weights = torch.randn_like(codes)
    ours = torch.autograd.grad((out.codes * weights).sum() + out.loss, (x, layer.codebook))
    expected = torch.autograd.grad(loss, (x, layer.codebook))
    torch.testing.assert_close(ours[0], expected[0] + weights)
    torch.testing.assert_close(ours[1], expected[1])
    assert torch.equal(layer.lookup(out.indices), out.codes)


def test_statistics_are_of_the_batch():
    layer = VectorQuantizer(4, 1).eval()
    with torch.no_grad():
        layer.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    out = layer(torch.tensor([[0.0], [0.1], [0.9], [2.9]]))
    assert out.indices.tolist() == [0, 0, 1, 3]
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert out.perplexity.item() == pytest.approx(math.exp(entropy))
    assert out.used.item() == 0.75


def test_moving_averages_are_those_of_the_appendix():
    layer = spread(VectorQuantizer(5, 4, ema=True, decay=0.8).double())
    assert not list(layer.parameters())
    counts, sums, codebook = layer.counts.clone(), layer.sums.clone(), layer.codebook.clone()
    for step in range(3):
        x = torch.randn(30, 4, dtype=torch.float64)
        out = layer(x)
        nearest = torch.cdist(x, codebook).argmin(1)
        assert torch.equal(out.indices, nearest)
        torch.testing.assert_close(out.loss, 0.25 * F.mse_loss(x, codebook[nearest]))
        of_code = F.one_hot(nearest, 5).double()
        counts = 0.8 * counts + 0.2 * of_code.sum(0)
        sums = 0.8 * sums + 0.2 * of_code.T @ x
        codebook = sums / counts[:, None]
        torch.testing.assert_close(layer.counts, counts)
        torch.testing.assert_close(layer.sums, sums)
        torch.testing.assert_close(layer.codebook, codebook)
        assert layer.updates.item() == step + 1
    assert set(layer.state_dict()) == {"codebook", "sums", "counts", "updates"}
    assert set(VectorQuantizer(5, 4).state_dict()) == {"codebook", "counts", "updates"}


def test_a_code_that_was_not_chosen_for_ages_stays_where_it_is():
    layer = VectorQuantizer(2, 1, ema=True, decay=0.1)
    layer.codebook.copy_(torch.tensor([[0.0], [100.0]]))
    layer.sums.copy_(layer.codebook)
    for _ in range(60):
        layer(torch.randn(8, 1))
    assert layer.counts[1] == 0  # far below the smallest number
    assert layer.codebook[1] == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("ema", [False, True])
def test_dead_codes_become_rows_of_the_batch(ema):
    layer = VectorQuantizer(16, 4, ema=ema, decay=0.5, revive_below=0.3, seed=3)
    with torch.no_grad():
        layer.codebook[1:] = 50 + torch.arange(15.0)[:, None]  # far from all features
        if ema:
            layer.sums.copy_(layer.codebook)
    x = torch.randn(2, 4, 3, 7)
    x[0, 0, 0, 0] = float("nan")
    before = layer.codebook.detach().clone()
    layer(x)
    assert torch.equal(layer.codebook[1:], before[1:])  # the count is 0.5 still
    layer(x)
    rows = x.movedim(1, -1).reshape(-1, 4)
    codes = layer.codebook.detach()[1:]
    found = [(rows == code).all(1).nonzero().item() for code in codes]
    assert len(set(found)) == 15, "two codes are the same row"
    assert layer.counts[1:].tolist() == [1.0] * 15
    if ema:
        torch.testing.assert_close(layer.sums[1:], codes)
    out = layer(x)
    assert out.used > 0.5
    assert out.indices[0, 0, 0] == -1


def test_revival_is_reproducible_after_a_resume_and_draws_nothing_else():
    def made(seed=1):
        torch.manual_seed(0)
        return VectorQuantizer(32, 3, ema=True, decay=0.5, revive_below=0.4, seed=seed)

    batches = [torch.randn(200, 3, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    one, other = made(), made(seed=2)
    state = torch.get_rng_state()
    for batch in batches[:4]:
        one(batch), other(batch)
    saved = copy.deepcopy(one.state_dict())
    for batch in batches[4:]:
        one(batch), other(batch)
    assert torch.equal(torch.get_rng_state(), state)
    resumed = made()
    resumed.load_state_dict(saved)
    for batch in batches[4:]:
        resumed(batch)
    for name, value in one.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(one.codebook, other.codebook)


def test_fewer_rows_than_dead_codes():
    layer = VectorQuantizer(16, 4, decay=0.0, revive_below=0.5)
    x = torch.randn(3, 4)
    chosen = layer(x).indices.unique()
    revived = (layer.codebook[:, None] == x).all(2).any(1).nonzero().squeeze(1)
    assert revived.numel() == 3
    assert not set(revived.tolist()) & set(chosen.tolist())
    assert (layer.counts > 0).sum() == chosen.numel() + 3
    layer(torch.randn(0, 4))
    assert layer.updates.item() == 2


@pytest.mark.parametrize("ema", [False, True])
def test_eval_mode_changes_nothing(ema):
    layer = VectorQuantizer(16, 4, ema=ema, decay=0.5, revive_below=5.0).eval()
    before = copy.deepcopy(layer.state_dict())
    layer(IMAGES)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_codebook_learns_clusters_both_ways():
    """Of 8 far clusters, each gets a code of its own at least."""
    centres = torch.randn(8, 6, generator=torch.Generator().manual_seed(4)) * 5
    for ema in (False, True):
        torch.manual_seed(0)
        layer = VectorQuantizer(16, 6, ema=ema, decay=0.8, revive_below=0.5)
        optimizer = torch.optim.Adam(layer.parameters(), 0.3) if not ema else None
        for _ in range(100):
            x = centres[torch.randint(8, (64,))] + 0.1 * torch.randn(64, 6)
            loss = layer(x).loss
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        out = layer.eval()(centres)
        assert out.used == 0.5
        assert out.perplexity.item() == pytest.approx(8)
        assert (out.codes - centres).abs().max() < 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_another_dtype(dtype):
    layer = spread(VectorQuantizer(7, 4))
    x = IMAGES.to(dtype).requires_grad_()
    out = layer(x)
    assert out.codes.dtype == dtype
    assert torch.equal(out.indices, ops.vector_quantize_ref(x.double(), layer.codebook.double())[1])
    (out.codes.sum() + out.loss).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert layer.codebook.grad is not None


@pytest.mark.parametrize("ema", [False, True])
def test_it_trains_under_compile(ema):
    layer = spread(VectorQuantizer(7, 4, ema=ema))
    compiled, plain = torch.compile(layer, fullgraph=True, backend="aot_eager"), copy.deepcopy(layer)
    x, y = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    ours, expected = compiled(x), plain(y)
    (ours.codes.square().sum() + ours.loss).backward()
    (expected.codes.square().sum() + expected.loss).backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(dict(layer.state_dict()), dict(plain.state_dict()))


def test_an_empty_batch():
    layer = VectorQuantizer(7, 4, ema=True)
    out = layer(torch.zeros(0, 4, 2, 2))
    assert out.codes.shape == (0, 4, 2, 2)
    assert out.loss == 0
    assert out.used == 0
    fsq = FiniteScalarQuantizer([3, 4])(torch.zeros(0, 2))
    assert fsq.indices.shape == (0,)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"num_codes": 0}, "num_codes is 0"),
        ({"code_dim": -1}, "code_dim is -1"),
        ({"beta": -0.5}, "beta is -0.5"),
        ({"decay": 1.0}, "decay is 1"),
        ({"revive_below": math.nan}, "revive_below is nan"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
    ],
)
def test_a_wrong_setting_is_named(changed, match):
    with pytest.raises(ValueError, match=match):
        VectorQuantizer(**{"num_codes": 3, "code_dim": 2, **changed})


# ---- finite scalars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[3], [8, 5, 5, 5], [2, 4, 7]], ids=str)
def test_every_index_has_a_code_and_every_code_its_index(levels):
    layer = FiniteScalarQuantizer(levels, dim=-1)
    codes = layer.lookup(torch.arange(layer.num_codes))
    grid = [[(i - n // 2) / (n // 2) for i in range(n)] for n in levels]
    expected = torch.tensor([c[::-1] for c in itertools.product(*grid[::-1])])  # the first counts fastest
    torch.testing.assert_close(codes, expected)
    # The inverse of the bound brings each code back to features that are quantized to it.
    numbers = torch.tensor(levels)
    half, even = (numbers - 1) * (1 - 1e-3) / 2, (numbers % 2 == 0).float() / 2
    bounded = codes * (numbers // 2)
    features = (((bounded + even) / half).clamp(-0.999, 0.999)).atanh() - (even / half).tan()
    out = layer(features)
    assert torch.equal(out.indices, torch.arange(layer.num_codes))
    assert torch.equal(out.codes, codes)
    assert out.used == 1.0
    assert out.perplexity.item() == pytest.approx(layer.num_codes, rel=1e-4)
    assert out.loss == 0


def test_rounding_has_the_gradient_of_the_bound():
    layer = FiniteScalarQuantizer([7, 4, 8, 5])
    x = IMAGES.double().requires_grad_()
    out = layer(x)
    halves = torch.tensor([3, 2, 4, 2]).reshape(4, 1, 1)
    weights = torch.randn_like(out.codes)
    (ours,) = torch.autograd.grad((out.codes * weights).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad((layer.bound(x) / halves * weights).sum(), x, create_graph=True)
    torch.testing.assert_close(ours, expected)
    (second,) = torch.autograd.grad(ours.square().sum(), x)
    torch.testing.assert_close(second, torch.autograd.grad(expected.square().sum(), x)[0])
    assert torch.equal(out.codes * halves, (layer.bound(x)).round())
    torch.testing.assert_close(layer.lookup(out.indices).double(), out.codes)


def test_the_bound_is_that_of_the_paper_and_zero_is_a_level():
    layer = FiniteScalarQuantizer([8, 5])
    z = torch.tensor([[0.0, 0.0], [100.0, 100.0], [-100.0, -100.0]], dtype=torch.float64)
    half = 7 * 0.999 / 2
    expected = [
        [half * math.tanh(math.tan(0.5 / half)) - 0.5, 0.0],
        [half - 0.5, 1.998],
        [-half - 0.5, -1.998],
    ]
    torch.testing.assert_close(layer.bound(z), torch.tensor(expected, dtype=torch.float64))
    assert layer(z).codes.tolist() == [[0.0, 0.0], [0.75, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_bounded_in_float32(dtype):
    layer = FiniteScalarQuantizer([16, 16, 16, 16])
    x = IMAGES.to(dtype)
    out, wide = layer(x), layer(x.float())
    assert out.codes.dtype == dtype
    assert torch.equal(out.indices, wide.indices)


def test_features_that_are_not_finite_have_no_code():
    for value in (math.nan, math.inf):
        x = torch.zeros(3, 2)
        x[1, 0] = value
        for layer in (FiniteScalarQuantizer([3, 5]), VectorQuantizer(6, 2)):
            out = layer(x)
            assert out.indices.tolist()[1] == -1
            assert (out.indices[[0, 2]] >= 0).all()
            assert out.codes[1].isnan().all()
            assert out.codes[[0, 2]].isfinite().all()
            assert out.used <= 2 / 6
            assert layer.lookup(out.indices)[1].isnan().all()


@pytest.mark.parametrize(
    ("levels", "match"),
    [([], "levels is empty"), ([3, 1], r"levels\[1\] is 1"), ([1024] * 3, "levels make 1073741824 codes")],
)
def test_wrong_levels_are_named(levels, match):
    with pytest.raises(ValueError, match=match):
        FiniteScalarQuantizer(levels)


def test_a_wrong_number_of_features_is_named():
    with pytest.raises(RuntimeError, match=r"has shape \[3, 3\], but must have 2 features along dimension 1"):
        FiniteScalarQuantizer([3, 3])(torch.zeros(3, 3))
    with pytest.raises(RuntimeError, match=r"codebook has shape \[5, 2\], but must be \[codes, 3\]"):
        VectorQuantizer(5, 2)(torch.zeros(3, 3))
