#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian to login and clean power-off on Lodge, from domain XML, on an overlay of the guest disk.

usage: debian.py VCPUS [--full]
Checks: login, DHCP lease, DNS; with --full a 200 MB file whose checksum is taken in the guest and verified from outside.
Afterwards the image passes `qemu-img check` and the guest's file system `e2fsck -fn`.
Exit status 77 (skipped) where the guest disk or a peer tool is missing.
"""
import hashlib
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
GUEST = BUILD / "guest"
sys.path.insert(0, str(ROOT / "scripts" / "guest"))
from session import Session, SessionError  # noqa: E402

NAME, ADDRESS = "answer.lodge.test", "192.0.2.77"
LIMIT_S = 900
MARKED = "LODGE_GUEST_TEST_ISOLATED"


def isolate():
    """Re-runs this test in mount and network namespaces of its own, whose resolver is our DNS server on loopback."""
    if os.environ.get(MARKED) or os.geteuid() != 0 or not shutil.which("unshare"):
        return bool(os.environ.get(MARKED))
    os.environ[MARKED] = "1"
    os.execvp("unshare", ["unshare", "--mount", "--net", "--", sys.executable, *sys.argv])
    return False


def start_dns(folder):
    resolv = os.path.join(folder, "resolv.conf")
    with open(resolv, "w") as f:
        f.write("nameserver 127.0.0.1\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", resolv, os.path.realpath("/etc/resolv.conf")], check=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    threading.Thread(target=serve_dns, args=(server,), daemon=True).start()


def serve_dns(server):
    """RFC 1035: one A record for NAME, no such name for the rest."""
    while True:
        query, peer = server.recvfrom(512)
        end = query.index(b"\0", 12) + 5
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode("latin1"))
            at += 1 + query[at]
        kind = struct.unpack(">H", query[end - 4:end - 2])[0]
        known = ".".join(labels).lower() == NAME
        answer = b""
        if known and kind == 1:
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(ADDRESS)
        flags = 0x8580 if known else 0x8583
        server.sendto(query[:2] + struct.pack(">HHHHH", flags, 1, 1 if answer else 0, 0, 0) + query[12:end] + answer, peer)


def domain(folder, vcpus, disk):
    """The example's domain with this disk and vCPU count."""
    example = ROOT / "docs" / "examples" / "debian.xml"
    tree = ET.parse(example)
    top = tree.getroot()
    top.find("vcpu").text = str(vcpus)
    top.find("devices/disk/source").set("file", disk)
    for tag in ("kernel", "initrd"):
        node = top.find(f"os/{tag}")
        node.text = str(GUEST / os.path.basename(node.text))
    path = os.path.join(folder, "debian.xml")
    tree.write(path)
    return path


def check(what, ok, detail=""):
    print(f"{'ok' if ok else 'not ok'} - {what}" + ("" if ok else f": {detail}"), flush=True)
    if not ok:
        raise SessionError(f"{what}: {detail}")


def in_guest(session, isolated, full):
    seconds = session.login()
    print(f"# login prompt after {seconds:.1f} s", flush=True)
    limit = 360 if not os.environ.get("LODGE_CHECK_LONG") else LIMIT_S
    check("login prompt within 6 minutes", seconds < limit, f"{seconds:.0f} s")
    lease, _ = session.run("for i in $(seq 60); do ip -4 -br addr show scope global | grep UP && break; sleep 1; done")
    check("DHCP lease", "10.0.2.15" in lease, lease)
    if isolated:
        answer, status = session.run(f"getent ahostsv4 {NAME} | head -1")
        check("DNS answer", status == 0 and ADDRESS in answer, answer)
        answer, status = session.run("getent ahostsv4 nothing.lodge.test")
        check("DNS refusal", status != 0, answer)
    cpus, _ = session.run("nproc")
    check("vCPU count", cpus.split()[-1] == sys.argv[1], cpus)
    if not full:
        return None
    digest, _ = session.run("dd if=/dev/urandom of=/root/big bs=1M count=200 conv=fsync status=none; sha256sum /root/big")
    match = re.search(r"\b([0-9a-f]{64})\b", digest)
    check("200 MB written", match is not None, digest)
    return match.group(1)


def check_image(folder, image, digest):
    done = subprocess.run(["qemu-img", "check", image], capture_output=True, text=True)
    check("qemu-img check", done.returncode == 0, done.stdout + done.stderr)
    raw = os.path.join(folder, "raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    table = subprocess.run(["sfdisk", "--dump", raw], capture_output=True, text=True, check=True).stdout
    start, size = max(((int(m[1]), int(m[2])) for m in re.finditer(r"start=\s*(\d+), size=\s*(\d+)", table)), key=lambda p: p[1])
    part = os.path.join(folder, "part")
    subprocess.run(["dd", f"if={raw}", f"of={part}", "bs=1M", f"skip={start * 512}", f"count={size * 512}", "status=none",
                    "iflag=skip_bytes,count_bytes", "conv=sparse"], check=True)
    done = subprocess.run(["e2fsck", "-fn", part], capture_output=True, text=True)
    check("e2fsck -fn", done.returncode == 0, done.stdout + done.stderr)
    if digest:
        big = os.path.join(folder, "big")
        subprocess.run(["debugfs", "-R", f"dump /root/big {big}", part], check=True, capture_output=True)
        with open(big, "rb") as f:
            outside = hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(f.read()).hexdigest()
        check("the file's checksum from outside", outside == digest, f"{outside}, in the guest {digest}")


def main():
    isolated = isolate()
    base = GUEST / "debian.qcow2"
    if not base.exists() or not all(shutil.which(t) for t in ("qemu-img", "e2fsck", "sfdisk", "debugfs")):
        print(f"skipped: {base} or a peer tool (qemu-img, e2fsck, sfdisk, debugfs) is missing")
        sys.exit(77)
    with tempfile.TemporaryDirectory(dir=os.environ.get("LODGE_TEST_TMP")) as folder:
        if isolated:
            start_dns(folder)
        image = os.path.join(folder, "overlay.qcow2")
        subprocess.run([BUILD / "src" / "bin" / "lodge-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image], check=True)
        qmp = os.path.join(folder, "qmp")
        session = Session([str(BUILD / "src" / "bin" / "lodge"), "run", domain(folder, int(sys.argv[1]), image), "--console", "stdio",
                           "--qmp", qmp], qmp, LIMIT_S)
        try:
            digest = in_guest(session, isolated, "--full" in sys.argv)
            status = session.powerdown()
            check("clean power-off", status == 0, f"exit status {status}\n{session.tail()}")
            check_image(folder, image, digest)
        except SessionError as e:
            sys.exit(f"not ok: {e}\n--- console ---\n{session.tail()}")
        finally:
            session.end()


if __name__ == "__main__":
    main()
