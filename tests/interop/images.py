#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images of every shape made by qemu-img; the same random requests by lodge-img and by qemu-io; compared and checked.

usage: images.py LODGE_IMG     (LODGE_CHECK_LONG=1: many more requests; LODGE_SEED=N: the same run again)
"""
import functools
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
LONG = bool(os.environ.get("LODGE_CHECK_LONG"))
SEED = int(os.environ.get("LODGE_SEED", random.randrange(1 << 30)))
OPERATIONS, ROUNDS = (120, 6) if LONG else (25, 1)
K, M = 1024, 1024 * 1024

# name, size, -o options, what else: backed, chain, short, compressed, snapshot, filled
SHAPES = [
    ("v2", 8 * M, "compat=0.10", {}),
    ("v2-4k-backed", 4 * M, "compat=0.10,cluster_size=4k", {"backed"}),
    ("v2-compressed", 4 * M, "compat=0.10", {"compressed"}),
    ("v2-snapshot", 4 * M, "compat=0.10", {"snapshot"}),
    ("v3", 8 * M + 512, "", {}),
    ("v3-512", 1 * M, "cluster_size=512", {"filled"}),
    ("v3-512-backed-snapshot", 1 * M, "cluster_size=512", {"backed", "snapshot"}),
    ("v3-4k", 4 * M + 3 * K, "cluster_size=4k", {"filled"}),
    ("v3-2m", 20 * M, "cluster_size=2M", {"backed"}),
    ("v3-2m-snapshot", 12 * M, "cluster_size=2M", {"filled", "snapshot"}),
    ("bits-1", 4 * M, "refcount_bits=1,cluster_size=4k", {"filled"}),
    ("bits-2", 4 * M, "refcount_bits=2,cluster_size=1k", {"snapshot"}),
    ("bits-4", 4 * M, "refcount_bits=4", {"compressed"}),
    ("bits-8", 4 * M, "refcount_bits=8,cluster_size=8k", {"snapshot", "filled"}),
    ("bits-32", 4 * M, "refcount_bits=32,cluster_size=512", {"backed"}),
    ("bits-64", 4 * M, "refcount_bits=64,cluster_size=512", {"filled", "snapshot"}),
    ("backed", 6 * M, "", {"backed"}),
    ("backed-short", 6 * M, "cluster_size=16k", {"backed", "short"}),
    ("chain", 6 * M, "", {"chain"}),
    ("chain-snapshot", 6 * M, "cluster_size=4k", {"chain", "snapshot"}),
    ("zlib", 4 * M, "", {"compressed", "snapshot"}),
    ("zlib-4k", 4 * M, "cluster_size=4k", {"compressed"}),
    ("zstd", 4 * M, "compression_type=zstd", {"compressed"}),
    ("zstd-backed", 4 * M, "compression_type=zstd,cluster_size=32k", {"compressed", "backed"}),
    ("lazy", 4 * M, "lazy_refcounts=on", {"filled"}),
    ("metadata", 8 * M, "preallocation=metadata", {}),
    ("falloc", 4 * M, "preallocation=falloc,cluster_size=4k", {}),
    ("extended", 8 * M, "extended_l2=on", {"backed", "snapshot"}),
    ("extended-16k", 6 * M + 512, "extended_l2=on,cluster_size=16k", {"filled"}),
    ("extended-zstd", 8 * M, "extended_l2=on,cluster_size=32k,compression_type=zstd", {"compressed", "backed", "snapshot"}),
    ("extended-metadata", 8 * M, "extended_l2=on,preallocation=metadata", {"backed"}),
    ("data-file", 8 * M, "data_file=DATA", {"backed"}),
    ("data-file-raw", 4 * M, "data_file=DATA,data_file_raw=on,cluster_size=4k", {}),
    ("data-file-extended", 8 * M, "data_file=DATA,extended_l2=on,cluster_size=32k", {"backed"}),
    ("raw", 4 * M, None, {}),
]


def qemu_io(path, fmt, commands, expect=0):
    argv = ["qemu-io", "-d", "unmap", "-f", fmt]
    for c in commands:
        argv += ["-c", c]
    return tap.run(argv + [path], expect)


def lodge_io(path, fmt, commands, expect=0, extra=()):
    argv = [LODGE, "io", "-f", fmt, *extra]
    for c in commands:
        argv += ["-c", c]
    return tap.run(argv + [path], expect)


def requests(rng, size, count, discards):
    """Requests whose result both tools must agree on."""
    out = []
    for _ in range(count):
        kind = rng.random()
        length = 512 * rng.choice([1, 1, 3, 8, 8, 128, 129, 700, rng.randrange(1, 3000)])
        offset = 512 * rng.randrange(size // 512)
        length = min(length, size - offset)
        if kind < 0.6:
            out.append(f"write -q -P {rng.randrange(1, 256)} {offset} {length}")
        elif kind < 0.75:
            out.append(f"write -q -z {offset} {length}")
        elif kind < 0.88:
            out.append(f"write -q -z -u {offset} {length}")
        elif kind < 0.95 and discards:
            out.append(f"discard -q {offset} {length}")
        else:
            out.append("flush" if rng.random() < 0.5 else f"read -q {offset} {length}")
    return out


def make(folder, rng, size, options, features):
    """The image 'image' in @folder with its chain, by QEMU's tools."""
    fmt = "raw" if options is None else "qcow2"
    path = folder / "image"
    if fmt == "raw":
        tap.run(["qemu-img", "create", "-q", "-f", "raw", path, str(size)])
        return fmt
    backing = []
    if features & {"backed", "chain"}:
        base_size = size // 2 - 3 * 512 if "short" in features else size
        tap.run(["qemu-img", "create", "-q", "-f", "raw", folder / "base", str(base_size)])
        qemu_io(folder / "base", "raw", requests(rng, base_size, 8, False))
        backing = ["-b", "base", "-F", "raw"]
    if "chain" in features:
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=8k", *backing, folder / "middle", str(size)])
        qemu_io(folder / "middle", "qcow2", requests(rng, size, 8, True))
        backing = ["-b", "middle", "-F", "qcow2"]
    opts = ["-o", options.replace("DATA", f"{folder}/data-1")] if options else []
    if "compressed" in features:
        tap.run(["qemu-img", "create", "-q", "-f", "raw", folder / "content", str(size)])
        qemu_io(folder / "content", "raw", requests(rng, size, 10, False))
        tap.run(["qemu-img", "convert", "-c", "-O", "qcow2", *opts, folder / "content", path])
        if backing:
            tap.run(["qemu-img", "rebase", "-u", *backing, "-f", "qcow2", path])
    else:
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", *opts, *backing, path, str(size)])
    if features & {"filled", "snapshot"}:
        qemu_io(path, fmt, requests(rng, size, 12, "compat=0.10" not in options))
    if "snapshot" in features:
        tap.run(["qemu-img", "snapshot", "-c", "one", path])
        qemu_io(path, fmt, requests(rng, size, 4, False))
    return fmt


