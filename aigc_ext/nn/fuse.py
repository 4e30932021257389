"""Fusing the layers of an existing model in place: `fuse_` and `unfuse_`.

In a `torch.nn.Sequential` it is certain, without running anything, that the output of one child goes to the
next child and nowhere else. There `fuse_` changes only the class of the container, to a subclass whose
`forward` passes a layer and the activation after it to one op. The children are not modified, so parameters,
`state_dict`, `repr`, indexing, calling a single child, and tools that inspect the modules work as before.
Each forward decides anew which neighbours run as one op, so hooks, parametrizations and children added after
`fuse_` are respected.

A module with a `forward` of its own may do anything with a layer's result. There the class of the layer is
changed: its result waits for the activation (`aigc_ext.nn._deferred`), or the layer alone runs as another
kernel.

On the CPU, PyTorch's own layers are often as fast, so there a layer is taken only where that was measured to
be faster: by `fuse_` on example inputs, where the whole network is timed too, or else by a rule.

- `_fusible`: the layers as ops, the activations, and why something is neither. A new layer begins there.
- `_gains`: the rules, and how a layer is timed.
- `_usage`: what follows a layer in a `forward`.
- `_choosing`: what is taken of a module, with all of these.
- `_running`, `_deferred`: how it then runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from aigc_ext.nn._choosing import Chooser, Decisions, decide_as_a_whole, places
from aigc_ext.nn._fusible import LAYERS, layer_type
from aigc_ext.nn._report import FusedRun as FusedRun
from aigc_ext.nn._report import FusionReport as FusionReport
from aigc_ext.nn._report import SkippedRun as SkippedRun
from aigc_ext.nn._running import Fused, undo
from aigc_ext.nn._usage import Usage, arguments_of, run_on_examples


def fuse_(module: nn.Module, example_inputs: Tensor | Sequence[Any] | None = None) -> FusionReport:
    """Makes linear, convolution and norm layers run as one op with the activation that follows them, and 3x3
    convolutions by a faster algorithm, where that pays.

    The module's results and its derivatives of every order stay the same up to rounding, and so do its
    parameter objects: an existing optimizer keeps working. Nothing else about it changes; the top of this
    file describes how. Calling it again decides anew and reports the current state. To fuse only a part of a
    model, or to bisect a difference, pass that part.

    The layers are `Linear`, `Conv1d/2d/3d`, `ConvTranspose1d/2d/3d`, `BatchNorm1d/2d/3d`, `GroupNorm`,
    `InstanceNorm1d/2d/3d` without running statistics and `LayerNorm` without weights, parametrized or not;
    the activations `ReLU`, `LeakyReLU`, `Tanh`, `Sigmoid`, `ELU` (alpha 1), `SELU`, `Softplus` (beta 1,
    threshold >= 20) and `SiLU`, as modules or functions, `inplace` or not, and `y * torch.sigmoid(y)`. No op
    has a slope that is learned, so `PReLU` stays. A layer and its activation are found

    - in a `Sequential`, as neighbours;
    - in a module with a `forward` of its own, by running it on `example_inputs`, or without them by
      `torch.fx`, where it can trace that `forward`. Should another call do something else with the layer's
      result, that is what happens.

    With `example_inputs`, group and instance norm are taken by themselves too, and with a sum behind them,
    `act(norm(x) + residual)` or `norm(x) + residual`, if the `forward` that calls the norm is seen to add a
    tensor of the same shape. Results have the memory format that PyTorch gives them: those of instance norm
    are contiguous even in a channels-last network, where `GroupNormAct` keeps channels-last.

    Subclasses of the layers are not taken, since their behaviour is unknown, nor are modules with hooks that
    would be bypassed. The hook-based `torch.nn.utils.weight_norm` and `spectral_norm` run as before, with
    their power iterations; layers that have them are taken if there are `example_inputs`. `Softplus` is not
    fused under autocast, where PyTorch may compute it in float32.

    On the CPU a layer is taken only where that is faster. With `example_inputs`, the candidates are timed
    here and now, each on what it gets of them: in training mode with the gradients, in eval mode without.
    What does not win by more than 3 % is left as it is, and the report has the figure. Then the whole module
    is timed with and without what was taken; if it does not win, everything is left.
    Without them, a rule takes what won in measurements: convolutions by Winograd's algorithm (see
    `aigc_ext.ops.conv2d_act`), half types that the CPU has no instructions for, batch norm from 131,072
    numbers on, instance norm in float32 from planes of 256 numbers on, and group norm in float32 with
    gradients, if it is in channels-last or has a million numbers. What was measured of group, instance and
    layer norm with gradients holds with gradients only, what was measured in eval mode only without; else the
    rule decides. On a card, which is not measured yet, all pairs run as one op; in `torch.compile`, those in
    a `Sequential`.

    A pickled or `torch.save`d fused module can be loaded only where aigc_ext is installed, and exporters that
    do not know its ops (ONNX) cannot write it: call `unfuse_` first, or save the `state_dict`, which is the
    same.

    Args:
        module: any module, of any depth; changed in place.
        example_inputs: arguments for `module`, a tensor or a sequence, as large as those to come. It runs on
            them several times; its buffers and the random numbers to come are put back, and its parameters
            get no gradients.

    Returns:
        What was taken and what was left, with the reasons.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
    """
    _check_module(module)
    undo(module)
    report = FusionReport([], [])
    found = list(places(module, report.skipped))
    usages: dict[nn.Module, Usage] = {}
    arguments = None
    if example_inputs is not None:
        arguments = arguments_of(example_inputs)
        layers = list(dict.fromkeys(place.layer for place in found))
        usages = run_on_examples(module, layers, arguments)
    chooser = Chooser()
    decisions = Decisions(module)
    for place in found:
        if place.layer in decisions.plans:  # it is in several places
            continue
        choice = chooser.choose(place, usages.get(place.layer))
        if isinstance(choice, str):
            report.skipped.append(SkippedRun(place.path, choice))
            if place.container and usages:
                decisions.leave(place)
        else:
            decisions.take(place, choice)
    gain = None
    if arguments is None:
        decisions.apply()
    else:
        gain = decide_as_a_whole(decisions, arguments, report.skipped)
    return FusionReport(list(decisions.runs.values()), report.skipped, gain)


def unfuse_(module: nn.Module) -> None:
    """Undoes `fuse_`: `module` and every container below it get their original classes back.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        RuntimeError: a fused container's class has since been subclassed by something else (e.g. FSDP).
    """
    _check_module(module)
    for path, child in module.named_modules():
        cls = type(child)
        derived = isinstance(child, Fused) and "_unfused_class" not in vars(cls)
        if derived or (hasattr(child, "_unplanned_class") and layer_type(child) not in LAYERS):
            raise RuntimeError(
                f"{path or 'module'} is a {cls.__name__}, made from a fused module after fuse_(); "
                "undo that first"
            )
    undo(module)


def _check_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module is a {type(module).__name__}, but must be a torch.nn.Module")
