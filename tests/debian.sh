# Unpacks packages of Debian below a folder. Sourced by the install.sh of what tests take from Debian.
#
# Packages come from Debian by apt-get, which checks the archive's signature. Nothing of the machine's own is touched: no
# package is installed, no maintainer's script runs, no root is needed.
#
#   DEBIAN_MIRROR  where from; by default what the machine's own apt sources name, else deb.debian.org
#
# Folders that no program needs are left out; a script that needs some of them sets LEFT_OUT.

LEFT_OUT=('usr/share/doc*' 'usr/share/man*' 'usr/share/locale*' 'dev/*')

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "make $TARGET: $NAME could not be installed: $1" >&2
    exit 1
}

# unpack_debian SUITE UNUSED PACKAGE...: into $ROOT, for messages that name $NAME and the make target $TARGET. Packages
# whose files match the expression UNUSED are left out.
unpack_debian() {
    local suite=$1 unused=$2 tool mirror apt folder package
    shift 2
    [ "$(uname -m)" = x86_64 ] || fail "its packages are taken for x86_64, and this machine is $(uname -m)."
    for tool in apt-get dpkg-deb tar; do
        command -v "$tool" >/dev/null || fail "$tool is not there. It needs Debian, or a system like it."
    done
    [ -r "$KEYRING" ] || fail "$KEYRING is not there: install the package debian-archive-keyring."

    mirror=${DEBIAN_MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        grep -v '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1 | tr -d ' ' || true)}
    mirror=${mirror:-http://deb.debian.org/debian}

    rm -rf "$ROOT"
    mkdir -p "$ROOT"
    ROOT=$(cd "$ROOT" && pwd)
    apt=$ROOT/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
    touch "$apt/status"
    echo "deb [signed-by=$KEYRING] $mirror $suite main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
Dir::Etc::preferencesparts "$apt/parts";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Update::Error-Mode "any";
Debug::NoLocking "1";
CONF
    # apt's own user may not be able to read this folder; without root there is no such user to begin with.
    [ "$(id -u)" = 0 ] && echo 'APT::Sandbox::User "root";' >>"$apt/apt.conf"
    export APT_CONFIG=$apt/apt.conf

    echo "fetching $NAME from $mirror ($suite) ..."
    apt-get update -qq || fail "$mirror cannot be reached. Check the network, or name a mirror with DEBIAN_MIRROR."
    apt-get install -qq -y --download-only --no-install-recommends "$@" >"$apt/log" ||
        fail "its packages could not be fetched from $mirror; the log is $apt/log"

    mkdir -p "$ROOT"/usr/{bin,lib,lib64,sbin}
    for folder in bin lib lib64 sbin; do
        ln -s "usr/$folder" "$ROOT/$folder"
    done
    for package in "$apt"/cache/archives/*.deb; do
        [[ -n "$unused" && $(basename "$package") =~ $unused ]] && continue
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$ROOT" --keep-directory-symlink --no-same-owner \
            "${LEFT_OUT[@]/#/--exclude=./}"
    done
    rm -rf "$apt"
}
