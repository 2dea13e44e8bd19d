#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""vdi, vpc, vhdx, qed, vmdk and qcow beside qemu-img: the same requests by both, each other's images, conversions, what is refused.

usage: foreign-images.py LODGE_IMG     (LODGE_CHECK_LONG=1: many more requests; LODGE_SEED=N: the same run again)
"""
import functools
import itertools
import json
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
LONG = bool(os.environ.get("LODGE_CHECK_LONG"))
SEED = int(os.environ.get("LODGE_SEED", random.randrange(1 << 30)))
OPERATIONS = 200 if LONG else 40
K, M = 1024, 1024 * 1024

# name, format, size, -o options
SHAPES = [
    ("vdi", "vdi", 12 * M, []),
    ("vdi-odd", "vdi", 5 * M + 3 * 512, []),
    ("vdi-static", "vdi", 4 * M + 512, ["static=on"]),
    ("vpc", "vpc", 12 * M, []),
    ("vpc-force", "vpc", 9 * M + 512, ["force_size=on"]),
    ("vpc-fixed", "vpc", 5 * M, ["subformat=fixed"]),
    ("vpc-fixed-force", "vpc", 5 * M + 512, ["subformat=fixed,force_size=on"]),
    ("qcow", "qcow", 9 * M + 512, []),
    ("qcow-backed", "qcow", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk"]),
    ("vmdk", "vmdk", 9 * M + 512, []),
    ("vmdk-zero", "vmdk", 9 * M + 512, ["zeroed_grain=on"]),
    ("vmdk-flat", "vmdk", 5 * M + 512, ["subformat=monolithicFlat"]),
    ("vmdk-split", "vmdk", 5 * M + 512, ["subformat=twoGbMaxExtentSparse,adapter_type=lsilogic"]),
    ("vmdk-split-flat", "vmdk", 5 * M, ["subformat=twoGbMaxExtentFlat,hwversion=7"]),
    ("vmdk-backed", "vmdk", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk"]),
    ("vmdk-backed-zero", "vmdk", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk,zeroed_grain=on,compat6=on"]),
    ("qed", "qed", 9 * M + 512, []),
    ("qed-small", "qed", 5 * M, ["cluster_size=4k,table_size=2"]),
    ("qed-large", "qed", 9 * M + 512, ["cluster_size=2M,table_size=2"]),
    ("qed-backed", "qed", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk"]),
    ("vhdx", "vhdx", 12 * M, []),
    ("vhdx-1m", "vhdx", 9 * M + 512, ["block_size=1M,log_size=2M"]),
    ("vhdx-off", "vhdx", 6 * M, ["block_size=2M,block_state_zero=off"]),
    ("vhdx-fixed", "vhdx", 6 * M + 512, ["block_size=4M,subformat=fixed"]),
]
VMDK_KINDS = ("monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized")


def io(tool, path, fmt, commands, expect=0, extra=()):
    argv = ["qemu-io"] if tool == "qemu" else [LODGE, "io"]
    for c in commands:
        argv += ["-c", c]
    return tap.run([*argv, *extra, "-f", fmt, path], expect)


def image_tool(tool):
    return "qemu-img" if tool == "qemu" else LODGE


def create(tool, fmt, options, path, size):
    opts = [x for o in options for x in ("-o", o)]
    tap.run([image_tool(tool), "create", "-q", "-f", fmt, *opts, path, str(size)])


def requests(rng, size, count):
    out = []
    for _ in range(count):
        kind = rng.random()
        offset = 512 * rng.randrange(size // 512)
        length = min(512 * rng.choice([1, 1, 8, 129, 700, rng.randrange(1, 6000)]), size - offset)
        if kind < 0.65:
            out.append(f"write -q -P {rng.randrange(1, 256)} {offset} {length}")
        elif kind < 0.85:
            out.append(f"write -q -z {'-u ' if kind < 0.75 else ''}{offset} {length}")
        else:
            out.append("flush" if rng.random() < 0.5 else f"read -q {offset} {length}")
    return out


def same_answers(path, fmt):
    """Both tools say the same about one file."""
    # QEMU's vhdx does not say what is where: all is data, somewhere.
    maps = [] if fmt == "vhdx" else [["map"], ["map", "--output=json"]]
    for command in [["info"], ["info", "--output=json"], *maps]:
        ours, theirs = (tap.run([tool, *command, "-f", fmt, path]) for tool in (LODGE, "qemu-img"))
        if command[-1] == "--output=json":
            ours, theirs = json.loads(ours), json.loads(theirs)
        tap.check(ours == theirs, f"{command} differs:\n{ours}\n{theirs}")
    if fmt not in ("vpc", "qcow"):  # qemu-img has no check of these
        for tool in (LODGE, "qemu-img"):
            tap.run([tool, "check", "-f", fmt, path])
        ours, theirs = (json.loads(tap.run([tool, "check", "--output=json", "-f", fmt, path])) for tool in (LODGE, "qemu-img"))
        tap.check(ours == theirs, f"check differs:\n{ours}\n{theirs}")


def shape(maker, fmt, size, options):
    rng = random.Random(f"{SEED} {maker} {fmt} {options}")
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        folder = pathlib.Path(tmp)
        if "backing_file" in str(options):
            create(maker, "vmdk", [], folder / "base.vmdk", size)
            io("qemu", folder / "base.vmdk", "vmdk", ["write -q -P 221 64k 3M", "write -q -P 222 4M 64k"])
        (folder / "1").mkdir()
        (folder / "2").mkdir()
        for one in ("1", "2"):
            os.symlink("../base.vmdk", folder / one / "base.vmdk")
        ours, theirs = folder / "1" / "image", folder / "2" / "image"
        create(maker, fmt, options, ours, size)
        same_answers(ours, fmt)
        size = json.loads(tap.run(["qemu-img", "info", "-f", fmt, "--output=json", ours]))["virtual-size"]
        for number in range(3 if LONG else 2):
            for part in ours.parent.glob("image*"):
                shutil.copy(part, theirs.parent / part.name)
            commands = requests(rng, size, OPERATIONS)
            if fmt == "qed" and "backing" in str(options):
                # Where a part of a zero cluster is written, QEMU takes the rest from the backing image.
                commands = [c for c in commands if " -z " not in c]
            io("qemu", theirs, fmt, commands)
            io("lodge", ours, fmt, commands, extra=["-n"] if number else [])
            for tool in ("qemu-img", LODGE):
                tap.run([tool, "compare", "-f", fmt, "-F", fmt, ours, theirs])
            same_answers(ours, fmt)
            same_answers(theirs, fmt)
            # The other goes on with our image, and we with it.
            io("qemu", ours, fmt, [f"write -q -P 7 {size - 512} 512"])
            io("lodge", ours, fmt, [f"read -q -P 7 {size - 512} 512"])


def sizes():
    """Geometry and size of new VHD images are those that QEMU chooses."""
    for options, size in itertools.product(([], ["subformat=fixed"], ["force_size=on"]),
                                           ("512", "1M", "33M", "504M", "600M", "1G", "31G", "100G", "200G", "2040G")):
        with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
            said = {}
            for tool in ("qemu", "lodge"):
                path = pathlib.Path(tmp) / tool
                create(tool, "vpc", options, path, size)
                said[tool] = (json.loads(tap.run(["qemu-img", "info", "-f", "vpc", "--output=json", path]))["virtual-size"],
                              path.stat().st_size)
                ours = json.loads(tap.run([LODGE, "info", "-f", "vpc", "--output=json", path]))["virtual-size"]
                tap.check(ours == said[tool][0], f"{options} {size}: {ours} is not {said[tool][0]}")
            tap.check(said["qemu"] == said["lodge"], f"{options} {size}: {said}")


def convert():
    """Every pair, either tool, with the other to compare."""
    kinds = [("raw", []), ("qcow2", []), ("vdi", []), ("vdi", ["-o", "static=on"]), ("vpc", ["-o", "force_size=on"]),
             ("vpc", ["-o", "subformat=fixed,force_size=on"]), ("vhdx", []), ("vhdx", ["-o", "block_size=1M"]),
             ("vhdx", ["-o", "subformat=fixed"]), ("qcow", []), ("qed", []),
             *(("vmdk", ["-o", "subformat=" + s]) for s in VMDK_KINDS)]
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        folder = pathlib.Path(tmp)
        tap.run(["qemu-img", "create", "-q", "-f", "raw", folder / "0", "7M"])
        io("qemu", folder / "0", "raw", requests(random.Random(SEED), 7 * M, 12))
        for number, (fmt, options) in enumerate(kinds[1:], 1):
            tap.run([LODGE, "convert", "-f", "raw", "-O", fmt, *options, folder / "0", folder / str(number)])
            tap.run(["qemu-img", "compare", "-f", "raw", "-F", fmt, folder / "0", folder / str(number)])
        for (i, (source, _)), (target, options) in itertools.product(enumerate(kinds), kinds):
            tool, other = ("qemu-img", LODGE) if (i + len(target) + len(options)) % 2 else (LODGE, "qemu-img")
            tap.run([tool, "convert", "-f", source, "-O", target, *options, folder / str(i), folder / "copy"])
            tap.run([other, "compare", "-f", "raw", "-F", target, folder / "0", folder / "copy"])
            if target in ("vdi", "vmdk"):
                for checker in (LODGE, "qemu-img"):
                    tap.run([checker, "check", "-f", target, folder / "copy"])
            for part in folder.glob("copy*"):
                part.unlink()


def compressed():
    """Compressed clusters of qcow and vmdk, by either tool, read by the other and written over."""
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        folder = pathlib.Path(tmp)
        tap.run(["qemu-img", "create", "-q", "-f", "raw", folder / "0", str(5 * M + 512)])
        io("qemu", folder / "0", "raw", ["write -q -P 1 0 1M", "write -q -P 2 1500k 700k", "write -q -P 3 4M 1049088"])
        with open(folder / "0", "r+b") as f:  # something that does not shrink
            f.seek(3 * M)
            f.write(random.Random(SEED).randbytes(200 * K))
        for (fmt, options), tool in itertools.product((("qcow", []), ("vmdk", ["-o", "subformat=streamOptimized"])),
                                                      (LODGE, "qemu-img")):
            if (fmt, tool) != ("vmdk", "qemu-img"):  # (qemu-img 7.2 writes qcow, and then fails)
                tap.run([tool, "create", "-q", "-f", fmt, *options, folder / "1", str(5 * M + 512)])
                pieces = [(1, k * K) for k in range(0, K, 64)] + [(2, k * K) for k in range(1536, 2176, 64)]
                io("lodge" if tool == LODGE else "qemu", folder / "1", fmt, [
                    f"write -q -c -P {p} {at + n} {step}" for p, at in pieces
                    for step in [4 * K if fmt == "qcow" else 64 * K] for n in range(0, 64 * K, step)])
                io("qemu", folder / "0", "raw", ["write -q -z 0 5243392", "write -q -P 1 0 1M", "write -q -P 2 1536k 640k"])
            else:
                tap.run([tool, "convert", "-c", "-f", "raw", "-O", fmt, *options, folder / "0", folder / "1"])
            for reader in (LODGE, "qemu-img"):
                tap.run([reader, "compare", "-f", "raw", "-F", fmt, folder / "0", folder / "1"])
            tap.run([LODGE, "check", "-f", fmt, folder / "1"])
            shutil.copy(folder / "0", folder / "2")
            commands = ["write -q -P 9 100k 7k", "write -q -z 1600k 300k", "write -q -P 8 3100k 1000k"]
            io("lodge", folder / "1", fmt, commands)
            io("qemu", folder / "2", "raw", commands)
            for reader in (LODGE, "qemu-img"):
                tap.run([reader, "compare", "-f", "raw", "-F", fmt, folder / "2", folder / "1"])


def encrypted():
    """qcow with AES: what one tool wrote the other reads."""
    secret = ["--object", "secret,id=s,data=sesame"]
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        path = pathlib.Path(tmp) / "image"
        opts = f"driver=qcow,file.filename={path},encrypt.key-secret=s"
        for maker, options in ((LODGE, "encryption=on"), ("qemu-img", "encrypt.format=aes")):
            tap.run([maker, "create", "-q", *secret, "-f", "qcow", "-o", f"{options},encrypt.key-secret=s", path, str(5 * M + 512)])
            tap.run(["qemu-io", *secret, "--image-opts", "-c", "write -q -P 4 1k 300k", opts])
            tap.run([LODGE, "io", *secret, "--image-opts", "-c", "write -q -P 5 200k 4M", "-c", "write -q -z 1M 70k", opts])
            for reader in (["qemu-io"], [LODGE, "io"]):
                reads = ("0 0 1k", "4 1k 199k", "5 200k 824k", "0 1M 70k", "5 1094k 3202k", f"0 4296k {5 * M + 512 - 4296 * K}")
                commands = [x for r in reads for x in ("-c", f"read -q -P {r}")]
                tap.check("failed" not in tap.run([*reader, *secret, "--image-opts", *commands, opts]), "other content")
            infos = [json.loads(tap.run([t, "info", "--output=json", path])) for t in (LODGE, "qemu-img")]
            tap.check(infos[0] == infos[1], f"info differs: {infos}")
            said = tap.run([LODGE, "map", path], 1)
            tap.check("encrypt.key-secret" in said, said)


def refused():
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        path = pathlib.Path(tmp) / "image"
        path.write_text("precious")
        for fmt, options, word in (("vdi", ["-o", "cluster_size=1M"], "cluster_size"), ("vdi", ["-o", "static=maybe"], "static"),
                                   ("vdi", ["-u", "-b", "x", "-F", "raw"], "Backing"), ("vpc", ["-o", "subformat=sparse"], "sparse"),
                                   ("vpc", ["-u", "-b", "x", "-F", "raw"], "Backing"), ("vpc", ["-o", "static=on"], "static"),
                                   ("vhdx", ["-u", "-b", "x", "-F", "raw"], "Backing"), ("vhdx", ["-o", "subformat=x"], "'x'"),
                                   ("vhdx", ["-o", "block_size=3M"], "power of two"), ("vhdx", ["-o", "log_size=5G"], "4 GB")):
            said = tap.run([LODGE, "create", "-q", "-f", fmt, *options, path, "1M"], 1)
            tap.check(word in said and path.read_text() == "precious", f"no '{word}' in: {said}")
        for fmt, size in (("vpc", "2041G"), ("vdi", "17T"), ("vhdx", "65T")):
            said = tap.run([LODGE, "create", "-q", "-f", fmt, path, size], 1)
            tap.check("size" in said or "64TB" in said, said)
        for fmt in ("vdi", "vpc", "vhdx"):
            create("qemu", fmt, [], path, "8M")
            said = tap.run([LODGE, "resize", "-f", fmt, path, "16M"], 1)
            tap.check("resize" in said and fmt in said, said)
        create("qemu", "vdi", [], path, "8M")
        with open(path, "r+b") as f:
            f.seek(0x4C)
            f.write(struct.pack("<I", 4))
        tap.check("differencing" in tap.run([LODGE, "info", path], 1), "not refused by name")


def qed():
    """Options that are refused, in QEMU's words; resizing, rebasing, repairing."""
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        path = pathlib.Path(tmp) / "image"
        for options in ("cluster_size=5000", "cluster_size=1k", "table_size=3", "table_size=32"):
            said = [tap.run([tool, "create", "-q", "-f", "qed", "-o", options, path, "1M"], 1).split(":", 1)[1]
                    for tool in (LODGE, "qemu-img")]
            tap.check(said[0] == said[1], str(said))
        for tool, other in ((LODGE, "qemu-img"), ("qemu-img", LODGE)):
            tap.run([tool, "create", "-q", "-f", "raw", f"{tmp}/base", "9M"])
            io("qemu", f"{tmp}/base", "raw", ["write -q -P 3 0 9M"])
            tap.run([tool, "create", "-q", "-f", "qed", "-b", "base", "-F", "raw", path, "4195840"])
            io("lodge", path, "qed", ["write -q -P 4 1M 64k"])
            tap.run([LODGE, "resize", "-q", "-f", "qed", path, "8M"])  # QEMU cannot where the backing image is longer
            for reader in ("qemu", "lodge"):
                io(reader, path, "qed", ["read -q -P 4 1M 64k", "read -q -P 3 1114112 1982464", f"read -q -P 0 4195840 {8 * M - 4195840}"])
            shutil.copy(f"{tmp}/base", f"{tmp}/base2")
            tap.run([tool, "rebase", "-u", "-f", "qed", "-b", "base2", "-F", "raw", path])
            same_answers(path, "qed")
            tap.run([tool, "rebase", "-f", "qed", "-b", "", path])
            io("qemu" if tool == LODGE else "lodge", path, "qed", ["read -q -P 4 1M 64k", "read -q -P 3 0 1M"])
            with open(path, "r+b") as f:
                f.seek(16)
                f.write(b"\x02")
                f.seek(65536)
                l2 = struct.unpack("<Q", f.read(8))[0]
                f.seek(l2 + 8 * 100)
                f.write(struct.pack("<Q", 1 << 40))
            tap.run([tool, "check", "-r", "all", path])
            tap.run([other, "check", path])
            path.unlink()


