"""Data, models, and studies of many runs."""
