"""The tests that must fail with prepared fits, each with the reason."""

BOTH = ("two_pass", "monitors")

DIFFERENCES: dict[str, tuple[tuple[str, ...], str]] = {}
"""By the test's id, without its parameters or with them: under which kinds of fits it fails, and why it has to."""