def flat(folder, name, *snapshot):
    """The content as qemu-img reads it."""
    out = folder / f"flat-{name}"
    tap.run(["qemu-img", "convert", *snapshot, "-O", "raw", folder / name, out])
    data = out.read_bytes()
    out.unlink()
    return data


def shape(name, size, options, features):
    features = set(features)
    rng = random.Random(f"{SEED} {name}")
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        folder = pathlib.Path(tmp)
        fmt = make(folder, rng, size, options, features)
        snapshot = flat(folder, "image", "-l", "one") if "snapshot" in features else None
        shutil.copy(folder / "image", folder / "ours")
        if "data_file" in (options or ""):
            shutil.copy(folder / "data-1", folder / "data-2")
            at = (folder / "ours").read_bytes().index(b"/data-1")
            patched(folder / "ours", at, b"/data-2")
        discards = fmt == "qcow2" and not ("compat=0.10" in options and features & {"backed", "chain"})
        for number in range(ROUNDS):
            commands = requests(rng, size, OPERATIONS, discards)
            qemu_io(folder / "image", fmt, commands)
            extra = ["-n"] if number % 3 == 2 else []
            lodge_io(folder / "ours", fmt, commands, extra=extra)
            tap.run(["qemu-img", "compare", "-f", fmt, "-F", fmt, folder / "image", folder / "ours"])
            tap.run([LODGE, "compare", "-f", fmt, "-F", fmt, folder / "image", folder / "ours"])
            if "data_file_raw" in (options or ""):
                tap.run(["qemu-img", "compare", "-f", "raw", "-F", fmt, folder / "data-2", folder / "ours"])
            if fmt == "qcow2":
                tap.run(["qemu-img", "check", "-f", fmt, folder / "ours"])
                tap.run([LODGE, "check", "-f", fmt, folder / "ours"])
                tap.run([LODGE, "check", "-f", fmt, folder / "image"])
        if snapshot is not None:
            tap.check(flat(folder, "ours", "-l", "one") == snapshot, "the snapshot's content has changed")
        convert(folder, fmt)


