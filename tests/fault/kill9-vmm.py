#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 of the VMM at random moments while its guest writes: the image opens, `qemu-img check` finds no corruption
(leaks only), and every write that the guest had flushed is there.

usage: kill9-vmm.py LODGE_VMM GUEST_ELF [ROUNDS]     (50; LODGE_SEED repeats a run)
"""
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

BLOCK, BLOCKS, STRIDE = 4096, 16384, 7919  # as in tests/guest/images/blkwriter.c
SIZE = BLOCK * BLOCKS
OPTIONS = ["cluster_size=64k", "cluster_size=4k", "cluster_size=64k,lazy_refcounts=on", "cluster_size=2M", "cluster_size=512",
           "compat=0.10", "cluster_size=64k,refcount_bits=1", "cluster_size=64k,refcount_bits=64"]


def start(vmm, guest, image):
    return subprocess.Popen([vmm, "--memory", "64M", "--engine", "soft", "--kernel", guest, "--chardev", "stdio,id=c",
                             "--device", "debugcon,chardev=c", "--drive", f"qcow2,id=d,file={image}",
                             "--device", "virtio-blk,drive=d"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def run_and_kill(vmm, guest, image, delay_s):
    """Returns the last number that the guest saw flushed."""
    process = start(vmm, guest, image)
    text = b""
    while b"F" not in text.replace(b"FAIL", b""):
        data = os.read(process.stdout.fileno(), 4096)
        if not data or b"FAIL" in text + data:
            process.kill()
            sys.exit(f"the guest did not start: {(text + data).decode('latin1')}")
        text += data
    end = time.monotonic() + delay_s
    os.set_blocking(process.stdout.fileno(), False)
    while time.monotonic() < end:
        try:
            text += os.read(process.stdout.fileno(), 65536)
        except BlockingIOError:
            time.sleep(0.002)
    process.kill()
    process.wait()
    os.set_blocking(process.stdout.fileno(), True)
    text += process.stdout.read()
    if b"FAIL" in text:
        sys.exit(f"the guest failed: {text[-300:].decode('latin1')}")
    return int(re.findall(rb"F(\d+)\n", text)[-1])


def check(image):
    """qemu-img check; for a moment after the kill the kernel may still be finishing the dead process's io_uring requests."""
    for _ in range(50):
        done = subprocess.run(["qemu-img", "check", image], capture_output=True, text=True)
        if "lock" not in done.stderr:
            break
        time.sleep(0.05)
    return done


def verify(folder, image, flushed):
    done = check(image)
    if done.returncode not in (0, 3):  # 3: leaked clusters only
        return f"qemu-img check: status {done.returncode}: {done.stdout}{done.stderr}"
    raw = os.path.join(folder, "raw")
    done = subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], capture_output=True, text=True)
    if done.returncode:
        return f"the image does not open: {done.stderr}"
    least = {}
    for i in range(1, flushed + 1):
        least[i * STRIDE % BLOCKS] = i
    with open(raw, "rb") as f:
        for block, wanted in least.items():
            f.seek(block * BLOCK)
            words = struct.unpack("<1024I", f.read(BLOCK))
            if min(words) < wanted or any(w * STRIDE % BLOCKS != block for w in (words[0], words[-1])):
                return f"block {block}: {words[0]}..{words[-1]}, but write {wanted} had been flushed (last flush: {flushed})"
    return None


def main():
    if not shutil.which("qemu-img"):
        print("skipped: qemu-img is missing")
        sys.exit(77)
    vmm, guest = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 50
    seed = int(os.environ.get("LODGE_SEED", time.time_ns() & 0xffffffff))
    chance = random.Random(seed)
    print(f"# seed {seed}", flush=True)
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        for n in range(rounds):
            image = os.path.join(folder, "disk.qcow2")
            options = OPTIONS[n % len(OPTIONS)]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, str(SIZE)], check=True)
            flushed = run_and_kill(vmm, guest, image, chance.uniform(0, 0.3))
            problem = verify(folder, image, flushed)
            if problem:
                sys.exit(f"not ok: round {n + 1} ({options}), seed {seed}: {problem}")
            total += flushed
    print(f"ok: {rounds} kills, {total} writes flushed before them, none lost")


if __name__ == "__main__":
    main()
