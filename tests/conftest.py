"""Environment of all tests: no hub, no telemetry, no token, and the warnings of Ray that are ignored.

The variables are set before anything is imported, because Ray and the hub's client read them at import; processes
that a test starts inherit them.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import settings

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "RAY_AUTH_MODE": "disabled",  # a Ray that a test starts listens on this machine only, and lives as long as the test
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# No deadline: a busy machine is not a failure. In CI the examples are fixed, so that a red run can be repeated.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
# `make test-unit` tries fewer examples than `make test`, to be quick.
settings.register_profile("quick", deadline=None, print_blob=True, max_examples=15)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Ray leaves sockets and files open when it is shut down; the garbage collector finds them.
_RAY_WARNINGS = ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
_RAY_WAS_USED = pytest.StashKey[bool]()
_CLUSTER = Path(__file__).parent / "cluster"


def _uses_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None or item.path.is_relative_to(_CLUSTER)


@pytest.hookimpl(trylast=True)  # after `-m` has deselected tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ignore Ray's warnings in the tests that start Ray, and run these last: their garbage outlives them."""
    items.sort(key=_uses_ray)
    for item in filter(_uses_ray, items):
        for warning in _RAY_WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(warning))
    config.stash[_RAY_WAS_USED] = any(map(_uses_ray, items))


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ignore Ray's warnings too when pytest collects the garbage after the last test."""
    if config.stash.get(_RAY_WAS_USED, False):
        for category in (pytest.PytestUnraisableExceptionWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
