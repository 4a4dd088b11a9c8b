#!/usr/bin/env bash
# start.sh DIR [gateway]: Ceph with one monitor, one object daemon and its S3 gateway, on 127.0.0.1, all state under DIR.
#
# A DIR that is there already is started again on its data; with `gateway`, only the gateway is. The process ids are in
# DIR/mon.pid, DIR/osd.pid and DIR/gateway.pid. No systemd, no root, no file outside DIR.
#
#   CEPH_ROOT                     what install.sh unpacked
#   S3_PORT                       the gateway's port; the next 40 are taken too
#   S3_ACCESS_KEY, S3_SECRET_KEY  the credentials of the user `tests`; `limited` has the same secret
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "${CEPH_ROOT:-$HERE/../../../.venvs/ceph}" && pwd)
DIR=$1
PORT=${S3_PORT:-18070}
mkdir -p "$DIR/log" "$DIR/run"
DIR=$(cd "$DIR" && pwd)
[ ${#DIR} -lt 80 ] || { echo "$DIR is too long: a path of a unix socket must fit into 108 bytes" >&2; exit 1; }
CONF=$DIR/ceph.conf
export CEPH_ARGS=""

# Everything runs with the C library that it was built for, not the machine's.
LIB=$ROOT/usr/lib/x86_64-linux-gnu
LOADER=("$LIB/ld-linux-x86-64.so.2" --library-path "$LIB:$LIB/ceph")

run() { # a program of Ceph's, to its end
    local program=$1
    shift
    "${LOADER[@]}" "$ROOT/usr/bin/$program" "$@"
}

daemon() { # name of the pid file, program, arguments
    local name=$1 program=$2
    shift 2
    setsid "${LOADER[@]}" "$ROOT/usr/bin/$program" -c "$CONF" "$@" -f >>"$DIR/log/stdout.log" 2>&1 </dev/null &
    echo $! >"$DIR/$name.pid"
}

ceph() { # the `ceph` command is a Python script
    local python
    python=$(ls "$ROOT"/usr/bin/python3.[0-9]* | head -1)
    PYTHONDONTWRITEBYTECODE=1 PYTHONHOME=$ROOT/usr PYTHONPATH=$ROOT/usr/lib/python3/dist-packages \
        timeout 60 "${LOADER[@]}" "$python" "$ROOT/usr/bin/ceph" -c "$CONF" "$@"
}

osd_is_active() {
    python3 - "$DIR/run/osd.0.asok" 2>/dev/null <<'PYTHON'
import json, socket, struct, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect(sys.argv[1])
asked.sendall(b'{"prefix": "status"}\0')
length = struct.unpack(">I", asked.recv(4))[0]
sys.exit(json.loads(asked.recv(length))["state"] != "active")
PYTHON
}

configure() {
    cat >"$CONF" <<CONF
[global]
fsid = $1
mon_initial_members = a
mon_host = [v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = $((PORT + 10))
ms_bind_port_max = $((PORT + 40))
run_dir = $DIR/run
admin_socket = $DIR/run/\$name.asok
log_file = $DIR/log/\$name.log
mon_cluster_log_file = $DIR/log/cluster.log
crash_dir = $DIR/log
keyring = $DIR/keyring
erasure_code_dir = $LIB/ceph/erasure-code
plugin_dir = $LIB/ceph
osd_class_dir = $LIB/rados-classes
rgw_mime_types_file = /dev/null
# one copy of everything, on one daemon
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_max_pg_per_osd = 1000
# a disk that is rather full is no reason to stop
mon_data_avail_crit = 1
mon_data_avail_warn = 2
mon_osd_full_ratio = 0.97
osd_failsafe_full_ratio = 0.98
auth_allow_insecure_global_id_reclaim = false
mon_warn_on_insecure_global_id_reclaim_allowed = false
[mon]
mon_data = $DIR/mon
paxos_propose_interval = 0.02
[osd]
osd_data = $DIR/osd
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = 21474836480
bluestore_block_db_create = false
bluestore_block_wal_create = false
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 2
osd_scrub_load_threshold = 0.01
[client]
rgw_frontends = beast endpoint=127.0.0.1:$PORT tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_run_sync_thread = false
rgw_override_bucket_index_max_shards = 1
rgw_num_rados_handles = 1
rgw_data = $DIR/run
CONF
}

create() {
    local fsid keyring=$DIR/keyring
    fsid=$(cat /proc/sys/kernel/random/uuid)
    cat /proc/sys/kernel/random/uuid >"$DIR/osd.uuid"
    rm -rf "$DIR/mon" "$DIR/osd"
    mkdir -p "$DIR/mon" "$DIR/osd"
    configure "$fsid"
    run ceph-authtool --create-keyring "$keyring" >/dev/null
    chmod 600 "$keyring"
    run ceph-authtool "$keyring" --gen-key -n mon. --cap mon 'allow *'
    run ceph-authtool "$keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    run ceph-authtool "$keyring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
    run ceph-authtool "$keyring" --gen-key -n client.rgw --cap mon 'allow rw' --cap osd 'allow rwx'
    run monmaptool --create --clobber --fsid "$fsid" \
        --addv a "[v2:127.0.0.1:$((PORT + 1)),v1:127.0.0.1:$((PORT + 2))]" "$DIR/monmap" >/dev/null
    run ceph-mon -c "$CONF" -i a --mkfs --monmap "$DIR/monmap" --keyring "$keyring" >>"$DIR/log/create.log" 2>&1
}

user() { # name, access key
    run radosgw-admin -c "$CONF" user create --uid="$1" --display-name="$1" \
        --access-key="$2" --secret-key="$S3_SECRET_KEY" >/dev/null 2>>"$DIR/log/create.log"
}

if [ "${2:-}" = gateway ]; then
    daemon gateway radosgw -n client.rgw
    exit 0
fi

fresh=
[ -e "$DIR/ready" ] || { fresh=yes; create; }
daemon mon ceph-mon -i a
if [ -n "$fresh" ]; then
    ceph osd new "$(cat "$DIR/osd.uuid")" 0 >/dev/null 2>>"$DIR/log/create.log"
    run ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$(cat "$DIR/osd.uuid")" >>"$DIR/log/create.log" 2>&1
fi
daemon osd ceph-osd -i 0
for _ in $(seq 300); do # a gateway that starts before the daemon has announced itself waits for seconds
    osd_is_active && break
    sleep 0.1
done
if [ -n "$fresh" ]; then
    user tests "$S3_ACCESS_KEY"
    user limited limited # who may do what a bucket's policy says, and no more
    touch "$DIR/ready"
fi
daemon gateway radosgw -n client.rgw
