"""The metrics' exception."""


class MetricError(ValueError):
    """A metric that cannot be computed as requested; the message says what is missing and what would help."""
