#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""convert, dd and bench beside qemu-img: content, messages, exit statuses, compressed images, signals.

usage: convert.py LODGE_IMG     (LODGE_CHECK_LONG=1: more clusters)
"""
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

tap.need("qemu-img", "qemu-io")

LODGE = sys.argv[1]
SIZE = (256 if os.environ.get("LODGE_CHECK_LONG") else 24) << 20
folder = tempfile.TemporaryDirectory(prefix="lodge-convert-")
DIR = pathlib.Path(folder.name)
RAW = DIR / "source.raw"


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def make_source():
    """Text, noise, repeated matches at every distance, zeroes that are stored, and holes."""
    chance = random.Random(1)
    words = [bytes(chance.randrange(97, 123) for _ in range(chance.randrange(2, 12))) for _ in range(3000)]
    with open(RAW, "wb") as f:
        f.truncate(SIZE)
        at = 0
        while at < SIZE:
            length = chance.randrange(1, 300) * 512
            kind = chance.randrange(5)
            if kind == 0:
                data = b" ".join(chance.choice(words) for _ in range(length // 6))[:length]
            elif kind == 1:
                data = chance.randbytes(length)
            elif kind == 2:
                data = (chance.randbytes(chance.randrange(3000, 33000)) * (length // 3000 + 1))[:length]
            else:
                data = bytes(length) if kind == 3 else b""
            f.seek(at)
            f.write(data[: SIZE - at])
            at += length


make_source()
BASE = DIR / "source.qcow2"
tap.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", RAW, BASE])


def same(path, form, against=RAW):
    tap.run(["qemu-img", "compare", "-f", "raw", "-F", form, against, path])


def convert(*argv, expect=0, tool=LODGE):
    return tap.run([tool, "convert", *argv], expect)


def test_options():
    out = DIR / "out"
    for form, argv in [("raw", []), ("raw", ["-W", "-m", "16"]), ("raw", ["-S", "0"]), ("raw", ["-S", "64k"]), ("raw", ["-C"]),
                       ("raw", ["-t", "none", "-T", "none"]), ("qcow2", []), ("qcow2", ["-W", "-m", "3"]), ("qcow2", ["-S", "0"]),
                       ("qcow2", ["-o", "cluster_size=4k,preallocation=metadata"]), ("qcow2", ["-o", "cluster_size=2M"]),
                       ("vmdk", []), ("vmdk", ["-o", "subformat=streamOptimized"]), ("vdi", []), ("vpc", ["-o", "force_size=on"])]:
        out.unlink(missing_ok=True)
        tap.check(convert("-f", "qcow2", "-O", form, *argv, BASE, out) == "", f"{form} {argv}: said something")
        same(out, form)
        if form in ("qcow2", "vdi"):
            tap.run(["qemu-img", "check", "-f", form, out])


def test_sizes():
    for argv in ([], ["-S", "0"], ["-S", "128k"]):
        ours, theirs = DIR / "ours", DIR / "theirs"
        convert("-f", "raw", "-O", "raw", *argv, RAW, ours)
        convert("-f", "raw", "-O", "raw", *argv, RAW, theirs, tool="qemu-img")
        a, b = (os.stat(p).st_blocks for p in (ours, theirs))
        tap.check(a <= b * 1.02 + 16, f"-S {argv}: {a} blocks, qemu-img {b}")


def test_compressed():
    for kind in ("zlib", "zstd"):
        for cluster in ("4k", "64k", "2M"):
            ours, theirs, back = DIR / "ours", DIR / "theirs", DIR / "back"
            options = ["-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind},cluster_size={cluster}"]
            convert(*options, RAW, ours)
            convert(*options, RAW, theirs, tool="qemu-img")
            tap.run(["qemu-img", "check", ours])
            same(ours, "qcow2")  # QEMU's inflate reads what libdeflate wrote
            convert("-f", "qcow2", "-O", "raw", theirs, back)
            tap.check(digest(back) == digest(RAW), f"{kind} {cluster}: read wrongly")
            a, b = (os.stat(p).st_size for p in (ours, theirs))
            tap.check(a <= b * 1.01, f"{kind} {cluster}: {a} bytes, qemu-img {b}")


def test_order():
    """Without -W, clusters are in the file in the order of the disk, compressed ones too."""
    out = DIR / "out"
    for argv in ([], ["-c"]):
        convert("-f", "raw", "-O", "qcow2", "-m", "8", *argv, RAW, out)
        again = DIR / "again"
        convert("-f", "raw", "-O", "qcow2", "-m", "2", *argv, RAW, again)
        tap.check(digest(out) == digest(again), f"{argv}: two runs differ")


def test_concatenation():
    part = DIR / "part.raw"
    with open(part, "wb") as f:
        f.write(os.urandom(1536))
    out = DIR / "out"
    for argv in ([], ["-c"], ["-n"]):
        if "-n" not in argv:
            out.unlink(missing_ok=True)
        convert("-f", "raw", "-O", "qcow2", *argv, part, RAW, part, out)
        whole = DIR / "whole"
        whole.write_bytes(part.read_bytes() + RAW.read_bytes() + part.read_bytes())
        same(out, "qcow2", whole)


def make_chain():
    top = DIR / "top.qcow2"
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", BASE, "-F", "qcow2", top, str(SIZE + (1 << 20))])
    tap.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 192k", "-c", "write -z 3M 128k", "-c", f"write -P 8 {SIZE} 64k", top])
    return top


def test_backing():
    top, whole = make_chain(), DIR / "whole"
    tap.run(["qemu-img", "convert", "-O", "raw", top, whole])
    for argv in ([], ["-c"], ["-S", "0"]):
        ours, theirs = DIR / "ours.qcow2", DIR / "theirs.qcow2"
        for tool, path in ((LODGE, ours), ("qemu-img", theirs)):
            convert("-O", "qcow2", "-B", BASE, "-F", "qcow2", *argv, top, path, tool=tool)
        same(ours, "qcow2", whole)
        maps = [[(e["start"], e["length"], e["depth"], e["zero"]) for e in json.loads(
            tap.run(["qemu-img", "map", "--output=json", p]))] for p in (ours, theirs)]
        tap.check(maps[0] == maps[1], f"{argv}: {maps}")


def test_snapshot():
    image, out = DIR / "snap.qcow2", DIR / "out"
    convert("-f", "qcow2", "-O", "qcow2", BASE, image)
    tap.run(["qemu-img", "snapshot", "-c", "one", image])
    tap.run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1M", image])
    for name in ("one", "snapshot.name=one", "snapshot.id=1"):
        convert("-l", name, "-O", "raw", image, out)
        tap.check(digest(out) == digest(RAW), f"-l {name}: wrong content")


def test_bitmaps():
    image, out = DIR / "bitmaps.qcow2", DIR / "out.qcow2"
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"])
    tap.run(["qemu-img", "bitmap", "--add", "-g", "32k", image, "b0"])
    tap.run(["qemu-img", "bitmap", "--add", "--disable", image, "b1"])
    tap.run(["qemu-io", "-f", "qcow2", "-c", "write 1M 64k", image])
    if "bitmaps" not in json.loads(tap.run([LODGE, "info", "--output=json", image]))["format-specific"]["data"]:
        return  # this build keeps none in images
    convert("-O", "qcow2", "--bitmaps", image, out)
    names = {b["name"] for b in json.loads(tap.run(["qemu-img", "info", "--output=json", out]))["format-specific"]["data"]["bitmaps"]}
    tap.check(names == {"b0", "b1"}, str(names))
    tap.run(["qemu-img", "check", out])


def test_messages():
    out = DIR / "out"
    new = DIR / "new"
    small = DIR / "small"
    tap.run(["qemu-img", "create", "-q", small, "1M"])
    for argv in (["-S", "100", RAW, out], ["-S", "64M", RAW, out], ["-m", "17", RAW, out], ["-m", "x", RAW, out], [RAW], [],
                 ["-c", "-C", RAW, out], ["-S", "4k", "-C", RAW, out], ["-C", "--salvage", RAW, out], ["--target-image-opts", RAW, out],
                 ["--skip-broken-bitmaps", RAW, out], ["-n", "-o", "size=1M", RAW, out], ["--target-is-zero", RAW, out],
                 ["-O", "nope", RAW, new], ["-c", "-O", "raw", RAW, new], ["-T", "x", RAW, out], ["-t", "x", RAW, out],
                 ["-O", "qcow2", "-B", BASE, "-F", "qcow2", RAW, RAW, new], ["-O", "qcow2", "-o", f"backing_file={BASE}", BASE, new],
                 ["-O", "raw", "-B", BASE, BASE, new], ["-O", "raw", "-o", "nope=1", BASE, new], ["-n", RAW, small], ["-n", "-O", "raw", RAW, new],
                 ["-l", "nope", "-O", "raw", BASE, new], ["-r", "x", RAW, out], ["-o", ",", RAW, out], ["--nope", RAW, out],
                 ["-f", "raw", "--bitmaps", "-O", "qcow2", RAW, new], ["-f", "qcow2", "--bitmaps", "-O", "raw", BASE, new], ["-f", "qcow2", DIR / "none", new],
                 ["-c", "-o", "preallocation=full", "-O", "qcow2", RAW, new]):
        said = []
        for tool in (LODGE, "qemu-img"):
            new.unlink(missing_ok=True)
            done = subprocess.run([tool, "convert", *map(str, argv)], capture_output=True, text=True, timeout=60)
            said.append((done.returncode, (done.stdout + done.stderr).replace("lodge-img", "qemu-img")))
        tap.check(said[0] == said[1], f"{argv}:\n{said[0]}\n{said[1]}")


def test_existing():
    """-n into an image that holds something; --target-is-zero believes what it is told."""
    out = DIR / "out"
    for form in ("raw", "qcow2"):
        for argv in ([], ["-S", "0"], ["-W"]):
            tap.run(["qemu-img", "create", "-q", "-f", form, out, str(SIZE)])
            tap.run(["qemu-io", "-f", form, "-c", f"write -P 3 0 {SIZE}", out])
            convert("-n", "-O", form, *argv, BASE, out)
            same(out, form)
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", out, str(SIZE)])
    convert("-n", "-O", "qcow2", "--target-is-zero", BASE, out)
    same(out, "qcow2")
    convert("-n", "--target-image-opts", BASE, f"driver=qcow2,file.filename={out}")
    same(out, "qcow2")


def start(*argv):
    return subprocess.Popen([LODGE, "convert", "-r", "2M", *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_signals():
    for form in ("raw", "qcow2"):
        for number in (signal.SIGINT, signal.SIGTERM):
            out = DIR / "signalled"
            process = start("-f", "raw", "-O", form, RAW, out)
            while not out.exists():
                time.sleep(0.02)
            time.sleep(0.5)
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)
            process.send_signal(number)
            said = process.communicate(timeout=20)
            tap.check(process.returncode != 0 and "/100%)" in said[1], f"{process.returncode} {said}")
            tap.check(not out.exists(), f"{form}: a half-made target is left")
    said = convert("-p", "-O", "qcow2", RAW, DIR / "out")
    tap.check(said.startswith("    (0.00/100%)\n") and said.endswith("(100.00/100%)\n"), repr(said))


def test_rate():
    before = time.monotonic()
    part = DIR / "part"
    part.write_bytes(os.urandom(4 << 20))
    convert("-r", "4M", "-O", "qcow2", "-f", "raw", part, DIR / "out")
    tap.check(time.monotonic() - before > 0.6, "faster than -r allows")


def test_dd():
    ours, theirs = DIR / "ours", DIR / "theirs"
    for argv in (["bs=1M"], ["bs=4k", "count=100"], ["bs=64k", "skip=3"], ["bs=64k", "skip=3", "count=10"], ["bs=1000", "count=100", "skip=7"],
                 ["count=5", "skip=9"], [f"skip={SIZE}"], ["bs=1M", "-O", "qcow2"], ["bs=0"], ["bs=x"], ["nope=1"], ["nope"], ["-O", "nope"]):
        said = []
        for tool, path in ((LODGE, ours), ("qemu-img", theirs)):
            path.unlink(missing_ok=True)
            done = subprocess.run([tool, "dd", "-f", "qcow2", *argv, f"if={BASE}", f"of={path}"], capture_output=True, text=True, timeout=60)
            said.append((done.returncode, (done.stdout + done.stderr).replace("lodge-img", "qemu-img")))
        tap.check(said[0] == said[1], f"{argv}:\n{said[0]}\n{said[1]}")
        tap.check(ours.exists() == theirs.exists(), f"{argv}: made or not")
        if ours.exists():
            tap.run(["qemu-img", "compare", "-f", "qcow2" if "qcow2" in argv else "raw", "-F", "qcow2" if "qcow2" in argv else "raw", ours, theirs])


def test_bench():
    out = DIR / "bench.raw"
    out.write_bytes(bytes(4 << 20))
    for argv in ([], ["-w", "--pattern=65", "-c", "100", "-d", "4"], ["-c", "10", "-s", "64k", "-S", "128k", "-o", "1M"],
                 ["-w", "--flush-interval=8", "-d", "8", "-c", "64"], ["-w", "--flush-interval=8", "--no-drain", "-d", "8", "-c", "64"],
                 ["--flush-interval=8"], ["-w", "--flush-interval=2", "-d", "4"], ["-c", "x"], ["-d", "-1"], ["-i", "nope"], ["--pattern=256"]):
        said = []
        for tool in (LODGE, "qemu-img"):
            done = subprocess.run([tool, "bench", "-f", "raw", *argv, str(out)], capture_output=True, text=True, timeout=60)
            lines = [line for line in (done.stdout + done.stderr).replace("lodge-img", "qemu-img").splitlines() if "completed in" not in line]
            said.append((done.returncode, lines))
        tap.check(said[0] == said[1], f"{argv}:\n{said[0]}\n{said[1]}")
    tap.run([LODGE, "bench", "-f", "raw", "-w", "--pattern=65", "-c", "1024", "-d", "16", out])
    tap.check(out.read_bytes() == b"A" * (4 << 20), "the pattern is not there")


tap.main([(name[5:].replace("_", "-"), function) for name, function in list(globals().items()) if name.startswith("test_")])
