#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images on an NFS server: Debian's nfs-ganesha in user space, on loopback.

usage: nfs.py LODGE_IMG MODULES
"""
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
if not (pathlib.Path(sys.argv[2]) / "lodge-disk-nfs.so").exists():
    print("1..0 # SKIP the module lodge-disk-nfs.so was not built (libnfs)")
    sys.exit(0)
os.environ["PATH"] += ":/usr/sbin:/sbin"
os.environ["LODGE_MODULES"] = sys.argv[2]
tap.need("ganesha.nfsd", "rpcbind", "unshare", "ip")
INSIDE = "LODGE_NFS_INSIDE"
SETUP = "ip link set lo up && mount -t tmpfs run /run && mkdir /run/ganesha /run/rpcbind && exec "


def enter():
    """This script again, in a network and a /run of its own: the port mapper's place is the same for all."""
    alone = ["unshare", "--net", "--mount", "sh", "-c"]
    if os.geteuid() != 0 or subprocess.run([*alone, SETUP + "true"], capture_output=True, check=False).returncode != 0:
        print("1..0 # SKIP no network namespace can be made here (root is needed)")
        sys.exit(0)
    os.environ[INSIDE] = "1"
    os.execvp("unshare", [*alone, SETUP + '"$@"', "sh", sys.executable, *sys.argv])


if INSIDE not in os.environ:
    enter()

folder = tempfile.TemporaryDirectory(prefix="lodge-nfs-")
DIR = pathlib.Path(folder.name)
EXPORT = DIR / "export"
EXPORT.mkdir()
SIZE = 8 << 20
rng = random.Random(5)
PORT, MOUNT_PORT = 20490, 20491  # nobody else is in this network

CONFIG = f"""
NFS_CORE_PARAM {{ NFS_Port = {PORT}; MNT_Port = {MOUNT_PORT}; Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false;
                  Enable_UDP = false; }}
EXPORT {{ Export_Id = 7; Path = {EXPORT}; Pseudo = /images; Access_Type = RW; Squash = none; SecType = sys; Protocols = 3;
          FSAL {{ Name = VFS; }} }}
"""


def url(name, more=""):
    return f"nfs://127.0.0.1{EXPORT}/{name}{more}"


MAPPER = []


def stop(server):
    for process in (server, *MAPPER):
        process.kill()
        process.wait()


def start():
    (DIR / "conf").write_text(CONFIG)
    MAPPER.append(subprocess.Popen(["rpcbind", "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    time.sleep(0.3)
    server = subprocess.Popen(["ganesha.nfsd", "-F", "-L", DIR / "log", "-f", DIR / "conf", "-p", DIR / "pid", "-N", "EVENT"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (EXPORT / "probe").write_bytes(bytes(4096))
    for _ in range(40):
        if server.poll() is not None:
            break
        if subprocess.run([LODGE, "info", "-f", "raw", url("probe")], capture_output=True, check=False).returncode == 0:
            return server
        time.sleep(0.2)
    stop(server)
    print("1..0 # SKIP ganesha.nfsd does not serve a folder here")
    sys.exit(0)


def test_raw():
    raw, back = DIR / "raw", DIR / "back"
    raw.write_bytes(rng.randbytes(3 << 20) + bytes(2 << 20) + rng.randbytes(SIZE - (5 << 20)))
    tap.run([LODGE, "convert", "-f", "raw", "-O", "raw", raw, url("raw")])
    tap.check((EXPORT / "raw").read_bytes() == raw.read_bytes(), "the server has other bytes")
    tap.run([LODGE, "convert", "-f", "raw", "-O", "raw", url("raw"), back])
    tap.check(back.read_bytes() == raw.read_bytes(), "read back, it differs")


def test_requests():
    path = EXPORT / "requests"
    model = bytearray(rng.randbytes(SIZE))
    path.write_bytes(model)
    commands = []
    for place in range(40):
        at, length = place * 131072 + 512 * rng.randrange(100), 512 * rng.randrange(1, 120)
        pattern, zero = rng.randrange(1, 256), place % 7 == 0
        commands += ["-c", f"aio_write -q -z {at} {length}" if zero else f"aio_write -q -P {pattern} {at} {length}"]
        model[at:at + length] = bytes(length) if zero else bytes([pattern]) * length
    tap.run([LODGE, "io", "-f", "raw", *commands, "-c", "aio_flush", "-c", "flush", url("requests")])
    tap.check(path.read_bytes() == model, "the server has other bytes")


def test_qcow2():
    tap.run([LODGE, "create", "-q", "-f", "qcow2", url("disk"), "64M"])
    tap.run([LODGE, "io", "-f", "qcow2", "-c", "write -P 5 1M 2M", "-c", "write -P 6 60M 4k", url("disk")])
    tap.run([LODGE, "resize", "-q", "-f", "qcow2", url("disk"), "80M"])
    tap.run(["qemu-img", "check", "-q", EXPORT / "disk"])
    tap.run(["qemu-io", "-f", "qcow2", "-c", "read -P 5 1M 2M", "-c", "read -P 6 60M 4k", "-c", "read -P 0 79M 4k", EXPORT / "disk"])
    out = tap.run([LODGE, "info", url("disk")])
    tap.check("virtual size: 80 MiB" in out, out)


def test_options():
    tree = f"driver=raw,file.driver=nfs,file.server.host=127.0.0.1,file.server.type=inet,file.path={EXPORT}/probe"
    tap.run([LODGE, "info", "--image-opts", tree + ",file.user=0,file.group=0,file.readahead-size=65536"])
    for more, words in ((",file.debug=9", "at most"), (",file.zip=1", "zip"), (",file.user=x", "number")):
        out = tap.run([LODGE, "info", "--image-opts", tree + more], 1)
        tap.check(words in out, out)
    for bad, words in ((url("none"), "none"), (url("probe", "?zip=1"), "Unknown NFS parameter name: zip"), ("nfs:///x", "hostname"),
                       ("nfs://host", "path")):
        out = tap.run([LODGE, "info", bad], 1)
        tap.check(words in out, out)


tap.need("qemu-img", "qemu-io")
SERVER = start()
try:
    tap.main([("raw, there and back", test_raw), ("requests", test_requests), ("qcow2, made and grown", test_qcow2), ("options", test_options)])
finally:
    stop(SERVER)
