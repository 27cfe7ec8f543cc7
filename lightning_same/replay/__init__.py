"""Runs a forward again, or beside training, without leaving a trace."""
