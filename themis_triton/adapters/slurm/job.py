#!/usr/bin/env python3
"""The job's own program: runs tritonserver on free ports of its node, and writes them where the sidecar reads them.

Slurm copies this one file to the node and runs it with the path of the job's file as its argument. It needs Python 3.6 and nothing else.
"""

import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

ATTEMPTS = 4
POLL_S = 0.05
PORT_TAKEN = b"already in use"
ENDING = []  # type: list[bool]
SERVERS = []  # type: list[subprocess.Popen[bytes]]
LOG_LINE = re.compile(rb"^(?:[IWE]\d{4} |\d{4}-\d\d-\d\dT\S+ [IWE] )", re.MULTILINE)
"""Triton's two log formats: a server that writes its log has copied its arguments."""
READ_BYTES = 1 << 16
# Of /proc/PID/stat, counted after the name of the program: where the arguments begin and end in the process's memory.
ARG_START, ARG_END = 45, 46


def main(job_file: str) -> int:
    """Run the server; the exit code is its own."""
    with open(job_file, encoding="utf-8") as file:  # noqa: PTH123 - Python 3.6
        job = json.load(file)
    signal.signal(signal.SIGTERM, end)
    remove_shared_memory(job["shared_memory"])
    code = 1
    try:
        for _ in range(ATTEMPTS):
            start = log_size(job["log"])
            code = run(job)
            if code == 0 or ENDING or PORT_TAKEN not in log_from(job["log"], start):
                break
    finally:
        remove_shared_memory(job["shared_memory"])
    return code if code >= 0 else 128 - code


def run(job: "dict") -> int:  # type: ignore[type-arg]
    """One attempt, on ports of its own."""
    inner = dict(zip(job["ports"], free_ports(len(job["ports"]))))  # noqa: B905 - Python 3.6
    ports, proxy = (inner, None) if job["proxy"] is None else start_proxy(job, inner)
    environment = dict(os.environ)
    if job["path_prefix"]:
        environment["PATH"] = os.pathsep.join([job["path_prefix"], environment.get("PATH", os.defpath)])
    start = log_size(job["log"])
    command = job["command"] + ["--{}-port={}".format(name, port) for name, port in inner.items()]  # noqa: UP032 - Python 3.6
    server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    SERVERS.append(server)
    if ENDING:
        server.terminate()
    publish(job, ports)
    while server.poll() is None and not LOG_LINE.search(log_from(job["log"], start)):
        time.sleep(POLL_S)
    if server.poll() is None and not hide(job["key"].encode()):
        print("warning: the key of model control can be read in this node's list of processes", file=sys.stderr, flush=True)  # noqa: T201
    return server.wait() if proxy is None else wait_for_both(server, proxy)


def start_proxy(job: "dict", inner: "dict") -> "tuple[dict, subprocess.Popen[bytes]]":  # type: ignore[type-arg]
    """Start the proxy before the server's own ports; its ports by name, and its process."""
    proxy = job["proxy"]
    for path in proxy["needed"]:
        if not os.path.isfile(path):  # noqa: PTH113 - Python 3.6
            node = os.environ.get("SLURMD_NODENAME", "") or socket.gethostname()
            sys.exit("launch.slurm.proxy: {} is not on node {}. Fix: put it there, or correct the path".format(path, node))  # noqa: UP032
    ports = dict(zip(job["ports"], free_ports(len(job["ports"]))))  # noqa: B905 - Python 3.6
    for name, text in proxy["files"].items():
        for side, numbers in (("outer", ports), ("inner", inner)):
            for port in job["ports"]:
                text = text.replace('"@{}-{}@"'.format(port, side), str(numbers[port]))  # noqa: UP032, PLW2901 - Python 3.6
        with open(os.path.join(proxy["folder"], name), "w", encoding="utf-8") as file:  # noqa: PTH118, PTH123 - Python 3.6
            file.write(text)
    return ports, subprocess.Popen(proxy["command"], stdin=subprocess.DEVNULL)


def wait_for_both(server: "subprocess.Popen[bytes]", proxy: "subprocess.Popen[bytes]") -> int:
    """Wait until one of them has ended, end the other one, and return the exit code of the first; the proxy never ends by itself."""
    while server.poll() is None and proxy.poll() is None:
        time.sleep(POLL_S)
    code = server.poll()
    if code is None:
        server.terminate()
        server.wait()
        return proxy.returncode or 1
    proxy.terminate()
    proxy.wait()
    return code


def end(*_: "object") -> None:
    """Let the server end by itself: a signal to its models' own processes too would keep it from unloading them."""
    ENDING.append(True)
    if SERVERS and SERVERS[-1].returncode is None:
        SERVERS[-1].terminate()


def publish(job: "dict", ports: "dict") -> None:  # type: ignore[type-arg]
    """Tell the sidecar the ports, whole or not at all."""
    number, node = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURMD_NODENAME", "") or socket.gethostname()
    aside = job["endpoint"] + ".new"
    with open(aside, "w", encoding="utf-8") as file:  # noqa: PTH123 - Python 3.6
        json.dump({"launch": job["launch"], "job": number, "node": node, "ports": ports}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, job["endpoint"])  # noqa: PTH105 - Python 3.6


def free_ports(count: int) -> "list[int]":
    """Ports that are free now on all addresses of the node; another process may still take one, and then there is a next attempt."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def log_size(path: str) -> int:
    """Bytes of the log so far."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - Python 3.6
    except OSError:
        return 0


def log_from(path: str, start: int) -> bytes:
    """What the log has from there on."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - Python 3.6
            file.seek(max(start, log_size(path) - READ_BYTES))
            return file.read(READ_BYTES)
    except OSError:
        return b""


def hide(key: bytes) -> bool:
    """Overwrite the key in the command lines of this user's processes, of a container's own programs too; whether none has it now."""
    return all([hide_in(folder, key) for folder in glob.glob("/proc/[0-9]*")])  # noqa: C419, PTH207 - each is tried


def hide_in(folder: str, key: bytes) -> bool:
    """Whether a process's command line has no key now."""
    try:
        if key not in read(folder + "/cmdline"):
            return True
    except OSError:
        return True  # it has ended, or is not this user's
    try:
        fields = read(folder + "/stat").rpartition(b")")[2].split()
        start, end = int(fields[ARG_START]), int(fields[ARG_END])
        with open(folder + "/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 - Python 3.6
            memory.seek(start)
            arguments = memory.read(end - start)
            memory.seek(start)
            memory.write(arguments.replace(key, b"*" * len(key)))
        return key not in read(folder + "/cmdline")
    except FileNotFoundError:
        return True  # it has ended
    except (OSError, ValueError, IndexError, OverflowError):
        return False


def read(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb") as file:  # noqa: PTH123 - Python 3.6
        return file.read()


def remove_shared_memory(prefix: str) -> None:
    """Remove the regions of this very server that an end by force left behind."""
    for path in glob.glob("/dev/shm/" + glob.escape(prefix) + "*"):  # noqa: PTH207, S108 - Triton's Python backend puts its regions there
        try:
            os.unlink(path)  # noqa: PTH108 - Python 3.6
        except OSError:
            continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
