"""Who performs the runs of a study: processes on this machine, or a Ray cluster. Both yield the same events."""
