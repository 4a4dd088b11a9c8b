#!/usr/bin/env bash
# start.sh DIR: OpenStack Swift with one replica and its S3 layer, on 127.0.0.1, all state under DIR.
#
# The process ids are in DIR/proxy.pid, DIR/account.pid, DIR/container.pid and DIR/object.pid.
#
#   SWIFT_VENV                    what install.sh made
#   S3_PORT                       the proxy's port; the next 3 are taken too
#   S3_ACCESS_KEY, S3_SECRET_KEY  the one user's credentials, the key of the form account:user
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BIN=$(cd "${SWIFT_VENV:-$HERE/../../../.venvs/swift}/bin" && pwd)
DIR=$1
PORT=${S3_PORT:-18080}
mkdir -p "$DIR"/{etc,log,cache,devices/d1}
DIR=$(cd "$DIR" && pwd)
ETC=$DIR/etc

COMMON="bind_ip = 127.0.0.1
swift_dir = $ETC
user = $(id -un)
workers = 0
mount_check = false
devices = $DIR/devices
recon_cache_path = $DIR/cache
fallocate_reserve = 0
log_level = WARNING
log_address = $DIR/log/none"

cat >"$ETC/swift.conf" <<CONF
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
CONF

ring() {
    "$BIN/python" "$BIN/swift-ring-builder" "$ETC/$1.builder" "${@:2}" >/dev/null
}

number=0
for kind in account container object; do
    number=$((number + 1))
    cat >"$ETC/$kind.conf" <<CONF
[DEFAULT]
bind_port = $((PORT + number))
$COMMON
[pipeline:main]
pipeline = $kind-server
[app:$kind-server]
use = egg:swift#$kind
replication_server = false
CONF
    ring "$kind" create 4 1 1
    ring "$kind" add "r1z1-127.0.0.1:$((PORT + number))/d1" 1
    ring "$kind" rebalance
done

cat >"$ETC/proxy.conf" <<CONF
[DEFAULT]
bind_port = $PORT
$COMMON
[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_${S3_ACCESS_KEY%%:*}_${S3_ACCESS_KEY#*:} = $S3_SECRET_KEY .admin
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
paste.filter_factory = cache_in_memory:filter_factory
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:slo]
use = egg:swift#slo
CONF

for kind in account container object proxy; do
    PYTHONPATH=$HERE PYTHONWARNINGS=ignore setsid "$BIN/python" "$BIN/swift-$kind-server" "$ETC/$kind.conf" \
        >>"$DIR/log/$kind.log" 2>&1 </dev/null &
    echo $! >"$DIR/$kind.pid"
done
