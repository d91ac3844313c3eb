#!/usr/bin/env bash
# Linux guests on volumes of a real cluster: QEMU's NBD client and virtio-blk, and the kernel's nbd driver
# with nbd-client. Uses the scripts in ../shared/harness, which are not a part of this repository.
# usage: guests.sh TREFOIL_BINARY
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/lib/common.sh
BINARY=$(realpath "$1")
HARNESS=$PWD/../shared/harness
[ -d "$HARNESS" ] || { say "SKIP: $HARNESS is not there"; exit 0; }
[ "$(id -u)" = 0 ] || { say "SKIP: the guests need root"; exit 0; }

DIR=$(mktemp -d "${TMPDIR:-/tmp}/trefoil-guests-XXXXXX")
UP=
finish() {
    if [ -n "$UP" ]; then
        kill -TERM "$UP" 2>/dev/null || true
        wait "$UP" 2>/dev/null || true
    fi
    rm -rf "$DIR"
}
trap finish EXIT

PORT=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
"$BINARY" up --processes --dir "$DIR/data" --node-size 24GiB --volume disk0=1GiB --volume disk1=1GiB \
    --listen 127.0.0.1:$PORT --socket "$DIR/nbd.sock" >"$DIR/out" 2>"$DIR/err" </dev/null &
UP=$!
for _ in $(seq 300); do
    grep -q '^ready: ' "$DIR/out" && break
    kill -0 "$UP" || { cat "$DIR/err"; die "trefoil ended before it was ready"; }
    sleep 0.2
done
grep -q '^ready: ' "$DIR/out" || { cat "$DIR/err"; die "trefoil did not become ready"; }
failed=0
"$HARNESS/vm-qemu-nbd.sh" --unix "$DIR/nbd.sock" --export disk0 --tests 'raw fs' || failed=1
"$HARNESS/vm-nbd-client.sh" --server "127.0.0.1:$PORT" --export disk1 --connections 4 || failed=1
exit $failed
