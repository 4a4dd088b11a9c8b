#!/usr/bin/env bash
# install.sh [FOLDER]: unpacks manuals, a dictionary and Python's documentation of Debian below FOLDER; see ../debian.sh.
# Curation is measured with them; debian.py reads them. 30 MB to fetch, 130 MB on disk, once, in ten seconds.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${1:-$HERE/../../.venvs/data}
NAME="test data"
TARGET=test-data
# One version of a package has one content: apt-get compares its SHA-256 with Debian's signed list.
PACKAGES=(debian-reference-{en,de,fr,es,it,pt-br,ja,zh-cn}=2.100 wordnet-base=1:3.0-37 manpages=6.03-2
    python3.11-doc=3.11.2-6+deb12u8)
UNUSED='^(libjs-.*|sensible-utils)_'

[ -e "$ROOT/.ready" ] && [ "$(cat "$ROOT/.ready")" = "${PACKAGES[*]}" ] && exit 0

source "$HERE/../debian.sh"
LEFT_OUT=('usr/share/locale*')
unpack_debian bookworm "$UNUSED" "${PACKAGES[@]}"
echo "${PACKAGES[*]}" >"$ROOT/.ready"
echo "$NAME is in $ROOT ($(du -sh "$ROOT" | cut -f1))"
