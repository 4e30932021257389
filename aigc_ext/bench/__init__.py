"""Measurements that need nothing but this package: `aigc-ext bench`, and what `benchmarks` shares with it."""
