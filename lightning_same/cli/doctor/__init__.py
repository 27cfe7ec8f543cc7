"""``lightning-same doctor``: what this machine has, a test of a few seconds, and the long test of its GPUs."""

from lightning_same.cli.doctor.command import main

__all__ = ["main"]
