#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""vdi, vpc and vmdk beside qemu-img: the same requests by both, each other's images, conversions, what is refused.

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
    ("vmdk", "vmdk", 9 * M + 512, []),
    ("vmdk-zero", "vmdk", 9 * M + 512, ["zeroed_grain=on"]),
    ("vmdk-flat", "vmdk", 5 * M + 512, ["subformat=monolithicFlat"]),
    ("vmdk-split", "vmdk", 5 * M + 512, ["subformat=twoGbMaxExtentSparse,adapter_type=lsilogic"]),
    ("vmdk-split-flat", "vmdk", 5 * M, ["subformat=twoGbMaxExtentFlat,hwversion=7"]),
    ("vmdk-backed", "vmdk", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk"]),
    ("vmdk-backed-zero", "vmdk", 5 * M + 512, ["backing_file=base.vmdk,backing_fmt=vmdk,zeroed_grain=on,compat6=on"]),
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
    for command in (["info"], ["info", "--output=json"], ["map"], ["map", "--output=json"]):
        ours, theirs = (tap.run([tool, *command, "-f", fmt, path]) for tool in (LODGE, "qemu-img"))
        if command[-1] == "--output=json":
            ours, theirs = json.loads(ours), json.loads(theirs)
        tap.check(ours == theirs, f"{command} differs:\n{ours}\n{theirs}")
    if fmt in ("vdi", "vmdk"):
        for tool in (LODGE, "qemu-img"):
            tap.run([tool, "check", "-f", fmt, path])
        ours, theirs = (json.loads(tap.run([tool, "check", "--output=json", "-f", fmt, path])) for tool in (LODGE, "qemu-img"))
        tap.check(ours == theirs, f"check differs:\n{ours}\n{theirs}")


def shape(maker, fmt, size, options):
    rng = random.Random(f"{SEED} {maker} {fmt} {options}")
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        folder = pathlib.Path(tmp)
        if fmt == "vmdk":
            create(maker, fmt, [], folder / "base.vmdk", size)
            io("qemu", folder / "base.vmdk", fmt, ["write -q -P 221 64k 3M", "write -q -P 222 4M 64k"])
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
             ("vpc", ["-o", "subformat=fixed,force_size=on"]),
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


def refused():
    with tempfile.TemporaryDirectory(prefix="lodge-foreign-") as tmp:
        path = pathlib.Path(tmp) / "image"
        path.write_text("precious")
        for fmt, options, word in (("vdi", ["-o", "cluster_size=1M"], "cluster_size"), ("vdi", ["-o", "static=maybe"], "static"),
                                   ("vdi", ["-u", "-b", "x", "-F", "raw"], "Backing"), ("vpc", ["-o", "subformat=sparse"], "sparse"),
                                   ("vpc", ["-u", "-b", "x", "-F", "raw"], "Backing"), ("vpc", ["-o", "static=on"], "static")):
            said = tap.run([LODGE, "create", "-q", "-f", fmt, *options, path, "1M"], 1)
            tap.check(word in said and path.read_text() == "precious", f"no '{word}' in: {said}")
        for fmt, size in (("vpc", "2041G"), ("vdi", "17T")):
            tap.check("size" in tap.run([LODGE, "create", "-q", "-f", fmt, path, size], 1), "size not refused")
        for fmt in ("vdi", "vpc"):
            create("qemu", fmt, [], path, "8M")
            said = tap.run([LODGE, "resize", "-f", fmt, path, "16M"], 1)
            tap.check("resize" in said and fmt in said, said)
        create("qemu", "vdi", [], path, "8M")
        with open(path, "r+b") as f:
            f.seek(0x4C)
            f.write(struct.pack("<I", 4))
        tap.check("differencing" in tap.run([LODGE, "info", path], 1), "not refused by name")


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
    tap.main(tests + [(f.__name__, f) for f in (sizes, convert, refused, repaired)])


if __name__ == "__main__":
    main()