def convert(folder, fmt):
    """What lodge-img convert writes is what qemu-img reads, and the other way round."""
    for target, options in (("raw", []), ("qcow2", ["-c"]), ("qcow2", ["-o", "cluster_size=4k,compat=0.10"]),
                            ("qcow2", ["-c", "-o", "compression_type=zstd"])):
        tap.run([LODGE, "convert", "-f", fmt, "-O", target, *options, folder / "ours", folder / "copy"])
        tap.run(["qemu-img", "compare", "-f", fmt, "-F", target, folder / "ours", folder / "copy"])
        if target == "qcow2":
            tap.run(["qemu-img", "check", folder / "copy"])


def created():
    """Images that lodge-img makes: clean for QEMU, and described alike by both."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        folder = pathlib.Path(tmp)
        (folder / "base").write_bytes(b"base" * 300000)
        for options in ([], ["-o", "compat=0.10"], ["-o", "cluster_size=512"], ["-o", "cluster_size=2M"],
                        ["-o", "refcount_bits=1"], ["-o", "refcount_bits=64,cluster_size=512"],
                        ["-o", "lazy_refcounts=on"], ["-o", "compression_type=zstd"],
                        ["-o", "preallocation=metadata"], ["-o", "extended_l2=on"],
                        ["-o", "extended_l2=on,cluster_size=16k", "-b", "base", "-F", "raw"],
                        ["-o", f"data_file={tmp}/data"], ["-o", f"data_file={tmp}/data,data_file_raw=on"],
                        ["-b", "base", "-F", "raw"],
                        ["-b", "base", "-F", "raw", "-o", "cluster_size=512"]):
            path = folder / "image"
            tap.run([LODGE, "create", "-q", "-f", "qcow2", *options, path, "40M"])
            tap.run(["qemu-img", "check", path])
            ours = json.loads(tap.run([LODGE, "info", "--output=json", path]))
            theirs = json.loads(tap.run(["qemu-img", "info", "--output=json", path]))
            tap.check(ours == theirs, f"{options}: info differs:\n{ours}\n{theirs}")
            tap.check(tap.run([LODGE, "info", path]) == tap.run(["qemu-img", "info", path]), f"{options}: info differs")
            qemu_io(path, "qcow2", ["write -P 1 1M 3M", "write -z 2M 64k"])
            for kind in ("json", "human"):
                if "preallocation=metadata" in options:
                    continue  # only QEMU looks for holes of the file within allocated clusters
                ours = tap.run([LODGE, "map", f"--output={kind}", path])
                theirs = tap.run(["qemu-img", "map", f"--output={kind}", path])
                tap.check(ours == theirs, f"{options}: map differs:\n{ours}\n{theirs}")
            a = json.loads(tap.run([LODGE, "check", "--output=json", path]))
            b = json.loads(tap.run(["qemu-img", "check", "--output=json", path]))
            tap.check(a == b, f"{options}: check differs:\n{a}\n{b}")
            path.unlink()


def resized():
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M"])
        qemu_io(path, "qcow2", ["write -q -P 5 0 1M"])
        for size in ("+1M", "100M", "+5G"):
            tap.run([LODGE, "resize", path, size])
            tap.run(["qemu-img", "check", path])
        lodge_io(path, "qcow2", ["write -P 6 5G 64k"])
        qemu_io(path, "qcow2", ["read -P 5 0 1M", "read -P 0 1M 2M", "read -P 6 5G 64k"])
        tap.run(["qemu-img", "check", path])
        tap.run([LODGE, "resize", path, "1M"], 1)
        for size in ("3G", "700k", "512"):
            tap.run([LODGE, "resize", "-q", "--shrink", path, size])
            tap.run(["qemu-img", "check", path])
            qemu_io(path, "qcow2", ["read -P 5 0 512"])
        for mode in ("metadata", "falloc", "full"):
            tap.run([LODGE, "resize", "-q", f"--preallocation={mode}", path, "+1M"])
            tap.run(["qemu-img", "check", path])
        qemu_io(path, "qcow2", ["read -P 5 0 512", "read -P 0 512 3M"])


def bad_options():
    """A new image that cannot be leaves the file of that name alone."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"
        path.write_text("precious")
        for fmt, options, word in (("qcow2", ["-o", "cluster_size=1000"], "Cluster size"),
                                   ("qcow2", ["-o", "refcount_bits=3"], "Refcount width"),
                                   ("qcow2", ["-o", "compat=0.10,refcount_bits=8"], "1.1"),
                                   ("qcow2", ["-o", "compression_type=lzma"], "lzma"),
                                   ("qcow2", ["-o", "encryption=on"], "key-secret"),
                                   ("qcow2", ["-o", "data_file_raw=on"], "data-file-raw requires data-file"),
                                   ("qcow2", ["-o", "data_file=x,compat=0.10"], "External data files"),
                                   ("qcow2", ["-o", "preallocation=some"], "some"),
                                   ("qcow2", ["-b", "nowhere", "-F", "raw"], "nowhere"),
                                   ("qcow2", ["-b", path], "same filename"),
                                   ("raw", ["-o", "cluster_size=4k"], "cluster_size"),
                                   ("raw", ["-u", "-b", "x", "-F", "raw"], "Backing file not supported"),
                                   ("bochs", [], "bochs"),
                                   ("qcow2", ["-o", "extended_l2=on,cluster_size=8k"], "at least 16384 bytes"),
                                   ("qcow2", ["-o", "extended_l2=on,compat=0.10"], "level 1.1 and above")):
            said = tap.run([LODGE, "create", "-q", "-f", fmt, *options, path, "1M"], 1)
            tap.check(word in said, f"no '{word}' in: {said}")
            tap.check(path.read_text() == "precious", f"{options}: the file was overwritten")
        for argv in (["snapshot", "-a", "x", path], ["rebase", path], ["info", "--image-opts", path], ["nonsense"], []):
            tap.run([LODGE, *argv], 1)


