"""What goes wrong when images are measured."""


class MetricError(ValueError):
    """A metric that cannot be computed as asked; the message says what is missing and what would do."""
