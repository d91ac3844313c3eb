"""What the benchmark's clusters share: sizes, starting and stopping processes by their ids."""

import subprocess
import time

MIB = 1 << 20
GIB = 1 << 30


class Failed(Exception):
    """Told to the user in one line."""


def say(text):
    print(text, flush=True)


def size(text):
    units = {"K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}
    text = text.upper().removesuffix("IB").removesuffix("B")
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def tail(log):
    with open(log, errors="replace") as text:
        return text.read()[-3000:]


def wait_for(name, seconds, ready, process, log):
    """Until `ready()`; fails with the end of the log if the process ends or it takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            why = f"has ended ({process.returncode})" if ended else f"was not ready after {seconds} s"
            raise Failed(f"{name} {why}:\n{tail(log)}")
        time.sleep(0.2)


def stop(process, seconds=30):
    """In order, and if that takes too long, not."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
