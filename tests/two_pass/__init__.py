"""The two passes of a fit."""
