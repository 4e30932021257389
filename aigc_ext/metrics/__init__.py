"""Figures that say how good generated images are."""

from aigc_ext.metrics.classifier import ClassCoverage, SampleClassifier, class_coverage

__all__ = ["ClassCoverage", "SampleClassifier", "class_coverage"]