def patched(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def refused():
    """What is not supported is refused by its name."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"

        def refusal(word, *options):
            said = tap.run([LODGE, "io", "-r", "-c", "length", path], 1)
            tap.check(word in said and str(path) in said, f"no '{word}' in: {said}")
            path.unlink()

        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
        patched(path, 32, struct.pack(">I", 2))
        refusal("CRYPTO header")
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
        patched(path, 72, struct.pack(">Q", 1 << 20))
        refusal("Unknown incompatible feature: 100000")
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
        patched(path, 72, struct.pack(">Q", 1 << 20))
        at = path.read_bytes().index(b"dirty bit") - 2
        patched(path, at, bytes([0, 20]) + b"time travel\0")
        refusal("time travel")
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
        patched(path, 4, struct.pack(">I", 4))
        refusal("version 4")
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
        patched(path, 40, struct.pack(">Q", 1 << 40))
        refusal("L1 table")


def chains():
    """Loops, missing and over-long chains."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        folder = pathlib.Path(tmp)
        for name, base in (("a", "b"), ("b", "a")):
            tap.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", folder / name, "1M"])
        said = tap.run([LODGE, "io", "-r", "-c", "length", folder / "a"], 1)
        tap.check("loops" in said, said)
        tap.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "none", "-F", "raw", folder / "c", "1M"])
        said = tap.run([LODGE, "io", "-r", "-c", "length", folder / "c"], 1)
        tap.check("none" in said and "c" in said, said)
        for i in range(140):
            base = ["-b", f"n{i - 1}", "-F", "qcow2"] if i else []
            tap.run([LODGE, "create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", *base, folder / f"n{i}", "1M"])
        said = tap.run([LODGE, "io", "-r", "-c", "length", folder / "n139"], 1)
        tap.check("longer than" in said, said)
        tap.run([LODGE, "io", "-r", "-c", "read -P 0 0 1M", folder / "n120"])


