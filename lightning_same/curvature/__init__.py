"""The Hessian as an operator, and what is measured with its products. Torch only."""
