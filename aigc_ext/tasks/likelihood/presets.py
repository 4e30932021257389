"""The presets: named recipes, one `TrainConfig` each."""

from __future__ import annotations

from aigc_ext.models.transformer import TransformerConfig
from aigc_ext.models.wavenet import WaveNetConfig
from aigc_ext.tasks.likelihood.config import SamplerConfig, TextConfig, TrainConfig
from aigc_ext.tasks.optimization import AdamConfig, EMAConfig
from aigc_ext.training.config import DataConfig

PRESETS: dict[str, TrainConfig] = {
    # Three thousand emoji are soon known by heart: dropout, and no more than twenty looks at each.
    "prior": TrainConfig(
        preset="prior",
        network=TransformerConfig(width=192, layers=4, hidden=384, dropout=0.1),
        text=TextConfig(vocabulary=1024, source=16),
        optim=AdamConfig(lr=2e-3, lr_end=1e-4, beta2=0.99, weight_decay=0.05),
        ema=EMAConfig(kimg=3.0),
        batch=32,
        kimg=60.0,
        ramp_kimg=60.0,
        warmup_kimg=2.0,
        tick=2.0,
        snap=5,
        threads=1,
        precision="auto",
    ),
    # The targets alone, ten tokens each, are too few to learn a language from within minutes. That a name is
    # copied from the source is learned between 20 and 30 kimg, where the loss falls by a quarter.
    "textgen": TrainConfig(
        preset="textgen",
        data=DataConfig(source="text"),
        network=TransformerConfig(width=192, layers=3, hidden=384, source_weight=0.3),
        text=TextConfig(vocabulary=2048, source=56, target=24),
        optim=AdamConfig(lr=2e-3, lr_end=1e-4, beta2=0.99, weight_decay=0.01),
        ema=EMAConfig(kimg=2.0),
        sampler=SamplerConfig(temperature=0.0),
        batch=32,
        kimg=90.0,
        ramp_kimg=90.0,
        warmup_kimg=2.0,
        tick=2.0,
        snap=5,
        grid=(4, 4),
        threads=1,
        precision="auto",
    ),
    "wavenet": TrainConfig(
        preset="wavenet",
        data=DataConfig(source="spoken-digits", cond=True),
        network=WaveNetConfig(),
        optim=AdamConfig(lr=3e-3, lr_end=1e-4, beta2=0.99, weight_decay=0.01),
        ema=EMAConfig(kimg=0.2),
        batch=1,
        kimg=6.0,
        ramp_kimg=6.0,
        warmup_kimg=0.1,
        tick=0.3,
        snap=4,
        grid=(5, 2),
        metric_items=100,
        threads=1,
        precision="auto",
    ),
}
