#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""parallels, bochs, cloop, dmg and iso beside qemu-img: what is read, mapped, described, converted, checked.

usage: other-images.py LODGE_IMG     (LODGE_SEED=N: the same run again)
"""
import base64
import bz2
import functools
import json
import lzma
import os
import pathlib
import random
import shutil
import struct
import sys
import tempfile
import zlib

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


def content(rng, size):
    """Bytes that get smaller, with holes."""
    return b"".join(bytes(4096) if rng.random() < 0.3 else bytes([rng.randrange(256)]) * 3000 + rng.randbytes(1096)
                    for _ in range(size // 4096))


def make_cloop(disk, block):
    head = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n".ljust(128, b"\0")
    packed = [zlib.compress(disk[at:at + block]) for at in range(0, len(disk), block)]
    offsets, at = [], 136 + 8 * (len(packed) + 1)
    for p in [*packed, b""]:
        offsets.append(at)
        at += len(p)
    return head + struct.pack(">II", block, len(packed)) + b"".join(struct.pack(">Q", o) for o in offsets) + b"".join(packed)


def make_bochs(disk, extent, version):
    """Extents in the reverse order; sectors of zeroes are left out, extents of nothing else altogether."""
    extents = [disk[at:at + extent].ljust(extent, b"\0") for at in range(0, len(disk), extent)]
    bitmap = (extent // 512 + 7) // 8
    catalog, data = [0xFFFFFFFF] * len(extents), []
    for index, e in reversed(list(enumerate(extents))):
        if not any(e):
            continue
        bits = bytearray((bitmap + 511) // 512 * 512)
        for s in range(extent // 512):
            if any(e[512 * s:512 * s + 512]):
                bits[s // 8] |= 1 << s % 8
        catalog[index] = len(data)
        data.append(bytes(bits) + e)
    fields = struct.pack("<32s16s16sIIIII", b"Bochs Virtual HD Image", b"Redolog", b"Growing", version, 512, len(catalog), bitmap, extent)
    fields += struct.pack("<Q", len(disk)) if version == 0x10000 else struct.pack("<IQ", 0, len(disk))
    return fields.ljust(512, b"\0") + struct.pack(f"<{len(catalog)}I", *catalog) + b"".join(data)


PACKERS = {0x80000005: zlib.compress, 0x80000006: bz2.compress, 0x80000008: lzma.compress, 1: bytes}


def make_dmg(disk, chunk, types, plist, rng, padding=0):
    fork, entries = b"", b""
    for at in range(0, len(disk), chunk):
        piece = disk[at:at + chunk]
        kind = rng.choice(types) if any(piece) else rng.choice([0, 2])
        packed = PACKERS[kind](piece) if kind in PACKERS else b""
        entries += struct.pack(">IIQQQQ", kind, 0, at // 512, len(piece) // 512, len(fork), len(packed))
        fork += packed
    entries += struct.pack(">IIQQQQ", 0xFFFFFFFF, 0, len(disk) // 512, 0, len(fork), 0)
    mish = (b"mish" + struct.pack(">IQQQ", 1, 0, len(disk) // 512, 0)).ljust(204, b"\0") + entries
    if plist:
        what = b"<plist><dict><data>\n\t" + base64.encodebytes(mish).replace(b"\n", b"\n\t\t") + b"</data></dict></plist>"
    else:
        what = struct.pack(">IIII", 16, 16 + 4 + len(mish), 4 + len(mish), 0) + struct.pack(">I", len(mish)) + mish
    koly = bytearray(512)
    koly[:4] = b"koly"
    struct.pack_into(">QQ", koly, 0xD8 if plist else 0x28, len(fork), len(what))
    struct.pack_into(">Q", koly, 0x1EC, len(disk) // 512)
    return fork + what + bytes(koly) + bytes(padding)


def read_only():
    """Images that this test makes: both tools read the same, and what went in."""
    rng = random.Random(SEED)
    disk = content(rng, 3 * M)
    images = [("bochs", make_bochs(disk, 65536, 0x20000)), ("bochs", make_bochs(disk, 4096, 0x10000)),
              ("cloop", make_cloop(disk, 65536)), ("cloop", make_cloop(disk, 1536 * 512)),
              ("dmg", make_dmg(disk, 262144, [0x80000005, 1], True, rng)), ("dmg", make_dmg(disk, 4096, [0x80000005, 1], False, rng)),
              ("dmg", make_dmg(disk, 65536, [0x80000006, 1], False, rng)),
              ("dmg", make_dmg(disk, 262144, list(PACKERS), True, rng))]
    with tempfile.TemporaryDirectory(prefix="lodge-other-") as tmp:
        folder = pathlib.Path(tmp)
        (folder / "raw").write_bytes(disk)
        for number, (fmt, image) in enumerate(images):
            path = folder / f"{number}.{fmt}"
            path.write_bytes(image)
            tap.run([LODGE, "convert", "-O", "raw", path, folder / "copy"])
            tap.check((folder / "copy").read_bytes() == disk, f"{path.name}: not what went in")
            for command in (["info"], ["info", "--output=json"]):
                ours, theirs = (tap.run([tool, *command, path]) for tool in (LODGE, "qemu-img"))
                theirs = "".join(line for line in theirs.splitlines(True) if not line.startswith(("qemu: module", "qemu-img: warning")))
                tap.check(ours == theirs, f"{command} differs:\n{ours}\n{theirs}")
            # For chunks of bzip2 QEMU needs a module that may not be installed; lzma it does not know.
            if number < len(images) - 2:
                tap.run(["qemu-img", "compare", "-f", fmt, "-F", "raw", path, folder / "raw"])
            for target in ("qcow2", "vmdk"):
                tap.run([LODGE, "convert", "-f", fmt, "-O", target, path, folder / "copy"])
                tap.run(["qemu-img", "compare", "-f", "raw", "-F", target, folder / "raw", folder / "copy"])
            said = [tap.run([*t, "-f", fmt, "-c", "write 0 512", path], None) for t in ([LODGE, "io"], ["qemu-io"])]
            tap.check(all("read-only" in s for s in said), str(said))
            tap.run([LODGE, "create", "-q", "-f", fmt, folder / "new", "1M"], 1)


def iso():
    """An ISO 9660 image is raw."""
    with tempfile.TemporaryDirectory(prefix="lodge-other-") as tmp:
        path = pathlib.Path(tmp) / "image.iso"
        path.write_bytes(bytes(32768) + b"\1CD001\1".ljust(2048, b"\0") + b"\xffCD001\1".ljust(2048, b"\0") + bytes(40960))
        ours, theirs = (tap.run([tool, "info", path]) for tool in (LODGE, "qemu-img"))
        tap.check(ours == theirs and "raw" in ours, ours + theirs)
        tap.run([LODGE, "convert", path, path.with_suffix(".raw")])
        tap.check(path.read_bytes() == path.with_suffix(".raw").read_bytes(), "copied wrongly")


def main():
    tap.need("qemu-img", "qemu-io")
    print(f"# LODGE_SEED={SEED}")
    shapes = [("1m", [], False), ("64k", ["-o", "cluster_size=64k"], False), ("plain", ["-o", "cluster_size=63k"], True)]
    tests = [(f"parallels-{'qemu' if m == 'qemu-img' else 'lodge'}-{n}", functools.partial(parallels, m, o, p))
             for n, o, p in shapes for m in ("qemu-img", LODGE)]
    tap.main(tests + [(f.__name__, f) for f in (parallels_tools, read_only, iso)])


if __name__ == "__main__":
    main()
