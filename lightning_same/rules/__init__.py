"""The SAM family: each rule is a perturbation, a combination and a timing. Torch only."""
