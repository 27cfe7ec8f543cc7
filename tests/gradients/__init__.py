"""The split by checkpoint, and norms of lists of gradients."""
