#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of a writer at random moments: the image opens, `qemu-img check` finds no corruption (leaks only), and every
write that was flushed is there.

usage: kill9.py LODGE_IMG [ROUNDS]     (50; LODGE_SEED=N repeats a run)
"""
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

BLOCK, BLOCKS = 12 * 1024, 1000  # not a multiple of most clusters: neighbours share clusters
SIZE = BLOCK * BLOCKS
SECTOR = 512
OPTIONS = ["", "cluster_size=4k", "lazy_refcounts=on", "cluster_size=2M", "cluster_size=512", "compat=0.10",
           "cluster_size=16k,refcount_bits=1", "cluster_size=4k,refcount_bits=64", "backed", "snapshot"]


def tool(*argv, expect=(0,)):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    if done.returncode not in expect:
        sys.exit(f"{' '.join(str(a) for a in argv)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done


def make(folder, options):
    image, initial = folder / "image", bytes(BLOCKS)
    if options == "backed":
        (folder / "base").write_bytes(b"\x07" * (SIZE // 2 // BLOCK * BLOCK))
        tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", image, SIZE)
        initial = b"\x07" * (BLOCKS // 2) + bytes(BLOCKS - BLOCKS // 2)
    else:
        plain = "cluster_size=4k" if options == "snapshot" else options
        tool("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", plain] if plain else []), image, SIZE)
    if options == "snapshot":
        tool("qemu-io", "-c", f"write -q -P 9 0 {300 * BLOCK}", image)
        tool("qemu-img", "snapshot", "-c", "one", image)
        initial = b"\x09" * 300 + bytes(BLOCKS - 300)
    return image, initial


def commands(rng):
    """Batches of (writes, lines): the writes as (block, value), then one flush each."""
    while True:
        writes, lines, taken = [], [], set()
        for _ in range(rng.choice([1, 4, 30])):
            block = rng.randrange(BLOCKS)
            if block in taken:
                continue  # in flight together they would be in no order
            taken.add(block)
            value = rng.choice([0, *range(1, 256)])
            if value == 0:
                lines.append(f"write -q -z {'-u ' if rng.random() < 0.5 else ''}{block * BLOCK} {BLOCK}")
            else:
                lines.append(f"{rng.choice(['aio_', ''])}write -q -P {value} {block * BLOCK} {BLOCK}")
            writes.append((block, value))
        yield writes, "\n".join([*lines, "aio_flush", "flush", "length"]) + "\n"


class Writer:
    def __init__(self, lodge, image, rng):
        self.sent, self.flushed = [], 0
        self.process = subprocess.Popen([lodge, "io", "-f", "qcow2", image], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.rng = rng
        self.noise = b""
        threading.Thread(target=self.read, daemon=True).start()
        self.feeder = threading.Thread(target=self.feed, daemon=True)
        self.feeder.start()

    def feed(self):
        try:
            for writes, text in commands(self.rng):
                self.sent.append(writes)
                self.process.stdin.write(text.encode())
                self.process.stdin.flush()
                while len(self.sent) - self.flushed > 3 and self.process.poll() is None:
                    time.sleep(0.0005)
        except (BrokenPipeError, ValueError):
            pass

    def read(self):
        for line in self.process.stdout:
            if line.endswith(b"iB\n"):  # what length says, once the flush before it is done
                self.flushed += 1
            else:
                self.noise += line

    def kill(self, delay):
        while self.flushed == 0 and self.process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        self.process.kill()
        self.process.wait()
        self.feeder.join(5)
        time.sleep(0.02)  # what it had written to the pipe
        if self.noise:
            sys.exit(f"the writer said: {self.noise[:500]}")


def acceptable(initial, sent, flushed):
    values = [{v} for v in initial]
    for number, writes in enumerate(sent):
        for block, value in writes:
            if number < flushed:
                values[block] = {value}
            else:
                values[block].add(value)
    return values


def verify(folder, image, values, what):
    tool("qemu-img", "check", image, expect=(0, 3))
    tool("qemu-img", "convert", "-O", "raw", image, folder / "flat")
    data = (folder / "flat").read_bytes()
    for block, allowed in enumerate(values):
        for at in range(block * BLOCK, (block + 1) * BLOCK, SECTOR):
            sector = data[at:at + SECTOR]
            if sector[0] not in allowed or sector != sector[:1] * SECTOR:
                sys.exit(f"{what}: byte {at} holds {sector[0]}, expected one of {sorted(allowed)[:20]}")


def main():
    lodge, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 50
    if not shutil.which("qemu-img"):
        print("SKIP: qemu-img is not installed")
        sys.exit(77)
    seed = int(os.environ.get("LODGE_SEED", random.randrange(1 << 30)))
    rng = random.Random(seed)
    flushes = leaks = 0
    for number in range(rounds):
        options = OPTIONS[number % len(OPTIONS)]
        with tempfile.TemporaryDirectory(prefix="lodge-kill9-") as tmp:
            folder = pathlib.Path(tmp)
            image, initial = make(folder, options)
            writer = Writer(lodge, image, random.Random(rng.random()))
            writer.kill(rng.random() * 0.15)
            flushes += writer.flushed
            leaks += tool(lodge, "check", "-q", image, expect=(0, 3)).returncode == 3
            values = acceptable(initial, writer.sent, writer.flushed)
            verify(folder, image, values, f"LODGE_SEED={seed}, round {number} ({options})")
            tool(lodge, "check", "-q", "-r", "leaks", image)
            tool("qemu-img", "check", image)
    print(f"{rounds} kills, {flushes} flushes, {leaks} images with leaks, no corruption")


if __name__ == "__main__":
    main()
