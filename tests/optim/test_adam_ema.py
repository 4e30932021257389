"""AdamEMA as an optimizer: the numbers of AdamW and an average, and what torch.optim.Optimizer promises."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from aigc_ext import decompose
from aigc_ext.optim import AdamEMA
from tests.ops.suite import total

SIZES = [(13, 11), (11,), (64, 5, 3, 3), (1,)]


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, dtype=dtype, generator=generator).requires_grad_() for size in SIZES]


def set_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, dtype=param.dtype, generator=generator)


def gradient_of(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


def averages_of(params: list[Tensor]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    eps = 20 * torch.finfo(ours[0].dtype).eps
    torch.testing.assert_close([t.detach() for t in ours], [t.detach() for t in theirs], rtol=eps, atol=eps)


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_run_is_that_of_adamw_and_lerp(dtype: torch.dtype, weight_decay: float) -> None:
    ours, theirs = weights(dtype=dtype), weights(dtype=dtype)
    our_averages, their_averages = averages_of(ours), averages_of(theirs)
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.5, 0.99), "weight_decay": weight_decay}
    optimizer = AdamEMA(ours, **options, ema_params=our_averages, ema_decay=0.9)
    reference = torch.optim.AdamW(theirs, **options)
    for step in range(25):
        for params in (ours, theirs):
            set_gradients(params, step)
            if step % 5 == 1:  # skipped by both, step count included; the average moves on
                params[1].grad = None
        optimizer.step()
        reference.step()
        for average, param in zip(their_averages, theirs, strict=True):
            average.lerp_(param.detach(), 1 - 0.9)
    assert_close(ours, theirs)
    assert_close(our_averages, their_averages)
    assert optimizer.state[ours[0]]["step"] == 25
    assert optimizer.state[ours[1]]["step"] == 20
    assert optimizer.skipped == 0


def test_it_trains_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = AdamEMA(model.parameters(), lr=1e-2, ema_params=average.parameters(), ema_decay=0.98)
    x = torch.randn(256, 4)
    y = (x.square().sum(1, keepdim=True) - 4) / 3

    def loss_of(network: nn.Module) -> float:
        return (network(x) - y).square().mean().item()

    def closure() -> Any:  # a tensor, which Optimizer.step annotates as a float
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    first = loss_of(model)
    for _ in range(300):
        loss: Any = optimizer.step(closure)
    assert loss.requires_grad  # the closure ran with gradients on, as it must
    assert loss_of(model) < 0.05 * first
    assert loss_of(average) < 0.05 * first


def test_groups_have_their_own_options_and_averages() -> None:
    params, alone, idle = weights(), weights(), weights(9)
    averages = averages_of(params)
    groups: list[dict[str, Any]] = [
        {"params": params[:2], "lr": 1e-2},
        {"params": params[2:], "betas": (0.0, 0.9)},
    ]
    optimizer = AdamEMA(groups, ema_params=averages, ema_decay=0.5)
    optimizer.add_param_group({"params": idle, "ema_params": averages_of(idle)})
    assert all("ema_params" not in group for group in optimizer.param_groups)
    singles = [AdamEMA(alone[:2], lr=1e-2), AdamEMA(alone[2:], betas=(0.0, 0.9))]
    for step in range(3):
        set_gradients(params, step)
        set_gradients(alone, step)
        for one in (optimizer, *singles):
            one.step()
    assert_equal(params, alone)
    assert not torch.equal(averages[3], params[3])
    set_gradients(params, 3)
    gradient_of(params[0])[2, 2] = float("nan")  # refuses the step of all groups, and counts it once
    before = averages_of(params)
    optimizer.step()
    assert_equal(params, before)
    assert optimizer.skipped == 1


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    params = weights()
    averages = averages_of(params)
    optimizer = AdamEMA(params, ema_params=averages)
    set_gradients(params, 0)
    optimizer.step()
    state, before, averages_before = (
        copy.deepcopy(optimizer.state_dict()),
        averages_of(params),
        averages_of(averages),
    )
    gradient_of(params[2])[0, 0, 0, 0] = float("inf")
    optimizer.step()
    optimizer.step()
    assert optimizer.skipped == 2
    assert_equal(params, before)
    assert_equal(averages, averages_before)
    for key, entries in optimizer.state_dict()["state"].items():
        assert_equal(list(entries.values()), list(state["state"][key].values()))

    careless = AdamEMA(params, skip_nonfinite=False)
    careless.step()
    assert not params[2].isfinite().all()
    assert careless.skipped == 0


def test_nothing_happens_without_gradients() -> None:
    params = weights()
    before = averages_of(params)
    optimizer = AdamEMA(params)
    optimizer.step()
    assert_equal(params, before)
    assert not optimizer.state
    optimizer = AdamEMA([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.step()
    assert_equal(params, before)


def test_the_decay_of_the_average_may_change_between_steps() -> None:
    params = weights()
    averages = averages_of(params)
    optimizer = AdamEMA(params, lr=1e-2, ema_params=averages, ema_decay=1.0)
    start = averages_of(averages)
    set_gradients(params, 0)
    optimizer.step()
    assert_equal(averages, start)
    optimizer.ema_decay = torch.tensor(0.0)
    optimizer.step()
    assert_equal(averages, params)
    optimizer.ema_decay = 2.0
    with pytest.raises(RuntimeError, match=r"ema_decay is 2, but must be between 0 and 1"):
        optimizer.step()


def test_pytorchs_schedulers_drive_it() -> None:
    ours, theirs = weights(), weights()
    optimizer, reference = AdamEMA(ours, lr=0.1), torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.0)
    schedules = [
        torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
            ],
            milestones=[3],
        )
        for o in (optimizer, reference)
    ]
    for step in range(8):
        for params in (ours, theirs):
            set_gradients(params, step)
        optimizer.step()
        reference.step()
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"] != 0.1
    assert_close(ours, theirs)


def continued(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[Tensor]:
    for step in range(100, 103):
        set_gradients(params, step)
        optimizer.step()
    return averages_of(params)


def started(kind: Any, params: list[Tensor], **options: Any) -> torch.optim.Optimizer:
    optimizer = kind(params, lr=1e-2, weight_decay=0.0, **options)
    for step in range(4):
        set_gradients(params, step)
        optimizer.step()
    return optimizer


def test_a_saved_run_goes_on_with_the_same_bits() -> None:
    params = weights()
    params[2].data = params[2].data.contiguous(memory_format=torch.channels_last)
    optimizer = started(AdamEMA, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    saved = [param.detach().clone() for param in params]
    expected = continued(optimizer, params)

    file.seek(0)
    content = torch.load(file, weights_only=True)
    for entries in content["state"].values():  # as a format without strides restores them
        entries["exp_avg"] = entries["exp_avg"].contiguous()
    loaded = AdamEMA(params, lr=0.5, betas=(0.1, 0.1))
    loaded.load_state_dict(content)
    for param, value in zip(params, saved, strict=True):
        param.data.copy_(value)
    assert_equal(continued(loaded, params), expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("fused", [False, True])
def test_state_dicts_go_to_and_fro(kind: Any, fused: bool) -> None:
    def copy_of(params: list[Tensor]) -> list[Tensor]:
        return [param.detach().clone().requires_grad_() for param in params]

    theirs = weights()
    reference = started(kind, theirs, fused=fused)
    ours = copy_of(theirs)
    optimizer = AdamEMA(ours, lr=7.0)
    optimizer.load_state_dict(reference.state_dict())
    assert optimizer.param_groups[0].keys() == {"params", "lr", "betas", "eps", "weight_decay"}
    assert optimizer.state_dict()["state"][0].keys() == reference.state_dict()["state"][0].keys()
    assert_close(continued(optimizer, ours), continued(reference, theirs))

    back = copy_of(ours)
    other = kind(back, fused=fused)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert_close(continued(optimizer, ours), continued(other, back))


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"weight_decay": 0.1}])
def test_state_dicts_of_other_arithmetic_are_refused(options: dict[str, Any]) -> None:
    reference = torch.optim.Adam(weights(), **options)
    optimizer = AdamEMA(weights())
    with pytest.raises(ValueError, match=next(iter(options))):
        optimizer.load_state_dict(reference.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(copied: Any) -> None:
    params = weights()
    averages = averages_of(params)
    optimizer = started(AdamEMA, params, ema_params=averages, ema_decay=0.7)
    twin, twin_params, twin_averages = copied((optimizer, params, averages))
    assert_equal(continued(optimizer, params), continued(twin, twin_params))
    assert_equal(averages, twin_averages)
    assert averages[0] is not twin_averages[0]
    assert twin.ema_decay == 0.7


def test_hooks_and_the_profiler_see_every_step() -> None:
    params = weights()
    set_gradients(params, 0)
    optimizer = AdamEMA(params)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    handle = optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    everywhere = register_optimizer_step_post_hook(lambda *_: seen.append("global"))
    AdamEMA(params).step()
    everywhere.remove()
    assert seen == ["before", "after", "before", "global"]
    with torch.profiler.profile() as profile:
        AdamEMA(params).step()
    assert "Optimizer.step#AdamEMA.step" in {event.key for event in profile.key_averages()}


def test_the_gradient_scaler_drives_it() -> None:
    params = weights()
    optimizer = AdamEMA(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for value, steps in ((1.0, 1), (float("inf"), 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale(total(param.sum() for param in params) * value).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.state[params[0]]["step"] == steps


def test_a_whole_step_compiles_in_one_graph() -> None:
    results = []
    for compile_it in (False, True):
        params = weights()
        optimizer = AdamEMA(params, ema_params=averages_of(params))
        set_gradients(params, 0)
        torch._dynamo.reset()
        step = torch.compile(lambda o=optimizer: o.step(), fullgraph=True, backend="aot_eager")
        for _ in range(3):
            step() if compile_it else optimizer.step()
        results.append(averages_of(params))
    assert_equal(*results)


def test_it_runs_decomposed() -> None:
    results = []
    for plain in (False, True):
        params = weights()
        averages = averages_of(params)
        optimizer = AdamEMA(params, ema_params=averages)
        for step in range(3):
            set_gradients(params, step)
            if step == 1:
                gradient_of(params[0])[0, 0] = float("nan")
            if plain:
                with decompose():
                    optimizer.step()
            else:
                optimizer.step()
        assert optimizer.skipped == 1
        results.append(params + averages)
    assert_close(*results)


def test_gradients_of_a_double_backward_may_have_any_layout() -> None:
    weight = torch.randn(6, 4, requires_grad=True)
    weight.grad = torch.randn(4, 6).t()
    same = weight.detach().clone().requires_grad_()
    same.grad = weight.grad.contiguous()
    AdamEMA([weight]).step()
    AdamEMA([same]).step()
    assert torch.equal(weight, same)


BAD = [
    ({"lr": -0.1}, "lr is -0.1, but must be at least 0"),
    ({"lr": float("nan")}, "lr is nan, but must be at least 0"),
    ({"betas": (1.0, 0.9)}, r"betas\[0\] is 1.0, but must be at least 0 and less than 1"),
    ({"betas": (0.9, -0.1)}, r"betas\[1\] is -0.1, but must be"),
    ({"eps": -1.0}, "eps is -1.0, but must be at least 0"),
    ({"weight_decay": -1.0}, "weight_decay is -1.0, but must be at least 0"),
    ({"ema_decay": 1.1}, "ema_decay is 1.1, but must be between 0 and 1"),
    ({"ema_params": []}, "ema_params has 0 tensors, but params has 4"),
    ({"ema_params": averages_of(weights())[::-1]}, r"the shape of ema_params\[0\] is torch.Size\(\[1\]\)"),
    (
        {"ema_params": averages_of(weights(dtype=torch.float64))},
        r"the dtype of ema_params\[0\] is torch.float64",
    ),
    ({"params": []}, "empty parameter list"),
    (
        {"params": [torch.zeros(3, dtype=torch.bfloat16)]},
        r"params\[0\] is torch.bfloat16, but must be float32",
    ),
    (
        {"params": [torch.zeros(3, dtype=torch.complex64)]},
        r"params\[0\] is torch.complex64, but must be float32",
    ),
    (
        {"params": [torch.zeros(3), torch.zeros(3, device="meta")]},
        r"params\[1\] is on meta, but must be on cpu",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_argument(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdamEMA(**{"params": weights(), **options})


def test_a_bad_group_is_not_added() -> None:
    optimizer = AdamEMA(weights())
    with pytest.raises(ValueError, match="ema_params has 1 tensors, but params has 2"):
        optimizer.add_param_group({"params": weights(1)[:2], "ema_params": [torch.zeros(13, 11)]})
    with pytest.raises(ValueError, match="lr is -1"):
        optimizer.add_param_group({"params": weights(1), "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_an_average_that_is_its_own_parameter_is_refused() -> None:
    params = weights()
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"(emas|params)\[(\d)\] and (emas|params)\[\2\] overlap"):
        AdamEMA(params, ema_params=params).step()


def test_a_sparse_gradient_is_refused() -> None:
    params = weights()
    params[0].grad = torch.randn(13, 11).to_sparse()
    with pytest.raises(NotImplementedError, match="SparseCPU"):
        AdamEMA(params).step()
