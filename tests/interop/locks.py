#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lodge and QEMU refuse each other's image in use, and share it for reading.

usage: locks.py LODGE_IMG
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]


class Holder:
    """A process that has the image open until the block ends."""

    def __init__(self, argv, path):
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.inode = f":{path.stat().st_ino} "

    def __enter__(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(self.inode in line for line in open("/proc/locks")):
                time.sleep(0.1)  # all of its locks
                return self.process
            time.sleep(0.02)
        raise tap.Failure("the holder took no lock")

    def __exit__(self, *_):
        try:
            self.process.communicate(b"quit\n", 10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def qemu(path, fmt, *extra):
    return ["qemu-io", *extra, "-f", fmt, path]


def lodge(path, fmt, *extra):
    return [LODGE, "io", *extra, "-f", fmt, path]


def with_image(function):
    for fmt in ("raw", "qcow2"):
        with tempfile.TemporaryDirectory(prefix="lodge-locks-") as tmp:
            path = pathlib.Path(tmp) / "image"
            tap.run(["qemu-img", "create", "-q", "-f", fmt, path, "1M"])
            function(path, fmt)


def probe(tool, path, fmt, write, expect, *extra):
    argv = tool(path, fmt, *([] if write else ["-r"]), *extra, "-c", "read 0 512")
    return tap.run(argv, expect)


def qemu_writes(path, fmt):
    with Holder(qemu(path, fmt), path) as holder:
        said = probe(lodge, path, fmt, True, 1)
        tap.check(f"lock\nIs another process using the image [{path}]? It is process {holder.pid} (qemu-io)." in said, said)
        probe(lodge, path, fmt, False, 1)
        tap.run([LODGE, "info", path], 1)
        tap.run([LODGE, "info", "-U", path])
        tap.run([LODGE, "io", "-r", "-U", "-f", fmt, "-c", "read 0 512", path])
        tap.run([LODGE, "create", "-q", "-f", fmt, path, "1M"], 1)
        tap.run([LODGE, "convert", "-O", fmt, "-f", fmt, "-n", path, path], 1)
    probe(lodge, path, fmt, True, 0)


def qemu_reads(path, fmt):
    with Holder(qemu(path, fmt, "-r"), path):
        probe(lodge, path, fmt, False, 0)
        probe(lodge, path, fmt, True, 1 if fmt == "qcow2" else 0)  # a raw reader of QEMU's forbids nothing
        tap.run([LODGE, "info", path])


def lodge_writes(path, fmt):
    with Holder(lodge(path, fmt), path):
        said = probe(qemu, path, fmt, True, 1)
        tap.check("lock" in said, said)
        probe(qemu, path, fmt, False, 1 if fmt == "qcow2" else 0)  # ... and minds no writer
        probe(qemu, path, fmt, False, 0, "-U")
        tap.run(["qemu-img", "info", path], 1 if fmt == "qcow2" else 0)
        tap.run(["qemu-img", "info", "-U", path])
        probe(lodge, path, fmt, True, 1)
        probe(lodge, path, fmt, False, 1)
    probe(qemu, path, fmt, True, 0)


def lodge_reads(path, fmt):
    with Holder(lodge(path, fmt, "-r"), path):
        probe(qemu, path, fmt, False, 0)
        probe(qemu, path, fmt, True, 1)
        probe(lodge, path, fmt, False, 0)
        probe(lodge, path, fmt, True, 1)


def backing():
    with tempfile.TemporaryDirectory(prefix="lodge-locks-") as tmp:
        base, top, other = (pathlib.Path(tmp) / n for n in ("base", "top", "other"))
        tap.run(["qemu-img", "create", "-q", "-f", "raw", base, "1M"])
        for overlay in (top, other):
            tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay])
        for hold, probe_with in ((lodge, qemu), (qemu, lodge)):
            with Holder(hold(top, "qcow2"), top):
                probe(probe_with, other, "qcow2", True, 0)  # the base is shared
                probe(probe_with, base, "raw", False, 0)
        with Holder(lodge(top, "qcow2"), top):
            probe(qemu, base, "raw", True, 1)
        with Holder(qemu(base, "raw"), base):
            probe(lodge, top, "qcow2", True, 1)


def system():
    if not shutil.which("qemu-system-x86_64"):
        return

    def one(path, fmt):
        argv = ["qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-monitor", "stdio",
                "-drive", f"file={path},format={fmt},if=virtio"]
        with Holder(argv, path) as holder:
            said = probe(lodge, path, fmt, True, 1)
            tap.check(f"It is process {holder.pid} (" in said, said)
        with Holder(lodge(path, fmt), path):
            tap.run(argv, 1, "quit\n")

    with_image(one)


def main():
    tap.need("qemu-img", "qemu-io")
    each = (qemu_writes, qemu_reads, lodge_writes, lodge_reads)
    tap.main([(f.__name__, lambda f=f: with_image(f)) for f in each] + [(f.__name__, f) for f in (backing, system)])


if __name__ == "__main__":
    main()
