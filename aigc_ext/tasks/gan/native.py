"""The adversarial step as one native op, where networks, optimizers and objective are such as the op knows.

Whatever would make it another step than the eager one, a hook, a frozen layer, another optimizer, is looked
for before each step: that takes some microseconds, and anything can change between two steps.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import MLPDiscriminator, MLPGenerator
from aigc_ext.nn import Linear
from aigc_ext.ops import MLPLearner
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops.mlp_gan_step import has_mlp_gan_step
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan.objective import Objective

_METHODS = frozenset(name for name, value in vars(Objective).items() if inspect.isfunction(value))
_facts_of = attrgetter("requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks", "dtype", "is_cpu")
_DTYPES = (torch.float32, torch.float64)


class RefusedError(Exception):
    """The op cannot take the step; the message says why, as the end of a sentence."""


@dataclass(eq=False)
class NativeLearner:
    """A network and its optimizer, as the op takes them."""

    role: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    _grads: list[Tensor] = field(default_factory=list)

    def layers(self) -> list[Linear]:
        """Raises RefusedError for a network that is no chain of layers which the op knows."""
        role, network = self.role, self.network
        family = MLPGenerator if role == "generator" else MLPDiscriminator
        if type(network) is not family:  # a subclass may compute anything
            raise RefusedError(f"the {role} is no {family.__name__}")
        assert isinstance(network, (MLPGenerator, MLPDiscriminator))
        if network.embedding is not None:
            raise RefusedError(f"the {role} is told labels")
        if _is_hooked(network):
            raise RefusedError(f"the {role} has a hook or a forward of its own")
        modules: Any = network._modules
        layers: list[Any] = [*modules["layers"]._modules.values(), modules["head"]]
        for layer in layers:
            if type(layer) is not Linear:  # it may be parametrized
                raise RefusedError(f"a layer of the {role} is a {type(layer).__name__}, and no Linear")
            if _is_hooked(layer):
                raise RefusedError(f"a layer of the {role} has a hook or a forward of its own")
            if layer.clamp is not None:
                raise RefusedError(f"a layer of the {role} has a clamp")
        return layers

    def parameters(self, layers: list[Linear], dtype: torch.dtype) -> list[Tensor]:
        """Raises RefusedError for parameters that autograd would treat in another way than the op does, and
        for an optimizer that is not AdamEMA in its usual form."""
        role = self.role
        parameters: list[Tensor] = []
        usual = (True, None, None, dtype, True)  # looked at together: that takes half of the time
        for layer in layers:
            for p in layer._parameters.values():
                if p is not None and _facts_of(p) == usual and type(p) is nn.Parameter and p.is_contiguous():
                    parameters.append(p)
                    continue
                if p is None or not p.requires_grad:
                    raise RefusedError(f"a parameter of the {role} is frozen or missing")
                parameters.append(p)
                if p._backward_hooks or p._post_accumulate_grad_hooks:
                    raise RefusedError(f"a parameter of the {role} has a hook")
                if (
                    p.dtype is not dtype
                    or not (p.is_cpu and p.is_contiguous())
                    or type(p) is not nn.Parameter
                ):
                    raise RefusedError(f"a parameter of the {role} is not on the CPU, contiguous and {dtype}")
        if len(parameters) != 2 * len(layers):
            raise RefusedError(f"a layer of the {role} has other parameters than weight and bias")
        adam = usual_adam(role, self.optimizer)
        group = adam.param_groups[0]
        if len(adam.param_groups) > 1 or list(map(id, group["params"])) != list(map(id, parameters)):
            raise RefusedError(f"the {role}'s optimizer has several groups, or not the layers' parameters")
        return parameters

    def learner(self, fit: Fit, learns: bool) -> MLPLearner:
        """What the op takes. A learner's gradients are in `grad` of its parameters afterwards, in memory that
        is the same in every step."""
        layers, parameters = fit
        adam = self.optimizer
        assert isinstance(adam, AdamEMA)
        grads, exp_avgs, exp_avg_sqs, steps = [], [], [], []
        if learns:
            grads = self._grads
            shapes = [p.shape for p in parameters]
            if [g.shape for g in grads] != shapes or grads[0].dtype != parameters[0].dtype:
                grads = self._grads = [torch.empty_like(p, requires_grad=False) for p in parameters]
            for p, grad in zip(parameters, grads, strict=True):
                if p.grad is not grad:
                    p.grad = grad
                state = adam.state_of(p)
                exp_avgs.append(state["exp_avg"])
                exp_avg_sqs.append(state["exp_avg_sq"])
                steps.append(state["step"])
        group = adam.param_groups[0]
        return MLPLearner(
            *(parameters, grads, exp_avgs, exp_avg_sqs, adam._emas[0] if learns else [], steps),
            acts=tuple([layer.act for layer in layers]),
            alphas=tuple([layer.alpha for layer in layers]),
            gains=tuple([layer.gain for layer in layers]),
            rates=(group["lr"], *group["betas"], group["eps"], group["weight_decay"], float(adam.ema_decay)),
            skipped=adam.skipped,
            skip_nonfinite=adam.skip_nonfinite,
        )


def _is_hooked(module: nn.Module) -> bool:
    attributes = module.__dict__
    return bool(
        attributes["_forward_hooks"]
        or attributes["_forward_pre_hooks"]
        or attributes["_backward_hooks"]
        or attributes["_backward_pre_hooks"]
        or "forward" in attributes
    )


def usual_adam(role: str, adam: torch.optim.Optimizer) -> AdamEMA:
    """The optimizer; raises RefusedError if it is not AdamEMA in its usual form."""
    if type(adam) is not AdamEMA:
        raise RefusedError(f"the {role}'s optimizer is no AdamEMA")
    if (
        adam._optimizer_step_pre_hooks
        or adam._optimizer_step_post_hooks
        or "step" in vars(adam)  # as PyTorch's schedulers wrap it
    ):
        raise RefusedError(f"the {role}'s optimizer has a hook or a step of its own")
    for group in adam.param_groups:
        for number in (group["lr"], *group["betas"], adam.ema_decay):
            if isinstance(number, Tensor):
                raise RefusedError(f"a rate of the {role}'s optimizer is a tensor")
    return adam


def check_objective(objective: Objective, blur_sigma: float | None) -> None:
    """Raises RefusedError for an objective that is more than the op knows."""
    if objective.augment is not None:
        raise RefusedError("there is an augmentation")
    if objective.blur_sigma if blur_sigma is None else blur_sigma:
        raise RefusedError("the images are blurred")
    if objective.autocast is not None:
        raise RefusedError("autocast is on")
    if objective.attack:
        raise RefusedError("the discriminator is trained adversarially")


def check_surroundings(objective: Objective, discriminator: nn.Module) -> None:
    """Raises RefusedError for an objective with code of its own, and for a mode of PyTorch's in which the
    eager step would compute something else."""
    if type(objective) is not Objective or not _METHODS.isdisjoint(vars(objective)):
        raise RefusedError("the objective is no plain Objective")
    if type(objective.loss) is not AdversarialLoss or objective.discriminator is not discriminator:
        raise RefusedError("the objective has a loss or a discriminator of its own")
    if torch.is_autocast_enabled(objective._device.type):
        raise RefusedError("autocast is on")
    if _has_any_global_hook() or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        raise RefusedError("there is a global hook")
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        raise RefusedError("it is inside no_grad, torch.compile or a mode of PyTorch's")
    if decomposed():
        raise RefusedError("it is inside decompose()")


def check_batch(real: Tensor, z: Tensor, generator: MLPGenerator) -> None:
    """Raises RefusedError for a batch that the eager step refuses, or treats in another way."""
    if (
        not z.shape[0]
        or z.shape != (real.shape[0], generator.z_dim)
        or real.shape[1:] != generator.image_shape
    ):
        raise RefusedError("the batch has other shapes than one image for each latent")
    if z.dtype not in _DTYPES or real.dtype != z.dtype or not has_mlp_gan_step(z.device) or not real.is_cpu:
        raise RefusedError("the batch is not on the CPU, in float32 or float64")
    if real.requires_grad or z.requires_grad or type(real) is not Tensor or type(z) is not Tensor:
        raise RefusedError("the batch wants a gradient")


class Fit(NamedTuple):
    """What the op takes, as found in two networks that fit."""

    layers: list[Linear]
    parameters: list[Tensor]


def fit(generator: NativeLearner, discriminator: NativeLearner, real: Tensor, z: Tensor) -> tuple[Fit, Fit]:
    """Raises RefusedError if the op cannot take a step of the two."""
    g_layers, d_layers = generator.layers(), discriminator.layers()
    assert isinstance(generator.network, MLPGenerator)
    assert isinstance(discriminator.network, MLPDiscriminator)
    check_batch(real, z, generator.network)
    if discriminator.network.image_shape != generator.network.image_shape:
        raise RefusedError("the discriminator's images have another shape")
    g_parameters = generator.parameters(g_layers, z.dtype)
    d_parameters = discriminator.parameters(d_layers, z.dtype)
    if len({*map(id, g_parameters), *map(id, d_parameters)}) < len(g_parameters) + len(d_parameters):
        raise RefusedError("layers share a parameter")
    return Fit(g_layers, g_parameters), Fit(d_layers, d_parameters)
