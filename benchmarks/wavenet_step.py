"""Samples of a WaveNet one after the other: 40 steps, each with the code that was drawn before it.

- eager: PyTorch as one would write it with queues: per layer a ring of past inputs, one product for all taps,
  tanh * sigmoid, one product for the residual and skip connection; then the code by `multinomial`'s way, from
  a random number that is given.
- compile: that step compiled, one graph for all layers.
- aigc_ext, a call a step: what a sampler pays that needs each sample at once.
- aigc_ext: all steps in one call.

The bytes are those of the weights, which every step reads once for all sequences: from the second-level cache
if they fit, else from the third. Time and bytes are of all 40 steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.models import WaveNet, WaveNetConfig, build_network
from aigc_ext.ops import WaveNetState, wavenet_step_
from benchmarks.harness import Case, Setting

STEPS = 40
_TWO_CYCLES = tuple(2**i for i in range(10)) * 2
NETWORKS = {
    "16 layers of 32": WaveNetConfig(
        channels=32, gates=32, skips=32, hidden=64, taps=2, dilations=tuple(2**i for i in range(8)) * 2
    ),
    "20 layers of 64": WaveNetConfig(
        channels=64, gates=64, skips=64, hidden=64, taps=2, dilations=_TWO_CYCLES
    ),
    "preset wavenet": WaveNetConfig(),
}


class Eager:
    """Its state is tensors alone, so that a step can be compiled."""

    def __init__(self, net: WaveNet, batch: int) -> None:
        self.dilations, self.taps = tuple(net.settings.dilations), net.settings.taps
        w, condition = net.step_weights(), net.step_condition(1, None)[0, 0]
        self.embedding = w.embedding
        self.gates = [
            (gate.flatten(0, 1).t().contiguous(), bias)
            for gate, bias in zip(w.w_gate, condition, strict=True)
        ]
        self.outs = [(out.t().contiguous(), bias) for out, bias in zip(w.w_out, w.b_out, strict=True)]
        self.hidden = w.w_hidden.t().contiguous(), w.b_hidden
        self.logits = w.w_logits.t().contiguous(), w.b_logits
        self.channels, self.skips = net.settings.channels, net.settings.skips
        self.queues = [
            w.embedding.new_zeros((self.taps - 1) * dilation, batch, self.channels)
            for dilation in self.dilations
        ]

    def step(self, codes: Tensor, uniform: Tensor, places: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`places`: of each layer those of its taps but the first, and where x goes, which is the last."""
        x = F.embedding(codes, self.embedding)
        skip = x.new_zeros(len(x), self.skips)
        for gate, out, queue, place in zip(self.gates, self.outs, self.queues, places, strict=True):
            past = queue.index_select(0, place)
            z = F.linear(torch.cat([x, *past.unbind(0)], 1), *gate)
            a, b = z.chunk(2, 1)
            queue.index_copy_(0, place[-1:], x[None])
            residual, more = F.linear(a.tanh() * b.sigmoid(), *out).split([self.channels, self.skips], 1)
            x, skip = x + residual, skip + more
        logits = F.linear(F.linear(F.relu(skip), *self.hidden).relu(), *self.logits)
        sums = logits.softmax(1).cumsum(1)
        return (sums <= uniform[:, None]).sum(1).clamp(max=logits.shape[1] - 1), logits

    def run(
        self, step: Callable[..., tuple[Tensor, Tensor]], codes: Tensor, uniform: Tensor, places: list[Any]
    ) -> Tensor:
        for now, numbers in zip(places, uniform.unbind(1), strict=True):
            codes, logits = step(codes, numbers, now)
        return logits

    def all_places(self, device: torch.device) -> list[list[Tensor]]:
        """From the first step on."""
        return [
            [
                torch.tensor([(t - tap * d) % ((self.taps - 1) * d) for tap in range(1, self.taps)]).to(
                    device
                )
                for d in self.dilations
            ]
            for t in range(STEPS)
        ]


def cases(setting: Setting) -> Iterable[Case]:
    for name, config in NETWORKS.items():
        for batch in (1, 10):
            yield case_of(setting, name, config, batch)


@torch.no_grad()
def case_of(setting: Setting, name: str, config: WaveNetConfig, batch: int) -> Case:
    torch.manual_seed(0)
    net: Any = build_network(config).to(setting.device)
    net.output.weight.normal_(0.0, 0.1)
    uniform = torch.rand(batch, STEPS, device=setting.device)
    eager, weights, condition = Eager(net, batch), net.step_weights(), net.step_condition(batch, None)
    places = eager.all_places(setting.device)
    first = net.new_state(batch)
    state = copy.deepcopy(first)

    def plain(step: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for queue in eager.queues:
                queue.zero_()
            with torch.no_grad():
                return eager.run(step, first.codes, uniform, places)

        return run

    def ours(per_call: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for now, start in zip(state, first, strict=True):
                now.copy_(start)
            for numbers in uniform.split(per_call, 1):
                _, logits = wavenet_step_(
                    WaveNetState(*state), weights, condition, config.dilations, numbers, with_logits=True
                )
            return logits[:, -1]

        return run

    contenders = {"eager": plain(eager.step)}
    for mode_name, mode in setting.compile_modes().items():
        contenders[mode_name] = plain(setting.compiled(eager.step, mode))
    contenders |= {"aigc_ext, a call a step": ours(1), "aigc_ext": ours(STEPS)}
    return Case(
        "wavenet_step_",
        f"{name}, {batch} sequence{'s' if batch > 1 else ''}, {STEPS} steps",
        contenders,
        dtype="float32",
        bytes=STEPS * sum(t.numel() * t.element_size() for t in weights[1:]),
        # A code that rounding decides would make all that follows differ: with this seed none does.
        outputs=lambda logits: logits,
        rtol=1e-3,
        atol=1e-3,
    )
