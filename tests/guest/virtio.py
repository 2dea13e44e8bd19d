#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Linux's own virtio drivers against Lodge's devices: disk, network, console ports, entropy, balloon.

Debian's kernel with a busybox initramfs, while QMP stops and continues the machine again and again.
Exit status 77 (skipped) where the kernel cannot be had or a peer tool is missing.
"""
import hashlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
MODULES = "virtio_pci,virtio_blk,virtio_net,virtio_console,virtio-rng,virtio_balloon,ext4,crc32c_generic"
LIMIT_S = 600
MEMORY = 256 << 20


def make_initrd(folder):
    initrd = os.path.join(folder, "initrd")
    done = subprocess.run([ROOT / "scripts/guest/make-initrd", "--folder", BUILD / "guest", "--output", initrd, "--script",
                           ROOT / "tests/guest/virtio.sh", "--modules", MODULES], capture_output=True, text=True)
    if done.returncode:
        print("skipped: " + done.stderr.strip())
        sys.exit(77)
    return initrd


def make_disk(folder):
    known = random.Random(1).randbytes(5 << 20)
    tree = os.path.join(folder, "tree")
    os.mkdir(tree)
    with open(os.path.join(tree, "known"), "wb") as f:
        f.write(known)
    raw, image = os.path.join(folder, "raw"), os.path.join(folder, "disk.qcow2")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", tree, raw, "128M"], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    os.unlink(raw)
    return image, hashlib.md5(known).hexdigest()


def serve(payload):
    """Sends @payload to whoever connects; returns the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def run():
        while True:
            peer = server.accept()[0]
            with peer:
                peer.sendall(payload)
    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


class Qmp:
    def __init__(self, path):
        self.lock, self.events = threading.Lock(), []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        with self.lock:
            self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self.file.flush()
            while True:
                answer = json.loads(self.file.readline())
                if "event" in answer:
                    self.events.append(answer["event"])
                    continue
                return answer["return"]


def disturb(qmp, done):
    """stop and cont at odd moments."""
    stops = 0
    try:
        while not done.is_set():
            time.sleep(random.random() / 2)
            qmp.execute("stop")
            time.sleep(random.random() / 10)
            qmp.execute("cont")
            stops += 1
    except (OSError, ValueError):
        pass  # the machine has ended
    print(f"# {stops} stops", flush=True)


def talk_to_port(path, got):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(b"HELLO")
        while data := s.recv(1000):
            got += data


def run_guest(folder, image, port):
    def at(name):
        return os.path.join(folder, name)
    argv = [BUILD / "src/bin/lodge-vmm", "--memory", str(MEMORY >> 20) + "M", "--vcpus", "2", "--kernel", BUILD / "guest/vmlinuz",
            "--initrd", make_initrd(folder), "--cmdline", f"console=ttyS0 quiet tcpport={port}", "--qmp", "unix:" + at("qmp")]
    for option in (("chardev", "stdio,id=con"), ("device", "isa-serial,chardev=con"),
                   ("drive", f"qcow2,id=d0,file={image},discard=unmap"), ("device", "virtio-blk,drive=d0,serial=LODGE1"),
                   ("netdev", "user,id=n0"), ("device", "virtio-net,netdev=n0,mac=52:54:00:12:34:56"),
                   ("chardev", "file,id=hvc,path=" + at("hvc")), ("chardev", "unix,id=port,path=" + at("port")),
                   ("device", "virtio-serial"), ("device", "virtconsole,chardev=hvc"),
                   ("device", "virtserialport,chardev=port,name=org.lodge.test"), ("device", "virtio-rng"),
                   ("device", "virtio-balloon,free-page-reporting=on,stats-interval=1")):
        argv += ["--" + option[0], option[1]]
    vmm = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    timer = threading.Timer(LIMIT_S, vmm.kill)
    timer.start()
    results, got, done, lines, qmp = {}, bytearray(), threading.Event(), [], None
    for line in vmm.stdout:
        line = line.decode(errors="replace").strip()
        lines.append(line)
        if line == "INIT-FIRST-LINE":
            qmp = Qmp(at("qmp"))
            threading.Thread(target=disturb, args=(qmp, done), daemon=True).start()
            threading.Thread(target=talk_to_port, args=(at("port"), got), daemon=True).start()
        elif line.startswith("RESULT "):
            name, _, value = line[7:].partition(" ")
            results[name] = value
        elif line == "BALLOON-DOWN":
            qmp.execute("balloon", value=MEMORY - (100 << 20))
        elif line == "BALLOON-UP":
            results["actual"] = qmp.execute("query-balloon")["actual"]
            qmp.execute("balloon", value=MEMORY)
        elif line == "INIT-LAST-LINE":
            done.set()
    results["status"] = vmm.wait()
    timer.cancel()
    with open(at("hvc"), "rb") as f:
        results["console"] = f.read().decode()
    results["port-output"] = got.decode()
    results["balloon-events"] = bool(qmp) and "BALLOON_CHANGE" in qmp.events
    return results, lines


def main():
    if not all(shutil.which(t) for t in ("qemu-img", "mke2fs", "e2fsck")):
        print("skipped: a peer tool (qemu-img, mke2fs, e2fsck) is missing")
        sys.exit(77)
    failures = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("LODGE_TEST_TMP")) as folder:
        image, known = make_disk(folder)
        payload = random.Random(2).randbytes(500000)
        results, lines = run_guest(folder, image, serve(payload))
        checks = {
            "drivers": lambda v: v.split() == sorted(["virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"]),
            "disk": lambda v: v == "262144 LODGE1 2",
            "known": lambda v: v == known,
            "written": lambda v: v == "same",
            "trimmed": lambda v: v == "1",
            "entropy": lambda v: v == "1024",
            "mac": lambda v: v == "52:54:00:12:34:56",
            "lease-address": lambda v: v == "10.0.2.15",
            "download": lambda v: v == hashlib.md5(payload).hexdigest(),
            "port-name": lambda v: v == "org.lodge.test",
            "port-input": lambda v: v == "HELLO",
            "port-output": lambda v: v == "from the guest\n",
            "console": lambda v: v == "console speaks\r\n",
            "deflated-by": lambda v: int(v) >= 90,
            "actual": lambda v: v < MEMORY - (80 << 20),
            "balloon-events": lambda v: v,
            "restored": lambda v: v == "yes",
            "known-after": lambda v: v == known,
            "complaints": lambda v: v == "0",
            "status": lambda v: v == 0,
        }
        for name, good in checks.items():
            ok = name in results and good(results[name])
            failures += not ok
            print(f"{'ok' if ok else 'not ok'} - {name}" + ("" if ok else f": {results.get(name)!r}"), flush=True)
        for argv in (["qemu-img", "check", image], ["qemu-img", "convert", "-O", "raw", image, folder + "/out"],
                     ["e2fsck", "-fn", folder + "/out"]):
            status = subprocess.run(argv, capture_output=True).returncode
            failures += status != 0
            print(f"{'not ok' if status else 'ok'} - {' '.join(argv[:2])}", flush=True)
    if failures:
        sys.exit("--- console ---\n" + "\n".join(lines[-60:]))


if __name__ == "__main__":
    main()
