#!/usr/bin/env bash
# install.sh [FOLDER]: unpacks Debian's headless Chromium with its libraries and a font below FOLDER.
#
# Packages come from Debian by apt-get, which checks the archive's signature. Nothing of the machine's own is touched: no
# package is installed, no maintainer's script runs, no root is needed. 150 MB to fetch, 310 MB on disk, once.
#
#   DEBIAN_MIRROR  where from; by default what the machine's own apt sources name, else deb.debian.org
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${1:-$HERE/../../.venvs/chromium}
SUITE=bookworm
VERSION=150.0.7871.100-1~deb12u1
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# Left out: the C library, because the machine's own is used (2.36 or newer), and drivers of graphics cards.
UNUSED='^(libc6|libllvm15|libgl1-mesa-dri|libz3-4|libicu72)_'

[ -e "$ROOT/.ready" ] && [ "$(cat "$ROOT/.ready")" = "$VERSION" ] && exit 0

fail() {
    echo "make test-web: Chromium could not be installed: $1" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] || fail "its packages are taken for x86_64, and this machine is $(uname -m)."
for tool in apt-get dpkg-deb tar; do
    command -v "$tool" >/dev/null || fail "$tool is not there. It needs Debian, or a system like it."
done
[ -r "$KEYRING" ] || fail "$KEYRING is not there: install the package debian-archive-keyring."

MIRROR=${DEBIAN_MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
    grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ' || true)}
MIRROR=${MIRROR:-http://deb.debian.org/debian}

rm -rf "$ROOT"
mkdir -p "$ROOT"
ROOT=$(cd "$ROOT" && pwd)
APT=$ROOT/apt
mkdir -p "$APT/lists/partial" "$APT/cache/archives/partial" "$APT/parts"
touch "$APT/status"
echo "deb [signed-by=$KEYRING] $MIRROR $SUITE main" >"$APT/sources.list"
cat >"$APT/apt.conf" <<CONF
Dir::Etc::sourcelist "$APT/sources.list";
Dir::Etc::sourceparts "$APT/parts";
Dir::Etc::preferencesparts "$APT/parts";
Dir::State::lists "$APT/lists";
Dir::State::status "$APT/status";
Dir::Cache "$APT/cache";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
Debug::NoLocking "1";
CONF
# apt's own user may not be able to read this folder; without root there is no such user to begin with.
[ "$(id -u)" = 0 ] && echo 'APT::Sandbox::User "root";' >>"$APT/apt.conf"
export APT_CONFIG=$APT/apt.conf

echo "fetching Chromium from $MIRROR ($SUITE) ..."
apt-get update -qq || fail "$MIRROR cannot be reached. Check the network, or name a mirror with DEBIAN_MIRROR."
apt-get install -qq -y --download-only --no-install-recommends "chromium-headless-shell=$VERSION" >"$APT/log" ||
    fail "its packages could not be fetched from $MIRROR; the log is $APT/log"

mkdir -p "$ROOT"/usr/{bin,lib,lib64,sbin}
for folder in bin lib lib64 sbin; do
    ln -s "usr/$folder" "$ROOT/$folder"
done
for package in "$APT"/cache/archives/*.deb; do
    [[ $(basename "$package") =~ $UNUSED ]] && continue
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$ROOT" --keep-directory-symlink --no-same-owner \
        --exclude='./usr/share/doc*' --exclude='./usr/share/man*' --exclude='./usr/share/locale*' --exclude='./dev/*'
done
cat >"$ROOT/fonts.conf" <<CONF
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>$ROOT/usr/share/fonts</dir><cachedir>$ROOT/fontcache</cachedir></fontconfig>
CONF
rm -rf "$APT"
echo "$VERSION" >"$ROOT/.ready"
echo "Chromium is in $ROOT ($(du -sh "$ROOT" | cut -f1))"
