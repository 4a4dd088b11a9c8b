#!/usr/bin/env bash
# install.sh [FOLDER]: OpenStack Swift from PyPI in a virtual environment of its own, apart from the project's.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${1:-$HERE/../../../.venvs/swift}
PYTHON=${PYTHON:-python3}

[ -e "$VENV/.ready" ] && exit 0
rm -rf "$VENV"
"$PYTHON" -m venv --without-pip "$VENV"
"$PYTHON" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check 'swift==2.38.3' || {
    echo "make test-s3: OpenStack Swift could not be installed from PyPI. Check the network and pip's settings." >&2
    exit 1
}
touch "$VENV/.ready"
