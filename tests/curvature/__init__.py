"""The Hessian as an operator, and what is measured on it."""
