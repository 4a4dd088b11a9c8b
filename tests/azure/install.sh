#!/usr/bin/env bash
# install.sh: Azurite from npm and adlfs from PyPI, below .venvs/azure; the tests' own environment stays as it is.
#
#   PYTHON   of an environment with everything that the tests need; adlfs comes beside it
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venvs/azure
AZURITE=3.37.0  # the first that knows from where to list, as the client inside `deltalake` asks

[ -e "$ROOT/.ready" ] && exit 0
command -v npm >/dev/null || {
    echo "make test-azure: npm is not there. Azurite, the emulator, comes from it: install Node.js 20 or later." >&2
    exit 1
}
rm -rf "$ROOT"
mkdir -p "$ROOT"
echo '{"private": true}' >"$ROOT/package.json"
npm install --silent --no-audit --no-fund --prefix "$ROOT" "azurite@$AZURITE"
"$PYTHON" -m venv "$ROOT/python"
SITE=$("$ROOT/python/bin/python" -c 'import site; print(site.getsitepackages()[0])')
"$PYTHON" -c 'import site; print(site.getsitepackages()[0])' >"$SITE/beside.pth"
"$ROOT/python/bin/python" -m pip install --quiet 'adlfs>=2024.12'
touch "$ROOT/.ready"
