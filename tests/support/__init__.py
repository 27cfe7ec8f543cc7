"""What tests share: modules, fits, processes, formulas, planted data."""
