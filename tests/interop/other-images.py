#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""parallels beside qemu-img: what is read, mapped, described, converted, checked.

usage: other-images.py LODGE_IMG     (LODGE_SEED=N: the same run again)
"""
import functools
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
SEED = int(os.environ.get("LODGE_SEED", random.randrange(1 << 30)))
K, M = 1024, 1024 * 1024


def io(tool, path, fmt, commands, expect=0):
    argv = ["qemu-io"] if tool == "qemu" else [LODGE, "io"]
    for c in commands:
        argv += ["-c", c]
    return tap.run([*argv, "-f", fmt, path], expect)


def same_answers(path, fmt, check=False):
    """Both tools say the same about one file."""
    commands = [["info"], ["info", "--output=json"], ["map", "--output=json"]] + [["check"]] * check
    for command in commands:
        ours, theirs = (tap.run([tool, *command, "-f", fmt, path], None) for tool in (LODGE, "qemu-img"))
        if command[-1] == "--output=json":
            ours, theirs = json.loads(ours), json.loads(theirs)
        tap.check(ours == theirs, f"{command} differs:\n{ours}\n{theirs}")


def requests(rng, size, count):
    out = []
    for _ in range(count):
        offset = 512 * rng.randrange(size // 512)
        length = min(512 * rng.choice([1, 8, 129, 700, rng.randrange(1, 6000)]), size - offset)
        kind = rng.random()
        out.append(f"write -q -P {rng.randrange(1, 256)} {offset} {length}" if kind < 0.7 else
                   f"write -q -z {offset} {length}" if kind < 0.9 else "flush")
    return out


def parallels(maker, options, plain):
    """Random operations by both, on images of both; the older magic with clusters of 63 KiB."""
    rng = random.Random(f"{SEED} {maker} {options}")
    size = 5 * M + 512
    with tempfile.TemporaryDirectory(prefix="lodge-other-") as tmp:
        ours, theirs = pathlib.Path(tmp) / "ours", pathlib.Path(tmp) / "theirs"
        tap.run([maker, "create", "-q", "-f", "parallels", *options, ours, str(size)])
        if plain:
            image = bytearray(ours.read_bytes())
            image[:16] = b"WithoutFreeSpace"
            ours.write_bytes(image)
        same_answers(ours, "parallels", True)
        for _ in range(2):
            shutil.copy(ours, theirs)
            commands = requests(rng, size, 30)
            io("qemu", theirs, "parallels", commands)
            io("lodge", ours, "parallels", commands)
            for tool in ("qemu-img", LODGE):
                tap.run([tool, "compare", "-f", "parallels", "-F", "parallels", ours, theirs])
            same_answers(ours, "parallels", True)
            same_answers(theirs, "parallels", True)
            io("qemu", ours, "parallels", [f"write -q -P 7 {size - 512} 512"])
            io("lodge", ours, "parallels", [f"read -q -P 7 {size - 512} 512"])


def parallels_tools():
    """Conversions each way; what is refused, in QEMU's words; an image that was not closed."""
    with tempfile.TemporaryDirectory(prefix="lodge-other-") as tmp:
        raw, image, copy = (pathlib.Path(tmp) / n for n in ("raw", "image", "copy"))
        tap.run(["qemu-img", "create", "-q", "-f", "raw", raw, "7M"])
        io("qemu", raw, "raw", requests(random.Random(SEED), 7 * M, 12))
        for tool, other in ((LODGE, "qemu-img"), ("qemu-img", LODGE)):
            tap.run([tool, "convert", "-O", "parallels", "-f", "raw", raw, image])
            tap.run([other, "compare", "-f", "raw", "-F", "parallels", raw, image])
            tap.run([tool, "convert", "-f", "parallels", "-O", "qcow2", image, copy])
            tap.run([other, "compare", "-f", "raw", "-F", "qcow2", raw, copy])
            for options in ("cluster_size=0", "cluster_size=4G"):
                said = [tap.run([t, "create", "-q", "-f", "parallels", "-o", options, copy, "1M"], 1).split(":", 1)[1] for t in (tool, other)]
                tap.check(said[0] == said[1], str(said))
            with open(image, "r+b") as f:
                f.seek(44)
                f.write(struct.pack("<I", 0x746F6E59))
            said = [tap.run([t, "bench", "-w", "-c", "1", "-f", "parallels", image], 1) for t in (LODGE, "qemu-img")]
            tap.check(all("not closed correctly" in s for s in said), str(said))
            same_answers(image, "parallels", True)
            tap.run([tool, "check", "-r", "all", "-f", "parallels", image])
            tap.run([other, "check", "-f", "parallels", image])
        for mode in ("falloc", "truncate"):
            how = f"driver=parallels,file.filename={image},prealloc-mode={mode},prealloc-size=1M"
            tap.run([LODGE, "io", "--image-opts", "-c", "write -q -P 9 0 7M", how])
        tap.run(["qemu-io", "-f", "parallels", "-c", "read -q -P 9 0 7M", image])


def main():
    tap.need("qemu-img", "qemu-io")
    print(f"# LODGE_SEED={SEED}")
    shapes = [("1m", [], False), ("64k", ["-o", "cluster_size=64k"], False), ("plain", ["-o", "cluster_size=63k"], True)]
    tests = [(f"parallels-{'qemu' if m == 'qemu-img' else 'lodge'}-{n}", functools.partial(parallels, m, o, p))
             for n, o, p in shapes for m in ("qemu-img", LODGE)]
    tap.main(tests + [(f.__name__, f) for f in (parallels_tools,)])


if __name__ == "__main__":
    main()
