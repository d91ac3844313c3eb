# On a bare Debian 12 with systemd, sourced by the harness's guest: everything that scripts/install and the
# units promise on one host. What runs it: tests/system/deploy.rs.

cd /opt/trefoil || exit 1
NODES="trefoil-storage-node@0 trefoil-storage-node@1 trefoil-storage-node@2"
UNITS_ALL="trefoil-monitor@0 $NODES trefoil-nbd@0"
AT="--monitor 127.0.0.1:10800"

prop() { systemctl show -p "$2" --value "$1"; }
until_true() { # SECONDS COMMAND...
    local n=$(($1 * 10)); shift
    until "$@" >/dev/null 2>&1; do n=$((n - 1)); [ $n -gt 0 ] || return 1; sleep 0.1; done
}
told() { # TEXT COMMAND...: it fails, and says that
    local text=$1 out; shift
    if out=$("$@" 2>&1); then echo "it did not fail: $out"; return 1; fi
    grep -q -- "$text" <<<"$out" || { echo "$out"; return 1; }
}
mode() { [ "$(stat -c '%a %U %G' "$1")" = "$2" ] || { stat -c '%n %a %U %G' "$1"; return 1; }; }

installs() { scripts/install --bin /opt/trefoil/trefoil; }
installs_again() { local out; out=$(installs) || return 1; ! grep '^wrote' <<<"$out"; }
modes() {
    mode /etc/trefoil "750 root trefoil" && mode /etc/trefoil/nbd "750 root trefoil" &&
        mode /var/lib/trefoil "750 trefoil trefoil" && mode /usr/local/bin/trefoil "755 root root"
}
makes_configuration() {
    trefoil init --config-dir /etc/trefoil --cluster-name one --size 1G --memory 128M \
        --device /srv/trefoil/0 --device /srv/trefoil/1 --device /srv/trefoil/2
}
dropins() {
    chmod 600 /etc/trefoil/nbd/0.toml # As from a root with a strict umask.
    scripts/install --devices
    mode /etc/trefoil/nbd/0.toml "640 root trefoil" || return 1
    grep -q '^MemoryMax=268435456$' "/etc/systemd/system/trefoil-storage-node@1.service.d/10-device.conf" &&
        mode /srv/trefoil "750 trefoil trefoil"
}
block_device_dropin() {
    sed 's,^device = .*,device = "/dev/loop-of-nobody",; /^size/d; /^format_if_missing/d' \
        /etc/trefoil/storage-node/0.toml >/etc/trefoil/storage-node/9.toml
    scripts/install --devices >/dev/null
    local file=/etc/systemd/system/trefoil-storage-node@9.service.d/10-device.conf
    grep -qx 'DeviceAllow=/dev/loop-of-nobody rw' $file && grep -qx 'SupplementaryGroups=disk' $file || return 1
    # Of a node that is gone nothing stays.
    rm /etc/trefoil/storage-node/9.toml
    scripts/install --devices >/dev/null && [ ! -e $file ]
}
doctor() { # Nothing worse than a warning.
    trefoil doctor; [ $? -le 1 ]
}
verified() {
    local out; systemctl daemon-reload
    # shellcheck disable=SC2086
    out=$(systemd-analyze verify $(printf '%s.service ' $UNITS_ALL) 2>&1); [ -z "$out" ] || { echo "$out"; return 1; }
}
starts() { # Type=notify: comes back when it serves.
    systemctl enable -q --now "$1" && systemctl is-active -q "$1" && [[ $(prop "$1" StatusText) == "serving on "* ]]
}
pool() { trefoil $AT status | grep -q '32 of 32 active'; }
greeting() { [ "$(head -c 8 </dev/tcp/127.0.0.1/10809)" = NBDMAGIC ]; }
exposure() {
    local level; level=$(systemd-analyze security --no-pager "$1" 2>&1 | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\) .*/\1/p')
    echo "$1: $level"; awk -v l="$level" 'BEGIN { exit !(l != "" && l <= 2.0) }'
}
as_a_user() {
    local unit
    for unit in $UNITS_ALL; do
        [ "$(stat -c %U "/proc/$(prop "$unit" MainPID)")" = trefoil ] || { echo "$unit is not trefoil's"; return 1; }
    done
}
limits() {
    local pid; pid=$(prop trefoil-storage-node@0 MainPID)
    grep -q '^Max open files *16384 *16384' "/proc/$pid/limits" || { cat "/proc/$pid/limits"; return 1; }
}
with_io_uring() {
    journalctl -o cat -u trefoil-storage-node@0 >/tmp/node.log
    ! grep -i 'io_uring' /tmp/node.log && ls -l "/proc/$(prop trefoil-storage-node@0 MainPID)/fd" | grep -q 'io_uring'
}
comes_back() { # UNIT SIGNAL SECONDS [WORD]: after the signal, with another process
    local unit=$1 pid was; pid=$(prop "$unit" MainPID) was=$(prop "$unit" NRestarts)
    kill "-$2" "$pid"
    until_true "$3" is_back "$unit" "$pid" "$was" || { systemctl status --no-pager "$unit"; return 1; }
    [ -z "${4:-}" ] || until_true 10 logged "$unit" "$4"
}
logged() { journalctl -o cat -u "$1" | grep -q -- "$2"; }
is_back() {
    systemctl is-active -q "$1" && [ "$(prop "$1" MainPID)" != "$2" ] && [ "$(prop "$1" MainPID)" != 0 ] &&
        [ "$(prop "$1" NRestarts)" -gt "$3" ]
}
watchdog() { # A stopped process feeds no watchdog; neither does one whose loop hangs (src/notify.rs tests that).
    mkdir -p /run/systemd/system/trefoil-storage-node@1.service.d
    printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/trefoil-storage-node@1.service.d/99-test.conf
    systemctl daemon-reload && systemctl restart trefoil-storage-node@1 || return 1
    # With a loop that turns it stays.
    local pid; pid=$(prop trefoil-storage-node@1 MainPID); sleep 7
    [ "$(prop trefoil-storage-node@1 MainPID)" = "$pid" ] || { echo "killed although it was well"; return 1; }
    comes_back trefoil-storage-node@1 STOP 30 'Watchdog timeout'
}
gives_up_on_wrong_configuration() {
    cp -p /etc/trefoil/nbd/0.toml /etc/trefoil/nbd/1.toml
    echo 'no_such_key = 1' >>/etc/trefoil/nbd/1.toml
    systemctl start trefoil-nbd@1 2>/dev/null && { echo "it starts"; return 1; }
    # Three times RestartSec=.
    sleep 1.5
    rm /etc/trefoil/nbd/1.toml
    [ "$(prop trefoil-nbd@1 NRestarts) $(prop trefoil-nbd@1 ActiveState)" = "0 failed" ] &&
        until_true 10 logged trefoil-nbd@1 'unknown field `no_such_key`' && return
    systemctl status --no-pager trefoil-nbd@1
    return 1
}
enforced() { # What the drop-in of a block device says, for the disk that this guest has.
    # There is no udev here that would give it to its group.
    chgrp disk /dev/vda && chmod 660 /dev/vda || return 1
    local open=(systemd-run -q --wait -p User=trefoil -p DevicePolicy=closed -p SupplementaryGroups=disk)
    "${open[@]}" -p "DeviceAllow=/dev/vda rw" dd if=/dev/vda of=/dev/null bs=4096 count=1 || return 1
    ! "${open[@]}" dd if=/dev/vda of=/dev/null bs=4096 count=1
}
bounded() { # MemoryMax= of the drop-in and MemorySwapMax= of the unit, as the kernel has them.
    local group; group=/sys/fs/cgroup$(prop trefoil-storage-node@0 ControlGroup)
    [ "$(cat "$group/memory.max") $(cat "$group/memory.swap.max")" = "268435456 0" ]
}
upgrade() {
    local before after out; before=$(cat /etc/trefoil/*/*.toml | sha256sum)
    cp /opt/trefoil/trefoil /opt/trefoil/new && echo >>/opt/trefoil/new
    out=$(scripts/install --bin /opt/trefoil/new) || return 1
    after=$(cat /etc/trefoil/*/*.toml | sha256sum)
    [ "$before" = "$after" ] || { echo "the configuration was touched"; return 1; }
    grep -q 'trefoil-storage-node@2.service' <<<"$out" || { echo "not told what is old: $out"; return 1; }
}
restart_nodes() {
    local unit
    scripts/install --restart-nodes || return 1
    for unit in $NODES; do
        cmp -s "/proc/$(prop "$unit" MainPID)/exe" /opt/trefoil/new || { echo "$unit is the old one"; return 1; }
    done
}
stops() { systemctl stop $UNITS_ALL; local unit; for unit in $UNITS_ALL; do
    [ "$(prop "$unit" Result) $(prop "$unit" ActiveState)" = "success inactive" ] || { echo "$unit"; return 1; }; done; }
