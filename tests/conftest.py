"""Environment of all tests: no hub, no telemetry, no token, and the warnings of others that are ignored.

The variables are set before anything is imported, because Ray and the hub's client read them at import; processes
that a test starts inherit them.
"""

from __future__ import annotations

import gc
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
    "OMP_WAIT_POLICY": "passive",  # a thread of torch that waits leaves the processor to the other tests
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# No deadline: a busy machine is not a failure. In CI the examples are fixed, so that a red run can be repeated.
settings.register_profile("dev", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
# `make test-unit` tries fewer examples than `make test`, to be quick.
settings.register_profile("quick", deadline=None, print_blob=True, max_examples=10)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Ray, clients of stores and servers of tests leave sockets and files open; the garbage collector finds them, at a time
# that no test chooses. Unit tests start none of these, so there an open file is an error.
_WARNINGS_OF_OTHERS = ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
_OTHERS_WERE_USED = pytest.StashKey[bool]()
_CLUSTER, _UNIT = Path(__file__).parent / "cluster", Path(__file__).parent / "unit"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep searches out of the user's cache of vectors."""
    os.environ["VECTIDE_CACHE"] = str(tmp_path_factory.mktemp("vectors") / "cache")


def _uses_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None or item.path.is_relative_to(_CLUSTER)


@pytest.hookimpl(trylast=True)  # after `-m` has deselected tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ignore the warnings of others outside of unit tests, and run the tests that start Ray last.

    Their garbage outlives them.
    """
    items.sort(key=lambda item: (not item.path.is_relative_to(_UNIT), _uses_ray(item)))
    others = [item for item in items if not item.path.is_relative_to(_UNIT)]
    for item in others:
        for warning in _WARNINGS_OF_OTHERS:
            item.add_marker(pytest.mark.filterwarnings(warning))
    config.stash[_OTHERS_WERE_USED] = bool(others)


def pytest_collection_finish() -> None:
    """Leave the modules that are loaded now out of all later garbage collections, each of which would visit them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Undo `pytest_collection_finish`, and ignore the warnings when pytest collects the garbage after the last test."""
    gc.unfreeze()
    if config.stash.get(_OTHERS_WERE_USED, False):
        for category in (pytest.PytestUnraisableExceptionWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