def dirty_and_corrupt():
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "8M"])
        qemu_io(path, "qcow2", ["write -q -P 9 1M 2M", "flush", "abort"], None)
        tap.check(json.loads(tap.run([LODGE, "info", "--output=json", path]))["dirty-flag"], "the image is not dirty")
        lodge_io(path, "qcow2", ["read -P 9 1M 2M", "write -P 8 4M 64k"])
        tap.run(["qemu-img", "check", path])
        qemu_io(path, "qcow2", ["read -P 9 1M 2M", "read -P 8 4M 64k"])
        patched(path, 72, struct.pack(">Q", 2))
        lodge_io(path, "qcow2", ["read -P 9 1M 2M"], extra=["-r"])
        said = lodge_io(path, "qcow2", ["length"], 1)
        tap.check("marked corrupt" in said, said)
        tap.run([LODGE, "check", "-r", "all", path])
        lodge_io(path, "qcow2", ["write -P 7 4M 64k"])


def repairs():
    """Broken refcounts: found with qemu-img's exit codes, repaired to qemu-img's satisfaction."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"
        for broken, offset, data, status in (
                ("leak", 131072 + 2 * 30, struct.pack(">H", 1), 3),
                ("shared", 131072 + 2 * 5, struct.pack(">H", 2), 2),
                ("lost", 131072 + 2 * 6, struct.pack(">H", 0), 2),
                ("block", 65536, struct.pack(">Q", 0), 2),
                ("block-elsewhere", 65536, struct.pack(">Q", 0x50000), 2)):
            tap.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"])
            qemu_io(path, "qcow2", ["write -q -P 9 1M 1M"])
            os.truncate(path, 40 * 65536)
            patched(path, offset, data)
            tap.run([LODGE, "check", path], status)
            tap.run(["qemu-img", "check", path], status)
            tap.run([LODGE, "check", "-r", "all", path])
            tap.run(["qemu-img", "check", path])
            qemu_io(path, "qcow2", ["read -P 9 1M 1M", "write -q -P 8 3M 1M", "read -P 9 1M 1M"])
            lodge_io(path, "qcow2", ["read -P 9 1M 1M", "write -q -P 8 5M 1M", "read -P 8 3M 1M"])
            tap.run(["qemu-img", "check", path])


def queued():
    """Many requests in flight, on io_uring and on threads, with and without O_DIRECT."""
    for uring in ("1", "0"):
        for extra in ([], ["-n"]):
            with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
                path = pathlib.Path(tmp) / "image"
                tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", path, "64M"])
                rng = random.Random(SEED)
                lines, model = [], {}
                for i in range(1500):
                    block = rng.randrange(1000)
                    if i % 250 == 249:
                        lines.append("aio_fsync -q")
                    if block in model:
                        lines.append("aio_flush")
                        lines.append(f"aio_read -q -P {model[block]} {block * 12288} 12288")
                        lines.append("aio_flush")
                    model[block] = rng.randrange(1, 256)
                    lines.append(f"aio_write -q -P {model[block]} {block * 12288} 12288")
                lines += ["aio_flush"] + [f"read -q -P {v} {k * 12288} 12288" for k, v in model.items()]
                done = subprocess.run([LODGE, "io", *extra, str(path)], input="\n".join(lines) + "\n", text=True,
                                      env={**os.environ, "LODGE_IO_URING": uring}, capture_output=True, timeout=60)
                tap.check(done.returncode == 0, done.stdout[-2000:] + done.stderr)
                tap.run(["qemu-img", "check", path])
                qemu_io(path, "qcow2", [f"read -q -P {v} {k * 12288} 12288" for k, v in list(model.items())[:200]])


def encrypted():
    """LUKS and AES inside qcow2: made by either, written by both, read alike."""
    secret = ["--object", "secret,id=s,data=abc"]
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        path = pathlib.Path(tmp) / "image"
        opened = f"driver=qcow2,file.filename={path},encrypt.key-secret=s"
        luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        for options in (luks, luks + ",cluster_size=512", luks + ",extended_l2=on,preallocation=full",
                        luks + f",data_file={tmp}/data", "encrypt.format=aes,encrypt.key-secret=s"):
            for maker in (LODGE, "qemu-img"):
                tap.run([maker, "create", "-q", *secret, "-f", "qcow2", "-o", options, path, "5M"])
                tap.run([LODGE, "io", *secret, "--image-opts", "-c", "write -q -P 1 0 700k", "-c", "write -q -P 2 1M 512",
                         "-c", "write -q -z 100k 64k", "-c", "write -q -P 4 2000003 1111", opened])
                tap.run(["qemu-io", *secret, "--image-opts", "-c", "write -q -P 5 3M 100k", "-c", "write -q -P 6 300k 5k", opened])
                reads = ["read -P 1 0 100k", "read -P 0 100k 64k", "read -P 2 1M 512", "read -P 4 2000003 1111",
                         "read -P 5 3M 100k", "read -P 6 300k 5k", "read -P 1 310k 100k"]
                for reader in (["qemu-io"], [LODGE, "io"]):
                    said = tap.run([*reader, *secret, "--image-opts", *(x for r in reads for x in ("-c", r)), opened])
                    tap.check("verification failed" not in said, said)
                for checker in (LODGE, "qemu-img"):
                    tap.run([checker, "check", "-q", *secret, "--image-opts", opened])
                tap.check(tap.run([LODGE, "info", path]) == tap.run(["qemu-img", "info", path]), f"{options}: info differs")
                said = tap.run([LODGE, "io", "-r", "-c", "read 0 512", path], 1)
                tap.check("encrypt.key-secret" in said, said)


def forged():
    """A guest's write does not turn a raw base, known by probing only, into an image of another format."""
    with tempfile.TemporaryDirectory(prefix="lodge-images-") as tmp:
        base, top, trap = (f"{tmp}/{name}" for name in ("base", "top", "trap"))
        pathlib.Path(base).write_bytes(bytes(1 << 20))
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", trap, "1M"])
        for tool in ("qemu-img", LODGE):
            tap.run(["qemu-img", "create", "-q", "-f", "qcow", "-b", base, "-F", "raw", top])
            tap.run(["qemu-io", "-f", "qcow", "-c", f"write -q -s {trap} 0 64k", top])
            said = tap.run([tool, "commit", "-f", "qcow", top], 1)
            tap.check("Operation not permitted" in said, said)
            tap.check("file format: raw" in tap.run([LODGE, "info", base]), f"{tool}: the base is another image now")


def main():
    tap.need("qemu-img", "qemu-io")
    print(f"# LODGE_SEED={SEED}")
    tests = [("shape-" + s[0], functools.partial(shape, *s)) for s in SHAPES]
    tests += [(f.__name__, f) for f in (created, bad_options, resized, refused, chains, dirty_and_corrupt, repairs, queued, encrypted, forged)]
    tap.main(tests)


if __name__ == "__main__":
    main()
