#!/usr/bin/env python3
"""How fast Trefoil is, beside the raw disk in the same run.

Separate processes (`trefoil up --processes`): a monitor, three storage nodes, a front end. A volume is
written through once, so that nothing reads holes. Then each job runs with fio over the unix socket, and
directly after it the same job on a plain file of the same file system, by io_uring with O_DIRECT, its
writes with O_DSYNC: Trefoil's writes are durable when they are answered, so the raw ones are, too.

CPU is utime + stime of all of Trefoil's processes, threads and reaped children included, divided by
the I/Os of the job. fio's own is not in it. Times depend on what else the machine does; look at `load`.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
GIB = 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")

# name: (rw, block size, depth, share of reads in a mix)
JOBS = {
    "randwrite-4k-qd1": ("randwrite", 4096, 1, None),
    "randread-4k-qd1": ("randread", 4096, 1, None),
    "randwrite-4k-qd32": ("randwrite", 4096, 32, None),
    "randread-4k-qd32": ("randread", 4096, 32, None),
    "randrw70-4k-qd16": ("randrw", 4096, 16, 70),
    "write-1m-qd8": ("write", MIB, 8, None),
    "read-1m-qd8": ("read", MIB, 8, None),
}


def die(text):
    sys.exit(f"bench: {text}")


def size(text):
    units = {"K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
    text = text.upper().removesuffix("IB").removesuffix("B")
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runtime", type=float, default=8, metavar="S", help="seconds per job (default 8)")
    parser.add_argument("--jobs", default=",".join(JOBS), help="which of: " + ", ".join(JOBS))
    parser.add_argument("--dir", help="where to put the data (default: a temporary directory)")
    parser.add_argument("--volume-size", type=size, default=2 * GIB, help="default 2GiB")
    parser.add_argument("--node-size", type=size, default=24 * GIB, help="of each of three nodes; default 24GiB, sparse")
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument("--no-raw", action="store_true", help="leave the plain file out")
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    parser.add_argument("--bin", default="target/release/trefoil", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.jobs = [job for job in options.jobs.split(",") if job]
    for job in options.jobs:
        if job not in JOBS:
            die(f"there is no job {job!r}; there are {', '.join(JOBS)}")
    return options


class Cluster:
    """`trefoil up --processes` in a directory, until the end of the `with`."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.socket = os.path.join(folder, "nbd.sock")
        self.up, self.processes = None, []

    def __enter__(self):
        data = os.path.join(self.folder, "data")
        command = [os.path.abspath(self.options.bin), "up", "--processes", "--dir", data, "--nodes", "3"]
        command += ["--node-size", str(self.options.node_size), "--volume", f"bench={self.options.volume_size}"]
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"127.0.0.1:{free.getsockname()[1]}"
        command += ["--listen", listen, "--socket", self.socket]
        log = open(os.path.join(self.folder, "up.log"), "wb")
        self.up = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
        try:
            for line in self.up.stdout:
                log.write(line)
                if line.startswith(b"ready: "):
                    break
            else:
                log.close()
                with open(log.name) as text:
                    die(f"trefoil did not become ready:\n{text.read()[-3000:]}")
            with open(os.path.join(data, "processes.json")) as text:
                self.processes = json.load(text)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.up.poll() is None:
            self.up.send_signal(signal.SIGTERM)
            try:
                self.up.wait(30)
            except subprocess.TimeoutExpired:
                self.up.kill()
                for process in self.processes:
                    try:
                        os.kill(process["pid"], signal.SIGKILL)
                    except ProcessLookupError:
                        pass

    def cpu(self):
        """Seconds of CPU so far, by process."""
        seconds = {"up": cpu_of(self.up.pid)}
        for process in self.processes:
            seconds[process["name"]] = cpu_of(process["pid"])
        return seconds

    def uri(self):
        return f"nbd+unix:///bench?socket={self.socket}"


