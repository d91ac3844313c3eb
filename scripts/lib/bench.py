#!/usr/bin/env python3
"""How fast Trefoil is, beside the raw disk and, with --peer, another system, in turns, in one run.

Starts separate processes (`trefoil up --processes`: a monitor, three storage nodes, a front end) in a
temporary directory, and runs `trefoil bench` on them, which measures and reports: each job of the table
with fio over the unix socket, directly after it the same job on a plain file of the same file system, by
io_uring with O_DIRECT, its writes with O_DSYNC, and then on the peer. `trefoil bench --help` says what
the columns are. Times depend on what else the machine does; processor time and ratios less so.

Ceph (bench_ceph.py) is Debian's packages as they come: one monitor, three OSDs with BlueStore on sparse
files of the same file system, three copies, an RBD image through fio's rbd engine. librbd's processor
time is therefore in FIO CPU, not in CPU; Trefoil's front end is in CPU.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from bench_ceph import Ceph
from bench_common import GIB, MIB, Failed, say, size, stop, wait_for


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=["ceph"], help="measure this beside it; its packages are installed")
    parser.add_argument(
        "--ceph-option", action="append", default=[], metavar="KEY=VALUE",
        help="set this in ceph.conf for all daemons; may be given several times",
    )
    parser.add_argument("--runtime", type=float, default=8, metavar="S", help="seconds per job (default 8)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="rounds, of which the median counts (default 1)")
    parser.add_argument("--jobs", metavar="NAMES", help="which of those that `trefoil bench --help` lists, with commas")
    parser.add_argument("--dir", help="where to put the data (default: a temporary directory)")
    parser.add_argument("--volume-size", type=size, default=2 * GIB, help="default 2GiB")
    parser.add_argument("--node-size", type=size, default=24 * GIB, help="of each of three nodes; default 24GiB, sparse")
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument("--html", metavar="FILE", help="write a page with plots there")
    parser.add_argument("--no-raw", action="store_true", help="leave the plain file out")
    parser.add_argument("--floor", action="store_true", help="measure the least that it can cost here, too")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    parser.add_argument("--bin", default="target/release/trefoil", help=argparse.SUPPRESS)
    return parser.parse_args()


class Trefoil:
    """`trefoil up --processes` in a directory, until the end of the `with`."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.data = os.path.join(folder, "data")
        self.up = None

    def __enter__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        command = [os.path.abspath(self.options.bin), "up", "--processes", "--dir", self.data, "--nodes", "3"]
        command += ["--node-size", str(self.options.node_size), "--listen", listen]
        command += ["--volume", f"bench={self.options.volume_size}"]
        log = os.path.join(self.folder, "up.log")
        with open(log, "wb") as out:
            self.up = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            wait_for("trefoil", 60, lambda: b"\nready: " in open(log, "rb").read(), self.up, log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # Its children end with it, even if it has to be killed.
        stop(self.up)


def bench(options, folder, beside):
    command = [os.path.abspath(options.bin), "bench", "cluster", "--dir", os.path.join(folder, "data"), "--volume", "bench"]
    command += ["--size", str(options.volume_size), "--runtime", str(options.runtime), "--rounds", str(options.rounds)]
    for name in ("jobs", "json", "html"):
        if getattr(options, name):
            command += [f"--{name}", getattr(options, name)]
    if not options.no_raw:
        command += ["--raw", folder] + ["--floor"] * options.floor
    for system in beside:
        file = os.path.join(folder, f"{system['name']}.json")
        with open(file, "w") as out:
            json.dump(system, out)
        command += ["--beside", file]
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        if running.wait() != 0:
            raise Failed("`trefoil bench` failed")
    finally:
        stop(running)


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent = options.dir or tempfile.gettempdir()
    os.makedirs(parent, exist_ok=True)
    copies = 1 + 3 * (2 if options.peer else 1)
    # Every copy, the plain file, and what logs hold before they are cleaned.
    jobs = len(options.jobs.split(",")) if options.jobs else 7
    wanted = copies * options.volume_size + int(jobs * options.rounds * options.runtime * 200 * MIB)
    wanted = min(wanted, (copies - 2) * options.node_size)
    wanted += GIB * options.floor
    free = shutil.disk_usage(parent).free
    if free < wanted:
        raise Failed(
            f"{parent} has {free / GIB:.0f} GiB free and this may need {wanted / GIB:.0f}: give --dir, or a smaller "
            "--volume-size, --node-size, --runtime or --rounds"
        )
    folder = tempfile.mkdtemp(prefix="trefoil-bench-", dir=parent)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    say(f"commit {commit}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {folder}")
    try:
        with Trefoil(options, folder):
            if not options.peer:
                return bench(options, folder, [])
            with Ceph(os.path.join(folder, "ceph"), options.volume_size, options.ceph_option) as ceph:
                say(f"ceph: {ceph.note}")
                bench(options, folder, [ceph.beside()])
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as why:
        sys.exit(f"bench: {why}")
    except KeyboardInterrupt:
        sys.exit(130)
