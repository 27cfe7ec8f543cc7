"""The study: many runs of ``lightning-same fit``, and what they say together."""

from lightning_same.experiments.study.command import main

__all__ = ["main"]
