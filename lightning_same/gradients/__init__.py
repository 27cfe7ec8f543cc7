"""What is computed from lists of gradients: norms, the four checkpoints, elementwise formulas. Torch only."""
