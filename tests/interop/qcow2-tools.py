#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tools do with qcow2 images, beside qemu-img: each works on what the other made.

usage: qcow2-tools.py LODGE_IMG
"""
import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
SHAPES = ("cluster_size=64k", "cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=16k,extended_l2=on")


def both(*args):
    """What the two say to the same command, without the program's name."""
    said = []
    for tool in (LODGE, "qemu-img"):
        done = subprocess.run([tool, *args], capture_output=True, text=True, timeout=60)
        said.append((done.returncode, done.stdout, done.stderr.replace(os.path.basename(tool) + ": ", "")))
    return said


def same(*args):
    ours, theirs = both(*args)
    tap.check(ours == theirs, f"{args}: {ours} instead of {theirs}")


def io(path, *commands):
    tap.run(["qemu-io", *(word for c in commands for word in ("-c", c)), path])


def clean(path):
    tap.run(["qemu-img", "check", "-q", path])
    tap.run([LODGE, "check", "-q", path])


def make(options):
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "a", "8M"])
    io("a", "write -q -P 1 0 1M", "write -q -P 2 3M 192k")


def snapshots():
    for options in SHAPES:
        make(options)
        for first, second in ((LODGE, "qemu-img"), ("qemu-img", LODGE)):
            tap.run([first, "snapshot", "-c", "one", "a"])
            clean("a")
            io("a", "write -q -P 7 100k 300k")
            tap.run([second, "snapshot", "-c", "two", "a"])
            tap.run([LODGE, "io", "-c", "write -q -P 9 0 300k", "a"])
            same("snapshot", "-l", "a")
            tap.run([second, "snapshot", "-a", "one", "a"])
            io("a", "read -q -P 1 0 1M", "read -q -P 2 3M 192k")
            tap.run([first, "snapshot", "-d", "one", "a"])
            tap.run([first, "snapshot", "-a", "two", "a"])
            io("a", "read -q -P 1 0 100k", "read -q -P 7 100k 300k")
            tap.run([second, "snapshot", "-d", "two", "a"])
            clean("a")
            io("a", "write -q -P 1 0 1M")


def bitmaps():
    for options in SHAPES[:2]:
        make(options)
        tap.run(["qemu-img", "bitmap", "--add", "a", "one"])
        tap.run([LODGE, "bitmap", "--add", "-g", "512", "a", "two"])
        tap.run(["qemu-img", "bitmap", "--add", "--disable", "a", "three"])
        tap.run([LODGE, "io", "-c", "write -q 1M 100k", "-c", "write -q 5M 512", "a"])
        clean("a")
        same("info", "a")
        tap.run(["qemu-img", "bitmap", "--merge", "two", "a", "three"])
        tap.run([LODGE, "resize", "-q", "a", "16M"])
        tap.run([LODGE, "bitmap", "--remove", "a", "one"])
        clean("a")
        same("info", "a")


def measure():
    make("cluster_size=64k")
    tap.run(["qemu-img", "bitmap", "--add", "a", "one"])
    for options in ("cluster_size=512", "cluster_size=2M", "refcount_bits=64", "extended_l2=on", "preallocation=full"):
        for source in (["--size", "123456789"], ["a"]):
            same("measure", "-O", "qcow2", "-o", options, *source)


def amend():
    make("cluster_size=64k")
    for change in ("compat=0.10", "refcount_bits=1", "compat=1.1,refcount_bits=64", "lazy_refcounts=on", "size=16M",
                   "compat=0.10", "refcount_bits=3", "backing_file=x", "data_file=x", "compat=0.42"):
        tap.run(["cp", "a", "b"])
        ours = subprocess.run([LODGE, "amend", "-o", change, "a"], capture_output=True, text=True)
        theirs = subprocess.run(["qemu-img", "amend", "-o", change, "b"], capture_output=True, text=True)
        wanted = theirs.stderr.replace("qemu-img: ", os.path.basename(LODGE) + ": ")
        tap.check(ours.stderr == wanted, f"{change}: {ours.stderr}")
        clean("a")
        io("a", "read -q -P 1 0 1M", "read -q -P 2 3M 192k")


def rebase_commit():
    make("cluster_size=64k")
    tap.run(["cp", "a", "base"])
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "a", "-F", "qcow2", "top"])
    io("top", "write -q -P 5 1M 1M")
    tap.run([LODGE, "rebase", "-u", "-b", "base", "-F", "qcow2", "top"])
    same("info", "top")
    tap.run([LODGE, "commit", "-q", "top"])
    clean("top")
    io("base", "read -q -P 5 1M 1M", "read -q -P 1 0 1M")
    tap.check(os.path.getsize("top") <= 5 * 65536, "the emptied image is not short")


def damaged(at, value):
    """Images with the same damage, one for each of the two; what is in them."""
    make("cluster_size=64k")
    raw = bytearray(pathlib.Path("a").read_bytes())
    raw[at : at + len(value)] = value
    for name in ("ours", "theirs"):
        pathlib.Path(name).write_bytes(raw)
    return raw


def check():
    """Refcounts are in cluster 2, the L2 table is cluster 4, data starts at cluster 5."""
    for at, value, modes in (
        (0x20000 + 2 * 5, b"\0\0", ((), ("-r", "all"))),
        (0x20000 + 2 * 5, b"\0\2", ((), ("-r", "leaks"), ("-r", "all"))),
        (0x40000, b"\0", ((), ("-r", "all"))),
        (0x40000, bytes.fromhex("8000000000050201"), (("-r", "all"),)),
    ):
        for mode in modes:
            raw = damaged(at, value)
            said = []
            for tool, name in ((LODGE, "ours"), ("qemu-img", "theirs")):
                done = subprocess.run([tool, "check", *mode, name], capture_output=True, text=True, timeout=60)
                said.append((done.returncode, done.stdout, done.stderr))
            tap.check(said[0] == said[1], f"{at:#x} {mode}: {said[0]} instead of {said[1]}")
        raw = damaged(at, value)
        plain = subprocess.run([LODGE, "check", "ours"], capture_output=True, timeout=60)
        dry = subprocess.run([LODGE, "check", "-r", "all", "--dry-run", "ours"], capture_output=True, timeout=60)
        tap.check(dry.returncode == plain.returncode, f"{at:#x}: a dry run ends with {dry.returncode}")
        tap.check(b'" would ' in dry.stderr, f"{at:#x}: a dry run says {dry.stderr}")
        tap.check(pathlib.Path("ours").read_bytes() == raw, f"{at:#x}: a dry run wrote")


def main():
    tap.need("qemu-img", "qemu-io")
    with tempfile.TemporaryDirectory(prefix="lodge-qcow2-") as folder:
        os.chdir(folder)
        tap.main([(f.__name__, f) for f in (snapshots, bitmaps, measure, amend, rebase_commit, check)])


if __name__ == "__main__":
    LODGE = os.path.abspath(LODGE)
    main()
