"""Pass two sees w + e in every precision, by every route, with an autocast of the user's own or without."""

import pytest
from support.precision import CASES, Case, check


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_losses_are_those_of_a_loop_by_hand(case: Case) -> None:
    check(case)
