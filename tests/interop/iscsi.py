#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images on an iSCSI target: Debian's tgt in user space, on loopback; qemu-img and its module as the second opinion.

usage: iscsi.py LODGE_IMG MODULES
"""
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
if not (pathlib.Path(sys.argv[2]) / "lodge-disk-iscsi.so").exists():
    print("1..0 # SKIP the module lodge-disk-iscsi.so was not built (libiscsi)")
    sys.exit(0)
os.environ["PATH"] += ":/usr/sbin:/sbin"
os.environ["LODGE_MODULES"] = sys.argv[2]
tap.need("tgtd", "tgtadm")
if os.geteuid() != 0:
    print("1..0 # SKIP tgtd runs as root only")
    sys.exit(0)

folder = tempfile.TemporaryDirectory(prefix="lodge-iscsi-")
DIR = pathlib.Path(folder.name)
SIZE = 16 << 20
NAME = "iqn.2026-11.org.example:lodge"
CONTROL = str(10000 + os.getpid() % 20000)
rng = random.Random(3)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


PORT = free_port()
AT = f"iscsi://127.0.0.1:{PORT}/{NAME}"


def admin(*args):
    return tap.run(["tgtadm", "-C", CONTROL, "--lld", "iscsi", *args])


def start():
    server = subprocess.Popen(["tgtd", "-f", "-C", CONTROL, "--iscsi", f"portal=127.0.0.1:{PORT}"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    for _ in range(50):
        if subprocess.run(["tgtadm", "-C", CONTROL, "--lld", "iscsi", "--op", "show", "--mode", "sys"], capture_output=True,
                          check=False).returncode == 0:
            return server
        time.sleep(0.1)
    server.kill()
    print("1..0 # SKIP tgtd does not start here")
    sys.exit(0)


def add_unit(lun, *more):
    image = DIR / f"unit{lun}"
    image.write_bytes(bytes(SIZE))
    admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun), "-b", image, *more)
    return image


def test_raw():
    raw, back = DIR / "raw", DIR / "back"
    raw.write_bytes(rng.randbytes(3 << 20) + bytes(2 << 20) + rng.randbytes(SIZE - (5 << 20)))
    tap.run([LODGE, "convert", "-n", "-f", "raw", "-O", "raw", raw, f"{AT}/1"])
    tap.check(UNIT1.read_bytes() == raw.read_bytes(), "the unit has other bytes")
    tap.run([LODGE, "convert", "-f", "raw", "-O", "raw", f"{AT}/1", back])
    tap.check(back.read_bytes() == raw.read_bytes(), "read back, it differs")
    out = tap.run([LODGE, "info", "-f", "raw", f"{AT}/1"])
    tap.check(f"({SIZE} bytes)" in out, out)


def test_requests():
    """Many at once, and parts of blocks (unit 2 has blocks of 4096 bytes)."""
    for lun, unit in ((1, UNIT1), (2, UNIT2)):
        model = bytearray(unit.read_bytes())
        commands = []
        for place in range(40):
            at, length = place * 131072 + 512 * rng.randrange(100), 512 * rng.randrange(1, 120)
            pattern = rng.randrange(1, 256)
            zero = place % 7 == 0
            commands += ["-c", f"aio_write -q -z {at} {length}" if zero else f"aio_write -q -P {pattern} {at} {length}"]
            model[at:at + length] = bytes(length) if zero else bytes([pattern]) * length
        tap.run([LODGE, "io", "-f", "raw", *commands, "-c", "aio_flush", "-c", "flush", f"{AT}/{lun}"])
        tap.check(unit.read_bytes() == model, f"unit {lun} has other bytes")


def test_qcow2():
    url = f"{AT}/1"
    tap.run([LODGE, "create", "-q", "-f", "qcow2", url, "12M"])
    tap.run([LODGE, "io", "-f", "qcow2", "-c", "write -P 5 1M 2M", "-c", "write -P 6 10M 4k", url])
    out = tap.run([LODGE, "check", "-f", "qcow2", url])
    tap.check("No errors" in out, out)
    if QEMU:
        tap.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 5 1M 2M", "-c", "read -P 6 10M 4k", url])
        ours, theirs = (tap.run([t, "map", "--output=json", "-f", "qcow2", url]) for t in (LODGE, "qemu-img"))
        tap.check(ours == theirs, f"{ours}\n{theirs}")


def test_options():
    tree = f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{PORT},file.target={NAME},file.lun=2"
    tap.run([LODGE, "info", "--image-opts", tree + ",file.timeout=10,file.header-digest=crc32c-none"])
    for more, words in ((",file.header-digest=zip", "Invalid header-digest"), (",file.lun=9", "iSCSI"), (",file.zip=1", "zip")):
        out = tap.run([LODGE, "info", "--image-opts", tree + more], 1)
        tap.check(words in out, out)
    for url in ("iscsi://127.0.0.1/only-target", "iscsi:target", f"iscsi://127.0.0.1:1/{NAME}/1"):
        out = tap.run([LODGE, "info", url], 1)
        tap.check("iscsi" in out.lower(), out)


def test_end():
    out = tap.run([LODGE, "io", "-f", "raw", "-c", f"write {SIZE - 512} 1024", f"{AT}/1"], None)
    tap.check("fail" in out or "out of range" in out or "past" in out.lower() or "error" in out.lower(), out)


def test_chap():
    admin("--op", "new", "--mode", "account", "--user", "me", "--password", "open-sesame1")
    admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", "me")
    out = tap.run([LODGE, "info", f"{AT}/1"], 1)
    tap.check("iSCSI: Failed to connect to LUN" in out, out)
    tap.run([LODGE, "info", AT.replace("://", "://me%open-sesame1@") + "/1"])
    tree = f"driver=raw,file.driver=iscsi,file.portal=127.0.0.1:{PORT},file.target={NAME},file.lun=1,file.user=me,file.password-secret=p"
    tap.run([LODGE, "info", "--object", "secret,id=p,data=open-sesame1", "--image-opts", tree])
    tap.run([LODGE, "info", "--object", "secret,id=p,data=wrong-sesame1", "--image-opts", tree], 1)


SERVER = start()
try:
    admin("--op", "new", "--mode", "target", "--tid", "1", "-T", NAME)
    UNIT1 = add_unit(1)
    UNIT2 = add_unit(2, "--blocksize", "4096")
    admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
    QEMU = shutil.which("qemu-img") and subprocess.run(["qemu-img", "info", f"{AT}/1"], capture_output=True, check=False).returncode == 0
    tap.main([("raw, there and back", test_raw), ("requests", test_requests), ("qcow2 on a unit", test_qcow2),
              ("options", test_options), ("the end of the unit", test_end), ("CHAP", test_chap)])
finally:
    SERVER.kill()
    SERVER.wait()
