"""How near a trained vocoder comes to recordings that it has not seen, beside Griffin-Lim from the same mels.

aigc-ext train --preset vocoder --data speech
python examples/vocoder_quality.py runs/00000-vocoder-speech
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc_ext.metrics import griffin_lim, wave_quality
from aigc_ext.sampling import load_pretrained
from aigc_ext.tasks.adversarial import TrainConfig, Trainer
from aigc_ext.tasks.adversarial.quality import whole_waves

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("--recordings", type=int, default=1000, help="at most so many")
options = parser.parse_args()
torch.set_num_threads(1)

# The same recordings are held out as in the run.
task: Any = Trainer.from_config(TrainConfig.from_json(options.run / "config.json")).task
network: Any = load_pretrained(options.run)[0]
waves = list(whole_waves(task.held, torch.device("cpu")))[: options.recordings]
seconds = sum(len(wave) for wave in waves) / network.sample_rate
print(f"{len(waves)} held-out recordings, {seconds:.0f} s, {network.n_mels} mels every {network.hop} samples")


def lim(iterations: int) -> Callable[[Tensor], Tensor]:
    return lambda wave: griffin_lim(network.spectrogram(wave), network.spectrogram, iterations)


ways = {"vocoder": network, "Griffin-Lim, 32 iterations": lim(32), "Griffin-Lim, 60 iterations": lim(60)}
for name, make in ways.items():
    began = time.process_time()
    with torch.no_grad():
        made = [make(wave[None])[0, : len(wave)] for wave in waves]
    taken = time.process_time() - began
    qualities = [wave_quality(ours, wave) for ours, wave in zip(made, waves, strict=True)]
    lsd, stft = (sum(values) / len(waves) for values in zip(*qualities, strict=True))
    print(f"{name}: LSD {lsd:.2f} dB, STFT loss {stft:.3f}, {seconds / taken:.0f}x real time")
