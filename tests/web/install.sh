#!/usr/bin/env bash
# install.sh [FOLDER]: unpacks Debian's headless Chromium with its libraries and a font below FOLDER; see ../debian.sh.
# 150 MB to fetch, 310 MB on disk, once.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${1:-$HERE/../../.venvs/chromium}
NAME=Chromium
TARGET=test-web
VERSION=150.0.7871.100-1~deb12u1
# Left out: the C library, because the machine's own is used (2.36 or newer), and drivers of graphics cards.
UNUSED='^(libc6|libllvm15|libgl1-mesa-dri|libz3-4|libicu72)_'

[ -e "$ROOT/.ready" ] && [ "$(cat "$ROOT/.ready")" = "$VERSION" ] && exit 0

source "$HERE/../debian.sh"
unpack_debian bookworm "$UNUSED" "chromium-headless-shell=$VERSION"
cat >"$ROOT/fonts.conf" <<CONF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>$ROOT/usr/share/fonts</dir><cachedir>$ROOT/fontcache</cachedir></fontconfig>
CONF
echo "$VERSION" >"$ROOT/.ready"
echo "$NAME is in $ROOT ($(du -sh "$ROOT" | cut -f1))"
