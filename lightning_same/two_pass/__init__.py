"""The two passes of a training step."""
