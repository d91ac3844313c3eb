"""Ceph from Debian's packages for scripts/bench: one monitor and three OSDs in a directory, on loopback.

Everything that concerns speed stays as the packages have it, but for:

- `rbd_cache = false`: writes are durable when they are answered, as in everything that stands beside it.
  (With librbd's cache and no flush, which is what fio does, they would be, too: it writes through until
  the first flush. This costs Ceph nothing and leaves no doubt.)
- no authentication (cephx), which Trefoil has not got either yet;
- `osd_crush_chooseleaf_type = 0`: the three copies are on three OSDs of this one host;
- no manager daemon: nothing in the data path needs it, and its processor time is saved.

BlueStore is on sparse files: direct I/O by libaio on the file system that Trefoil's devices are on. It takes
"hdd" or "ssd" defaults by what the kernel says of that disk (queue/rotational); the note says which.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import uuid

from bench_common import GIB, Failed, stop, wait_for

# What else it may need per OSD: RocksDB, its log, and room to breathe.
OSD_SPARE = 8 * GIB
OSDS = 3
POOL = "bench"
IMAGE = "bench"
# What Ceph's own calculator gives three OSDs with one pool of three copies.
PG_NUM = 128

CONF = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}/0
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file = {folder}/$name.pid
log_file = {folder}/$name.log
crash_dir = {folder}
osd_pool_default_size = 3
osd_pool_default_min_size = 2
osd_crush_chooseleaf_type = 0
rbd_cache = false
{options}
[mon]
mon_data = {folder}/mon
mon_initial_members = a
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[osd]
osd_data = {folder}/osd.$id
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = {osd_size}
"""


class Ceph:
    """A cluster with an image, until the end of the `with`."""

    def __init__(self, folder, volume_size, options):
        self.folder, self.volume_size, self.options = folder, volume_size, options
        self.conf = os.path.join(folder, "ceph.conf")
        self.daemons = {}
        self.note = ""

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        for program in ("ceph-mon", "ceph-osd", "ceph", "rbd", "monmaptool"):
            if not shutil.which(program):
                raise Failed(f"there is no {program}: apt-get install ceph-mon ceph-osd ceph-common")
        # Unix sockets have short names.
        if len(self.folder) > 80:
            raise Failed(f"{self.folder} is too long a path for Ceph's sockets: give another --dir")
        os.makedirs(os.path.join(self.folder, "mon"))
        fsid = str(uuid.uuid4())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for option in self.options:
            if not re.fullmatch(r"[a-z0-9_]+=[^\n]*", option):
                raise Failed(f"--ceph-option {option!r}: give KEY=VALUE")
        text = CONF.format(
            fsid=fsid, port=port, folder=self.folder, osd_size=self.volume_size + OSD_SPARE,
            options="\n".join(self.options),
        )
        with open(self.conf, "w") as out:
            out.write(text)

        monmap = os.path.join(self.folder, "monmap")
        self.call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", monmap)
        self.call("ceph-mon", "-c", self.conf, "--mkfs", "-i", "a", "--monmap", monmap)
        self.daemon("mon.a", "ceph-mon", "a")
        self.ready("mon.a", lambda: "quorum_names" in self.ceph("quorum_status"))
        for osd in map(str, range(OSDS)):
            os.makedirs(os.path.join(self.folder, f"osd.{osd}"))
            osd_id = str(uuid.uuid4())
            self.ceph("osd", "new", osd_id, osd)
            self.call("ceph-osd", "-c", self.conf, "-i", osd, "--mkfs", "--osd-uuid", osd_id)
            self.daemon(f"osd.{osd}", "ceph-osd", osd)
        self.ready(f"osd.{OSDS - 1}", lambda: f"{OSDS} up" in self.ceph("osd", "stat"))
        self.ceph("osd", "pool", "create", POOL, str(PG_NUM), str(PG_NUM), "replicated")
        self.ceph("osd", "pool", "application", "enable", POOL, "rbd")
        self.call("rbd", "-c", self.conf, "create", f"{POOL}/{IMAGE}", "--size", f"{self.volume_size}B")
        version = re.search(r"version (\S+)", self.call("ceph", "--version"))
        classes = " and ".join(json.loads(self.ceph("osd", "crush", "class", "ls", "-f", "json") or "[]"))
        self.note = (
            f"Ceph {version.group(1) if version else '?'}, {OSDS} OSDs (class {classes}) on files of the same file system, "
            f"{PG_NUM} PGs, fio's rbd engine, rbd_cache=false, no cephx, no manager"
            + "".join(f", {option}" for option in self.options)
        )

    def __exit__(self, *_):
        # OSDs first: a monitor that they cannot tell of their end holds them up.
        for name in sorted(self.daemons, reverse=True):
            stop(self.daemons[name])
        shutil.rmtree(self.folder, ignore_errors=True)

    def daemon(self, name, program, number):
        with open(self.log(name), "wb") as out:
            command = [program, "-c", self.conf, "-i", number, "--foreground"]
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def log(self, name):
        return os.path.join(self.folder, f"{name}.out")

    def ready(self, name, test):
        wait_for(name, 120, test, self.daemons[name], self.log(name))

    def ceph(self, *arguments):
        """Empty if nobody answers."""
        command = ["ceph", "-c", self.conf, "--connect-timeout", "20", *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout

    def call(self, *command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout

    def beside(self):
        """For `trefoil bench --beside`."""
        return {
            "name": "ceph",
            "fio": ["--ioengine=rbd", f"--pool={POOL}", f"--rbdname={IMAGE}", "--clientname=admin"],
            "environment": {"CEPH_CONF": self.conf},
            "processes": [{"name": name, "pid": daemon.pid} for name, daemon in self.daemons.items()],
            "note": self.note,
        }