def cpu_of(pid):
    with open(f"/proc/{pid}/stat") as text:
        # The name may hold blanks; the fields are counted from the bracket behind it.
        fields = text.read().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def fio(job, extra, seconds):
    rw, block, depth, mix = job
    command = ["fio", "--name=bench", f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", "--thread"]
    command += ["--norandommap", "--randrepeat=0", "--output-format=json", *extra]
    command += [f"--rwmixread={mix}"] if mix else []
    command += ["--time_based", f"--runtime={seconds}"] if seconds else []
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        die(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout[start:])["jobs"][0]
    if result["error"]:
        die(f"fio reports error {result['error']}: {' '.join(command)}")
    sides = {side: summary(result[side]) for side in ("read", "write") if result[side]["total_ios"]}
    ios = sum(side["ios"] for side in sides.values())
    return {
        "ios": ios,
        "iops": sum(side["iops"] for side in sides.values()),
        "mb_per_s": sum(side["mb_per_s"] for side in sides.values()),
        "mean_us": sum(side["mean_us"] * side["ios"] for side in sides.values()) / ios,
        "p99_us": max(side["p99_us"] for side in sides.values()),
        "max_us": max(side["max_us"] for side in sides.values()),
        **(sides if len(sides) > 1 else {}),
    }


def summary(side):
    return {
        "ios": side["total_ios"],
        "iops": side["iops"],
        "mb_per_s": side["bw_bytes"] / 1e6,
        "mean_us": side["clat_ns"]["mean"] / 1e3,
        "p99_us": side["clat_ns"]["percentile"]["99.000000"] / 1e3,
        "max_us": side["clat_ns"]["max"] / 1e3,
    }


def trefoil_run(cluster, job, seconds):
    before, start = cluster.cpu(), time.monotonic()
    result = fio(job, ["--ioengine=nbd", f"--uri={cluster.uri()}", f"--size={cluster.options.volume_size}"], seconds)
    elapsed, after = time.monotonic() - start, cluster.cpu()
    used = {name: after[name] - before[name] for name in after}
    result["cpu_us_per_io"] = sum(used.values()) * 1e6 / result["ios"]
    result["cpu_us_per_io_by_process"] = {name: round(s * 1e6 / result["ios"], 2) for name, s in used.items()}
    result["cpus_busy"] = sum(used.values()) / elapsed
    return result


def raw_run(path, volume_size, job, seconds):
    extra = ["--ioengine=io_uring", "--direct=1", f"--filename={path}", f"--size={volume_size}"]
    if "read" != job[0].removeprefix("rand"):
        extra.append("--sync=dsync")
    return fio(job, extra, seconds)


def show(rows, names):
    header = ["job", "IOPS", "MB/s", "mean us", "p99 us", "raw IOPS", "raw mean", "ratio", "CPU us/IO", *names]
    table = [header]
    for name, row in rows.items():
        ours, raw = row["trefoil"], row.get("raw")
        by = ours["cpu_us_per_io_by_process"]
        table.append(
            [name]
            + [f"{ours['iops']:.0f}", f"{ours['mb_per_s']:.1f}", f"{ours['mean_us']:.0f}", f"{ours['p99_us']:.0f}"]
            + ([f"{raw['iops']:.0f}", f"{raw['mean_us']:.0f}", f"{row['ratio']:.2f}"] if raw else ["-"] * 3)
            + [f"{ours['cpu_us_per_io']:.1f}"]
            + [f"{by[process]:.1f}" for process in names]
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("  ".join(cells))


def machine():
    model = "unknown"
    with open("/proc/cpuinfo") as text:
        for line in text:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cpus": os.cpu_count(),
        "cpu": model,
        "kernel": platform.release(),
        "load": os.getloadavg(),
        "commit": commit,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent = options.dir or tempfile.gettempdir()
    os.makedirs(parent, exist_ok=True)
    # Three copies, the plain file, and what the jobs overwrite (nothing is cleaned away yet).
    wanted = 4 * options.volume_size + int(len(options.jobs) * options.runtime * 3 * 150 * MIB)
    free = shutil.disk_usage(parent).free
    if free < wanted:
        die(f"{parent} has {free / GIB:.0f} GiB free and this may need {wanted / GIB:.0f}: give --dir or a shorter --runtime")
    folder = tempfile.mkdtemp(prefix="trefoil-bench-", dir=parent)
    about = machine()
    print(f"{about['cpus']} CPUs ({about['cpu']}), Linux {about['kernel']}, load {about['load'][0]:.1f}, {folder}")
    rows = {}
    try:
        raw_file = os.path.join(folder, "raw")
        if not options.no_raw:
            raw_run(raw_file, options.volume_size, ("write", MIB, 8, None), 0)
        with Cluster(options, folder) as cluster:
            fill = trefoil_run(cluster, ("write", MIB, 8, None), 0)
            print(f"written through: {fill['mb_per_s']:.0f} MB/s")
            for name in options.jobs:
                row = rows[name] = {"trefoil": trefoil_run(cluster, JOBS[name], options.runtime)}
                if not options.no_raw:
                    row["raw"] = raw_run(raw_file, options.volume_size, JOBS[name], options.runtime)
                    row["ratio"] = row["trefoil"]["iops"] / row["raw"]["iops"]
            names = list(cluster.cpu())
        show(rows, names)
        about["load_at_end"] = os.getloadavg()
        report = {"machine": about, "runtime_s": options.runtime, "written_through": fill, "jobs": rows}
        if options.json:
            with open(options.json, "w") as out:
                json.dump(report, out, indent=1)
                out.write("\n")
            print(f"all figures: {options.json}")
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
