from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from aigc_ext.losses import r1_penalty
from aigc_ext.tasks.gan import augment
from aigc_ext.tasks.gan.augment import AdaAugment, DiffAugment, adjusted_p

_ONLY: dict[str, dict[str, Any]] = {
    "blit": {"geometric": False, "color": False},
    "geometric": {"blit": False, "color": False},
    "color": {"blit": False, "geometric": False},
    "all": {},
}


def _seeded(module, images, seed=3):
    torch.manual_seed(seed)
    return module(images)


def _images(*shape, **options):
    return torch.rand(*shape, **options) * 2 - 1


# ---- AdaAugment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (2, 1, 9, 28), (3, 4, 7, 5), (0, 3, 4, 4), (2, 3, 1, 1)])
def test_without_probability_it_is_the_identity(dtype, shape):
    for value_range in ((-1.0, 1.0), (0.0, 1.0)):
        x = _images(*shape).to(dtype)
        y = AdaAugment(0.0, value_range=value_range)(x)
        assert y.dtype == dtype
        assert torch.equal(y, x)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("only", _ONLY)
def test_with_probability_one_every_sample_changes(channels, only):
    x = _images(16, channels, 24, 16).to(memory_format=torch.channels_last)
    y = AdaAugment(1.0, **_ONLY[only])(x)
    assert y.shape == x.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    unchanged = (x == y).flatten(1).all(1).sum()
    # A blit may be a shift by 0 without mirroring.
    assert unchanged <= (2 if only == "blit" else 0)
    bfloat16 = _seeded(AdaAugment(1.0, **_ONLY[only]), x.bfloat16())
    assert bfloat16.dtype == torch.bfloat16
    wide = _seeded(AdaAugment(1.0, **_ONLY[only]), x.bfloat16().float())
    torch.testing.assert_close(bfloat16.float(), wide, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    "module",
    [*(AdaAugment(1.0, **only) for only in _ONLY.values()), DiffAugment()],
    ids=[*_ONLY, "diffaugment"],
)
def test_first_and_second_derivatives(module, channels):
    x = _images(2, channels, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _seeded(module, x), x)
    assert torch.autograd.gradgradcheck(lambda x: _seeded(module, x), x)


def test_r1_goes_through_it():
    weight = torch.randn(8, 3, 3, 3, requires_grad=True)
    module = AdaAugment(1.0)

    def discriminator(x):
        return F.conv2d(_seeded(module, x), weight).square().mean((1, 2, 3))

    r1_penalty(discriminator, _images(4, 3, 8, 8)).backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("module", [AdaAugment(1.0), DiffAugment()], ids=["ada", "diffaugment"])
def test_samples_do_not_see_each_other(module):
    x = _images(4, 3, 8, 8).requires_grad_()
    y = _seeded(module, x)
    y[1].sum().backward()
    assert x.grad[1].any()
    x.grad[1] = 0
    assert not x.grad.any()
    others = torch.cat([_images(1, 3, 8, 8), x[1:2].detach(), _images(2, 3, 8, 8)])
    assert torch.equal(_seeded(module, others)[1], y[1])


@pytest.mark.parametrize("module", [AdaAugment(0.8), DiffAugment()], ids=["ada", "diffaugment"])
def test_a_sample_depends_on_its_own_row_of_random_numbers_only(module, monkeypatch):
    x = _images(6, 3, 8, 8)
    whole = _seeded(module, x)
    draw = torch.randn

    def rows(n, k, **options):
        return draw(6, k, **options)[2 : 2 + n]

    monkeypatch.setattr(torch, "randn", rows)
    assert torch.equal(_seeded(module, x[2:5]), whole[2:5])


@pytest.mark.parametrize("module", [AdaAugment, DiffAugment])
def test_the_value_range_is_only_a_unit(module):
    x = _images(8, 3, 8, 8, dtype=torch.float64)
    options = {"p": 1.0} if module is AdaAugment else {}
    expected = _seeded(module(**options), x)
    unit = _seeded(module(value_range=(0.0, 1.0), **options), (x + 1) / 2)
    torch.testing.assert_close(unit * 2 - 1, expected)


def _many(height, width, n=4000):
    """Coordinates as images: the first channel counts columns, the second rows, from the centre."""
    x = (torch.arange(width) - (width - 1) / 2).expand(height, width)
    y = (torch.arange(height) - (height - 1) / 2)[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros_like(x)]).expand(n, -1, -1, -1)


