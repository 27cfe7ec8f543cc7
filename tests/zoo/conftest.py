import pytest

pytest.register_assert_rewrite("zoo.member")
