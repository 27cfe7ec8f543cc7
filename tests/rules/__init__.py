"""Every rule against its formula, without a Trainer where it needs none."""