def test_how_often_blits_happen():
    x = _many(16, 16)
    matrix, shift = AdaAugment(0.6, **_ONLY["blit"])._to_source(x)
    assert set(matrix.flatten().tolist()) == {0.0, 1.0, -1.0}
    mirrored = (torch.linalg.det(matrix) < 0).float().mean()
    assert mirrored == pytest.approx(0.3, abs=0.03)
    # The first row of a mirrored matrix has the opposite sign.
    turned = matrix * torch.stack((torch.linalg.det(matrix), torch.ones(len(x))), 1)[:, :, None]
    for quarter in range(4):
        angle = torch.tensor(quarter * math.pi / 2)
        rotation = augment._rotation(angle[None]).round()
        share = (turned == rotation).flatten(1).all(1).float().mean()
        assert share == pytest.approx(0.6 / 4 + 0.4 * (quarter == 0), abs=0.03)
    assert shift.abs().max() == 2
    assert torch.equal(shift, shift.round())
    assert (shift[:, 0] != 0).float().mean() == pytest.approx(0.6 * 0.75, abs=0.03)
    matrix, shift = AdaAugment(1.0, **_ONLY["blit"])._to_source(_many(16, 32))
    assert not matrix[:, 0, 1].any(), "an image that is not square was turned by 90 degrees"
    assert shift.abs().amax(0).tolist() == [4, 2]


def test_how_often_and_how_far_geometric_changes_happen():
    x = _many(16, 32)
    matrix, shift = AdaAugment(1.0, **_ONLY["geometric"])._to_source(x)
    size = torch.linalg.det(matrix).log2() / 2
    squeeze = torch.linalg.svdvals(matrix).log2()
    assert size.std() == pytest.approx(0.2, rel=0.1)
    assert (squeeze[:, 0] - size).square().mean().sqrt() == pytest.approx(0.2, rel=0.1)
    # Scaled with the image; its length is not changed by rotations.
    place = torch.linalg.solve(matrix, shift[:, :, None])[:, :, 0]
    assert place.std(0).tolist() == pytest.approx([4.0, 2.0], rel=0.1)
    matrix, shift = AdaAugment(0.5, **_ONLY["geometric"])._to_source(x)
    assert (matrix[:, 0, 1] != 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert (shift != 0).all(1).float().mean() == pytest.approx(0.5, abs=0.03)
    same = (matrix == torch.eye(2)).flatten(1).all(1).float().mean()
    assert same == pytest.approx(0.5**3, abs=0.03)


def test_how_often_and_how_far_brightness_and_contrast_change():
    x = torch.tensor([0.0, 1.0]).expand(4000, 1, 1, 2)
    dark, light = AdaAugment(1.0, **_ONLY["color"])(x).flatten(1).unbind(1)
    contrast = light - dark
    assert contrast.log2().std() == pytest.approx(0.5, rel=0.1)
    assert (dark / contrast).std() == pytest.approx(0.2, rel=0.1)
    dark, light = AdaAugment(0.3, **_ONLY["color"])(x).flatten(1).unbind(1)
    assert (dark != 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert ((light - dark - 1).abs() > 1e-6).float().mean() == pytest.approx(0.3, abs=0.03)


def test_colors_are_the_product_of_the_papers_matrices(monkeypatch):
    n = 6
    uniforms = [torch.zeros(n, 5, dtype=torch.float64), torch.rand(n, 2, dtype=torch.float64)]
    normals = torch.randn(n, 3, dtype=torch.float64)
    u, (brightness, contrast, saturation) = uniforms[1], normals.unbind(1)
    calls = iter(uniforms)
    monkeypatch.setattr(augment, "_uniform", lambda images, k: next(calls))
    monkeypatch.setattr(augment, "_normal", lambda images, k: normals)
    x = _images(n, 4, 3, 2, dtype=torch.float64)
    y = AdaAugment(1.0, **_ONLY["color"])(x)
    assert torch.equal(y[:, 3], x[:, 3])
    v = torch.full((3, 1), 3**-0.5, dtype=torch.float64)
    one, along = torch.eye(3, dtype=torch.float64), v @ v.T
    cross = torch.linalg.cross(one, v.T.expand(3, 3))  # the rows are e_i x v: minus those of v's matrix
    for i in range(n):
        angle = math.pi * (2 * u[i, 1] - 1)
        rotation = torch.linalg.matrix_exp(-angle * cross.T)
        mirror = one - 2 * along if u[i, 0] < 0.5 else one
        strength = along + (one - along) * saturation[i].exp2()
        pixels = (x[i, :3].flatten(1) + 0.2 * brightness[i]) * (0.5 * contrast[i]).exp2()
        expected = strength @ rotation @ mirror @ pixels
        torch.testing.assert_close(y[i, :3].flatten(1), expected)


def test_the_warp_is_bilinear_and_reflects():
    x = _images(7, 3, 9, 6, dtype=torch.float64)
    matrix = torch.eye(2) + 0.7 * torch.randn(7, 2, 2, dtype=torch.float64)
    shift = 8 * torch.randn(7, 2, dtype=torch.float64)
    warped = augment._warp(x, matrix, shift)
    # In grid_sample's coordinates the outermost pixels are at -1 and 1.
    scale = torch.tensor([2 / 5, 2 / 8], dtype=torch.float64)
    affine = matrix * scale[:, None] / scale
    affine = torch.cat([affine, (shift * scale)[:, :, None]], 2)
    grid = F.affine_grid(affine, [7, 3, 9, 6], align_corners=True)
    expected = F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)
    torch.testing.assert_close(warped, expected)


def test_blits_copy_pixels():
    x = _images(1, 3, 8, 8)
    still, one = torch.zeros(1, 2), torch.eye(2)[None]
    assert torch.equal(augment._warp(x, one * torch.tensor([-1.0, 1.0]), still), x.flip(3))
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])
    assert torch.equal(augment._warp(x, quarter, still), x.rot90(1, (2, 3)))
    padded = F.pad(x, (0, 2, 1, 0), mode="reflect")[:, :, :8, 2:]
    assert torch.equal(augment._warp(x, one, torch.tensor([[2.0, -1.0]])), padded)
    x = x.expand(64, -1, -1, -1)
    y = AdaAugment(1.0, **_ONLY["blit"])(x)
    assert torch.isin(y, x).all()