def vhdx_log():
    """A log that QEMU left behind is replayed by us, and ours by QEMU: the file as it is before the table is written."""
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        folder = pathlib.Path(tmp)
        for maker, other in (("qemu", "lodge"), ("lodge", "qemu")):
            path = folder / maker
            create(maker, "vhdx", ["block_size=1M"], path, 8 * M)
            before = path.read_bytes()[2 * M:2 * M + 4096]
            io(maker, path, "vhdx", ["write -q -P 5 3M 64k", "flush"])
            with open(path, "r+b") as f:
                f.seek(M)
                log = f.read(M)
                at = log.index(b"loge")
                f.seek(2 * M)
                f.write(before)
                for head in (64 * K, 128 * K):
                    f.seek(head)
                    header = bytearray(f.read(4096))
                    header[48:64] = log[at + 32:at + 48]
                    header[4:8] = bytes(4)
                    header[4:8] = struct.pack("<I", crc32c(header))
                    f.seek(head)
                    f.write(header)
            for tool in ("qemu-img", LODGE):
                said = tap.run([tool, "info", path], 1)
                tap.check("contains a log that needs to be replayed" in said, said)
            said = [tap.run([image_tool(other), "check", "-r", "all", path])]
            tap.check("1 corruptions" in said[0], said)
            for tool in ("qemu", "lodge"):
                io(tool, path, "vhdx", ["read -q -P 5 3M 64k", "read -q -P 0 0 3M", "read -q -P 0 4M 4M"])


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def repaired():
    """What a crash leaves of a vdi: the header counts a block more than the table has."""
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        path = pathlib.Path(tmp) / "image"
        create("lodge", "vdi", [], path, "8M")
        io("lodge", path, "vdi", ["write -q -P 5 3M 2M"])
        with open(path, "r+b") as f:
            f.seek(0x184)
            f.write(struct.pack("<I", 3))
        tap.run([LODGE, "check", path], 3)
        tap.run([LODGE, "check", "-r", "leaks", path])
        tap.run(["qemu-img", "check", path])
        io("lodge", path, "vdi", ["read -q -P 5 3M 2M", "discard -q 3M 64k"])


def main():
    tap.need("qemu-img", "qemu-io")
    print(f"# LODGE_SEED={SEED}")
    tests = [(f"{maker}-{s[0]}", functools.partial(shape, maker, *s[1:])) for s in SHAPES for maker in ("qemu", "lodge")]
    tap.main(tests + [(f.__name__, f) for f in (sizes, convert, compressed, encrypted, refused, repaired, qed, vhdx_log)])


if __name__ == "__main__":
    main()
