"""What every test starts from: no hub, no telemetry, no token, and the same examples on every machine.

The variables are set before anything is imported, because Ray and the hub's client read them at import; processes
that a test starts inherit them.
"""

from __future__ import annotations

import os

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
settings.load_profile("ci" if os.environ.get("CI") else "dev")
