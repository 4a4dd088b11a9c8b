"""Stores that tests start, and the suite that each of them goes through."""

import pytest

pytest.register_assert_rewrite("tests.stores.suite", "tests.stores.leaks")