# ---- its controller ----------------------------------------------------------------------------------------


def test_the_controller_moves_p_towards_the_target():
    module = AdaAugment(0.5)
    module.observe(torch.tensor([[3.0], [0.1], [2.0], [-1.0]]))
    module.observe(torch.tensor([4.0, 5.0, 6.0, 7.0], dtype=torch.bfloat16))
    assert module.rt == 0.75
    module.adjust(256, target=0.6, kimg=100)
    assert module.p == pytest.approx(0.5 + 256 / 100_000)
    assert module.count == module.sum == 0
    module.adjust(256)
    assert module.p == pytest.approx(0.50256), "nothing was observed"
    module.observe(torch.tensor([1.0, -1.0]))
    module.adjust(512, target=0.6, kimg=100)
    assert module.p == pytest.approx(0.50256 - 0.00512)
    for sign, end in ((1.0, 1.0), (-1.0, 0.0)):
        for _ in range(3):
            module.observe(torch.tensor([sign]))
            module.adjust(400_000)
        assert module.p == end


def test_a_mean_of_signs_counts_as_its_logits_do():
    logits, one, other = torch.randn(48), AdaAugment(0.5), AdaAugment(0.5)
    one.observe(logits)
    shares = [share.sign().mean() for share in logits.chunk(3)]  # as several processes have them
    other.observe_mean(torch.stack(shares).mean(), 48)
    torch.testing.assert_close((other.sum, other.count), (one.sum, one.count))
    assert one.sum == pytest.approx(int(logits.sign().sum()))
    other.observe_mean(torch.tensor(torch.nan), 7)
    torch.testing.assert_close((other.rt, other.count), (one.rt, torch.tensor(48.0)))


def test_p_takes_so_many_images_from_end_to_end():
    p = torch.tensor(0.0)
    for _ in range(50):
        p = adjusted_p(p, torch.tensor(0.9), images=2000, kimg=100)
    assert p == pytest.approx(1)
    assert adjusted_p(p, torch.tensor(0.6), images=2000) == p
    with pytest.raises(ValueError, match="kimg is 0, but must be greater than 0"):
        adjusted_p(p, p, 1, kimg=0)


def test_its_state_is_in_the_state_dict():
    module, again = AdaAugment(0.25), AdaAugment()
    module.observe(torch.tensor([3.0, -1.0, 1.0]))
    assert set(module.state_dict()) == {"p", "sum", "count"}
    again.load_state_dict(module.state_dict())
    x = _images(8, 3, 8, 8)
    assert torch.equal(_seeded(again, x), _seeded(module, x))
    for each in (module, again):
        each.adjust(64)
    assert again.p == module.p != 0.25


