"""Optimizers on fused kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from aigc_ext.ops.adam_ema import adam_ema_, any_nonfinite


class AdamEMA(Optimizer):
    """Adam with decoupled weight decay and the moving average of the weights, in one native pass.

    Up to rounding, it computes ``torch.optim.AdamW`` (without weight decay also ``Adam``) followed by
    ``ema.lerp_(param, 1 - ema_decay)`` for every parameter. State dicts are interchangeable with those
    optimizers'; they don't include the averages, which belong to the module that ``ema_params`` came from.

    A step with an infinite or NaN gradient changes only :attr:`skipped`. Steps never synchronise with the
    device.

    Args:
        params: float32 or float64 tensors on one device, or groups of them, as for any ``Optimizer``.
        lr: learning rate, at least 0.
        betas: decay of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the root of the mean square, at least 0.
        weight_decay: a step multiplies each weight by ``1 - lr * weight_decay``; at least 0.
        ema_params: tensors parallel to ``params``, group after group, with their shapes, strides, dtypes and
            device. They are averaged in place, starting from their current values. For a later
            ``add_param_group``, they go under the group's key ``"ema_params"``.
        ema_decay: in [0, 1].
        skip_nonfinite: False doesn't skip such steps, which saves checking the gradients first.

    Attributes:
        ema_decay: may be changed between steps.
        skipped: 0-d int64 tensor on the device of ``params``, the number of skipped steps.

    ``lr``, ``betas``, ``weight_decay`` and ``ema_decay`` may also be tensors of one float32 or float64 number
    on the device of ``params``; these are read when the kernel runs.

    Raises:
        ValueError: a hyperparameter is out of range, a parameter has the wrong dtype or device, or
            ``ema_params`` don't match ``params``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Tensor = 0.0,
        ema_params: Iterable[Tensor] | None = None,
        ema_decay: float | Tensor = 0.999,
        skip_nonfinite: bool = True,
    ) -> None:
        if not isinstance(ema_decay, Tensor) and not 0 <= ema_decay <= 1:
            raise ValueError(f"ema_decay is {ema_decay}, but must be between 0 and 1")
        self.ema_decay = ema_decay
        self.skip_nonfinite = skip_nonfinite
        self._emas: list[list[Tensor]] = []  # parallel to param_groups; empty for a group without averages
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        trained = [param for group in self.param_groups for param in group["params"]]
        self.skipped = torch.zeros((), dtype=torch.int64, device=trained[0].device)
        if ema_params is not None:
            emas = list(ema_params)
            _check_emas(trained, emas)
            remaining = iter(emas)
            self._emas = [[next(remaining) for _ in group["params"]] for group in self.param_groups]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group = dict(param_group)
        emas = list(param_group.pop("ema_params", ()))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group, self.param_groups[0]["params"][0].device)
            if emas:
                _check_emas(group["params"], emas)
        except ValueError:
            self.param_groups.pop()
            raise
        self._emas.append(emas)

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """``Optimizer``'s wrapper around ``step`` for hooks and the profiler. It is skipped when there are
        none, since it would take a fifth of a small network's step."""
        hooked = Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: AdamEMA, *args: Any, **kwargs: Any) -> Any:
            observed = (
                _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or (not torch.compiler.is_compiling() and torch.autograd._profiler_enabled())
            )
            return (hooked if observed else func)(self, *args, **kwargs)

        return step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Takes one step. A parameter whose ``grad`` is None keeps its value and state; its average still
        moves.

        Args:
            closure: recomputes the loss and the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [
            self._collect(group["params"], emas)
            for group, emas in zip(self.param_groups, self._emas, strict=True)
        ]
        # For a single group the op checks the gradients; with several, all must be checked before any is
        # updated.
        found_inf: Tensor | None = None
        if self.skip_nonfinite and len(work) > 1:
            grads = [grad for slots in work for grad in slots.grads]
            found_inf = any_nonfinite(grads) if grads else None
        skipped: Tensor | None = self.skipped
        for group, slots in zip(self.param_groups, work, strict=True):
            if slots.params:
                beta1, beta2 = group["betas"]
                adam_ema_(
                    slots.params,
                    slots.grads,
                    slots.exp_avgs,
                    slots.exp_avg_sqs,
                    slots.emas,
                    slots.steps,
                    group["lr"],
                    beta1,
                    beta2,
                    group["eps"],
                    group["weight_decay"],
                    self.ema_decay,
                    found_inf,
                    skipped,
                    self.skip_nonfinite and found_inf is None,
                )
                skipped = None  # count the step once, not for every group
            if slots.idle_emas:
                _average(slots.idle_emas, slots.idle_params, self.ema_decay)
        return loss

    def _collect(self, params: list[Tensor], emas: list[Tensor]) -> _Slots:
        slots = _Slots()
        for i, param in enumerate(params):
            grad = param.grad
            if grad is None:
                if emas:
                    slots.idle_params.append(param)
                    slots.idle_emas.append(emas[i])
                continue
            state = self.state_of(param)
            slots.params.append(param)
            slots.grads.append(grad)
            slots.exp_avgs.append(state["exp_avg"])
            slots.exp_avg_sqs.append(state["exp_avg_sq"])
            slots.steps.append(state["step"])
            if emas:
                slots.emas.append(emas[i])
        return slots

    def state_of(self, param: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, which begins with its first step."""
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param, requires_grad=False)
            state["exp_avg_sq"] = torch.zeros_like(param, requires_grad=False)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, of ``torch.optim.AdamW`` or of ``torch.optim.Adam``.

        Raises:
            ValueError: its groups don't match, or it was saved with an unsupported option: ``amsgrad``,
                ``maximize``, or the weight decay of ``Adam``, which is not decoupled.
        """
        for group in state_dict["param_groups"]:
            for option in ("amsgrad", "maximize"):
                if group.get(option):
                    raise ValueError(
                        f"the state dict was saved with {option}=True, which AdamEMA doesn't have"
                    )
            if group["weight_decay"] and not group.get("decoupled_weight_decay", True):
                raise ValueError(
                    f"the state dict was saved by Adam with weight_decay={group['weight_decay']}, but "
                    "AdamEMA has the weight decay of AdamW"
                )
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for option in ("amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused"):
                group.pop(option, None)
            group.pop("decoupled_weight_decay", None)
            for param in group["params"]:
                state = self.state.get(param)
                if state:  # copies: loaded tensors may share memory with their source and have other strides
                    state["step"] = torch.tensor(
                        float(state["step"]), dtype=torch.float32, device=param.device
                    )
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = torch.empty_like(param, requires_grad=False).copy_(state[name])

    def __getstate__(self) -> dict[str, Any]:
        own = ("ema_decay", "skip_nonfinite", "skipped", "_emas")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


@dataclass(slots=True)
class _Slots:
    """A group's tensors in parallel lists: of parameters with a gradient, and of those that are only
    averaged."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    emas: list[Tensor] = field(default_factory=list)
    idle_params: list[Tensor] = field(default_factory=list)
    idle_emas: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def _average(emas: list[Tensor], params: list[Tensor], ema_decay: float | Tensor) -> None:
    weight = 1 - ema_decay
    for ema, param in zip(emas, params, strict=True):
        ema.lerp_(param, weight.to(ema.dtype) if isinstance(weight, Tensor) else weight)


def _check_group(group: dict[str, Any], device: torch.device) -> None:
    for name in ("lr", "eps", "weight_decay"):
        value = group[name]
        if not isinstance(value, Tensor) and not value >= 0:
            raise ValueError(f"{name} is {value}, but must be at least 0")
    for i, value in enumerate(group["betas"]):
        if not isinstance(value, Tensor) and not 0 <= value < 1:
            raise ValueError(f"betas[{i}] is {value}, but must be at least 0 and less than 1")
    for i, param in enumerate(group["params"]):
        if param.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"params[{i}] is {param.dtype}, but must be float32 or float64: a half type would round the "
                "updates away (keep float32 weights and compute under autocast)"
            )
        if param.device != device:
            raise ValueError(f"params[{i}] is on {param.device}, but must be on {device} like the first one")


def _check_emas(params: list[Tensor], emas: list[Tensor]) -> None:
    if len(emas) != len(params):
        raise ValueError(f"ema_params has {len(emas)} tensors, but params has {len(params)}")
    for i, (param, ema) in enumerate(zip(params, emas, strict=True)):
        for what in ("shape", "dtype", "device"):
            ours, theirs = getattr(ema, what), getattr(param, what)
            if ours != theirs:
                raise ValueError(
                    f"the {what} of ema_params[{i}] is {ours}, but that of params[{i}] is {theirs}"
                )
