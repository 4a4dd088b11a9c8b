#!/usr/bin/env bash
# install.sh [FOLDER]: unpacks Ceph (monitor, object daemon, S3 gateway) with its own C library below FOLDER; see
# ../../debian.sh. 150 MB to fetch, 500 MB on disk, once.
#
#   DEBIAN_SUITE   which release to take Ceph from: forky (Ceph 20.2), trixie (18.2)
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=${1:-$HERE/../../../.venvs/ceph}
NAME=Ceph
TARGET=test-s3

[ -e "$ROOT/.ready" ] && exit 0

source "$HERE/../../debian.sh"
unpack_debian "${DEBIAN_SUITE:-forky}" "" ceph-mon ceph-osd radosgw
touch "$ROOT/.ready"
echo "$NAME is in $ROOT ($(du -sh "$ROOT" | cut -f1))"