uninstalls() {
    scripts/install --uninstall || return 1
    [ ! -e /usr/local/bin/trefoil ] && [ ! -e /usr/local/lib/systemd/system/trefoil-nbd@.service ] &&
        [ -e /etc/trefoil/monitor/0.toml ] && [ -e /srv/trefoil/0 ] && [ -d /var/lib/trefoil/monitor/0 ]
}

check "install: puts everything in place" installs
check "install: a second time changes nothing" installs_again
check "install: directories have their modes" modes
check "init: makes a configuration" makes_configuration
check "init: refuses to overwrite it" told 'nothing was written' makes_configuration
check "install: drop-ins allow what the configuration names" dropins
check "install: a block device is the only one of its unit" block_device_dropin
check "doctor: finds no error here" doctor
check "units: systemd-analyze verify finds nothing" verified
for unit in $UNITS_ALL; do check "$unit: is ready when it serves" starts "$unit"; done
check "a pool is made by itself" until_true 20 pool
check "a volume can be made" trefoil $AT volume create disk0 256M
check "the front end greets" greeting
check "daemons run as the user trefoil" as_a_user
check "the limit on descriptors is that of the unit" limits
check "io_uring is allowed and used" with_io_uring
if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
    check "memory is bounded and never swapped" bounded
    check "one device may be opened and no other" enforced
else
    skip "memory and devices: this container has no cgroup v2 (systemd.sh --backend vm has)"
fi
for unit in trefoil-monitor@0 trefoil-storage-node@0 trefoil-nbd@0; do
    check "exposure of $unit is at most 2.0" exposure "$unit"
done
check "a storage node comes back after kill -9" comes_back trefoil-storage-node@0 KILL 15
check "a monitor comes back after kill -9" comes_back trefoil-monitor@0 KILL 15
check "a front end comes back after kill -9" comes_back trefoil-nbd@0 KILL 15
check "a storage node that hangs is killed by the watchdog and comes back" watchdog
check "a wrong configuration is not tried again and again" gives_up_on_wrong_configuration
check "upgrade: the configuration stays, what runs the old binary is told" upgrade
check "upgrade: nodes are restarted one by one, each when all is whole" restart_nodes
check "uninstall: refuses while daemons run" told 'stop them first' scripts/install --uninstall
check "all of it stops in order" stops
check "uninstall: takes away what install put there, and nothing else" uninstalls
