"""Quality metrics for generated images.

`compute_metrics` and `MetricSet` compute metrics by name, against a dataset; the underlying functions take
features of any kind.
"""

from aigc_ext._cache import default_cache_dir
from aigc_ext.metrics.audio import (
    WaveQuality,
    WordClassifier,
    griffin_lim,
    log_spectral_distance,
    wave_quality,
)
from aigc_ext.metrics.classifier import ClassCoverage, SampleClassifier, class_coverage
from aigc_ext.metrics.compute import METRICS, MetricSet, compute_metrics, named_extractor
from aigc_ext.metrics.errors import MetricError
from aigc_ext.metrics.extractors import FeatureExtractor, InceptionFeatures, RandomFeatures
from aigc_ext.metrics.frechet import Moments, frechet_distance
from aigc_ext.metrics.kernel import kernel_distance
from aigc_ext.metrics.manifold import precision_recall
from aigc_ext.metrics.memorisation import Memorisation, memorisation
from aigc_ext.metrics.reconstruction import ReconstructionDistance
from aigc_ext.metrics.robustness import Judge, Robustness, fgsm, pgd, robustness, smallest_epsilon

__all__ = [
    "METRICS",
    "ClassCoverage",
    "FeatureExtractor",
    "InceptionFeatures",
    "Judge",
    "Memorisation",
    "MetricError",
    "MetricSet",
    "Moments",
    "RandomFeatures",
    "ReconstructionDistance",
    "Robustness",
    "SampleClassifier",
    "WaveQuality",
    "WordClassifier",
    "class_coverage",
    "compute_metrics",
    "default_cache_dir",
    "fgsm",
    "frechet_distance",
    "griffin_lim",
    "kernel_distance",
    "log_spectral_distance",
    "memorisation",
    "named_extractor",
    "pgd",
    "precision_recall",
    "robustness",
    "smallest_epsilon",
    "wave_quality",
]
