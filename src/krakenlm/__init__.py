"""Kraken (arXiv 2408.07802), reproduced end to end: text, training, evaluation, engines, latency, report."""

__version__ = "0.1.0"