# ---- DiffAugment -------------------------------------------------------------------------------------------


def test_translation():
    height, width = 16, 24
    x = _images(600, 2, height, width).abs() + 0.1
    x = torch.cat([x, x[:, :1]], 1)
    y = DiffAugment(color=False, cutout=False)(x)
    seen = set()
    for source, moved in zip(x, y, strict=True):
        rows, columns = (moved[0] != 0).any(1).nonzero()[:, 0], (moved[0] != 0).any(0).nonzero()[:, 0]
        # The blank part is at one side; a shift by 0 leaves none.
        down = rows[0] if rows[0] > 0 else rows[-1] - height + 1
        right = columns[0] if columns[0] > 0 else columns[-1] - width + 1
        seen.add((int(down), int(right)))
        expected = F.pad(source, (int(right), -int(right), int(down), -int(down)))
        assert torch.equal(moved, expected)
    assert {down for down, _ in seen} == set(range(-2, 3))
    assert {right for _, right in seen} == set(range(-3, 4))
    assert len(seen) == 5 * 7


def test_cutout():
    height, width = 12, 16
    x = torch.ones(2000, 1, height, width)
    y = DiffAugment(color=False, translation=False)(x)[:, 0]
    blank = y == 0
    assert ((y == 1) | blank).all()
    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None])
    for lines, size in ((rows, height), (columns, width)):
        assert (lines.int().diff(dim=1).abs().sum(1) <= 2).all(), "not one piece"
        lengths = lines.sum(1)
        assert set(lengths.tolist()) == set(range(size // 4, size // 2 + 1))
        # Its centre is equally likely on each line of the image.
        assert (lengths == size // 2).float().mean() == pytest.approx(0.5 + 1 / size, abs=0.06)
        share = lines.float().mean(0)
        assert share[size // 2] == pytest.approx(0.5, abs=0.05)
        # With an even size its centre lies behind the middle.
        assert share[[0, -1]].tolist() == pytest.approx([0.25 + 1 / size, 0.25], abs=0.03)


def test_colors_of_diffaugment():
    x = _images(3000, 3, 2, 2, dtype=torch.float64)
    y = DiffAugment(translation=False, cutout=False)(x)
    brightness = y.mean((1, 2, 3)) - x.mean((1, 2, 3))
    assert brightness.abs().max() < 0.5
    assert brightness.std() == pytest.approx(1 / math.sqrt(12), rel=0.05)
    grey_x, grey_y = (z.mean(1).flatten(1) for z in (x, y))
    contrast = grey_y.std(1) / grey_x.std(1)
    assert contrast.min() == pytest.approx(0.5, abs=0.01)
    assert contrast.max() == pytest.approx(1.5, abs=0.01)
    spread_x, spread_y = ((z - z.mean(1, keepdim=True)).flatten(1).std(1) for z in (x, y))
    saturation = spread_y / spread_x / contrast
    assert saturation.max() == pytest.approx(2, abs=0.01)
    assert saturation.mean() == pytest.approx(1, abs=0.05)
    alpha = torch.cat([x, x[:, :1]], 1)
    assert torch.equal(DiffAugment(translation=False, cutout=False)(alpha)[:, 3], x[:, 0])


def test_diffaugment_without_changes_is_the_identity():
    x = _images(2, 3, 4, 4)
    assert torch.equal(DiffAugment(False, False, False)(x), x)
    half = DiffAugment()(x.half().to(memory_format=torch.channels_last))
    assert half.dtype == torch.float16
    assert half.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaAugment(1.5), "p is 1.5, but must be from 0 to 1"),
        (lambda: AdaAugment(math.nan), "p is nan, but must be from 0 to 1"),
        (lambda: AdaAugment().set_p(-0.5), "p is -0.5, but must be from 0 to 1"),
        (lambda: AdaAugment(value_range=(1.0, 1.0)), r"value_range is \(1.0, 1.0\)"),
        (lambda: DiffAugment(value_range=(0.0, math.inf)), r"value_range is \(0.0, inf\)"),
        (lambda: AdaAugment()(torch.zeros(2, 2, 4, 4)), r"images have shape \(2, 2, 4, 4\)"),
        (lambda: DiffAugment()(torch.zeros(3, 4, 4)), r"images have shape \(3, 4, 4\)"),
        (lambda: AdaAugment()(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)), "images are torch.uint8"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
