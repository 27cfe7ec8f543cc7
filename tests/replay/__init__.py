"""A forward that is run again: snapshots, batches, random state."""
