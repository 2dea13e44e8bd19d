#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""NBD beside its other implementations: our server with libnbd's and QEMU's clients, our client with qemu-nbd and nbdkit.

usage: nbd.py LODGE_IMG
"""
import contextlib
import json
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = str(pathlib.Path(sys.argv[1]).resolve())
M = 1024 * 1024


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="lodge-nbd-") as tmp:
        yield pathlib.Path(tmp)


def start(argv, path, late=False):
    """A server that is there once its UNIX socket is; @late: one in the place of a socket that nobody listens on."""
    if late:
        path.rename(f"{path}.old")
    process = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(400):
        if process.poll() is not None:
            break
        if path.exists():
            return process
        time.sleep(0.01)
    process.kill()
    raise tap.Failure(f"{argv} did not start: {process.communicate()[0]}")


@contextlib.contextmanager
def running(argv, path):
    process = start(argv, path)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        out = process.communicate(timeout=20)[0]
    tap.check(process.returncode in (0, -signal.SIGTERM), f"exit {process.returncode}: {out}")


def serve(path, *args):
    return running([LODGE, "serve", "-t", "-k", path, *args], path)


def uri(path, export=""):
    return f"nbd+unix:///{export}?socket={path}"


def filled(path, fmt="raw", size=32 * M, seed=1):
    """An image with data, zeroes and holes, and the same as a raw file beside it."""
    rng = random.Random(seed)
    commands = []
    for _ in range(24):
        offset = 512 * rng.randrange(size // 512 - 2048)
        length = 512 * rng.randrange(1, 2048)
        commands += ["-c", f"write -q {'-z' if rng.random() < 0.3 else '-P ' + str(rng.randrange(1, 255))} {offset} {length}"]
    tap.run(["qemu-img", "create", "-q", "-f", fmt, path, str(size)])
    tap.run(["qemu-io", "-f", fmt, *commands, path])
    return path


def same(a, b, fmt_a="raw", fmt_b="raw"):
    tap.run(["qemu-img", "compare", "-U", "-f", fmt_a, "-F", fmt_b, a, b])


def ask(process, line):
    """What an exerciser that stays connected says to @line; "length" marks the end of it."""
    process.stdin.write(f"{line}\nlength\n")
    process.stdin.flush()
    said = ""
    while not said.rstrip().endswith((" MiB", str(8 * M), str(64 * M))):
        ready = select.select([process.stdout], [], [], 20)[0]
        got = os.read(process.stdout.fileno(), 4096) if ready else b""
        tap.check(got, f"no answer to {line}: {said}")
        said += got.decode()
    return said


def exerciser(*args):
    return subprocess.Popen([LODGE, "io", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def described():
    """nbdinfo and qemu-nbd --list see what was asked for."""
    with folder() as tmp:
        filled(tmp / "a", "qcow2")
        filled(tmp / "b")
        with serve(tmp / "s", "-e", "3", "-D", "some text", "-A", "-x", "one", "-x", "two", tmp / "a", tmp / "b"):
            said = json.loads(tap.run(["nbdinfo", "--json", "--list", uri(tmp / "s")]))
            tap.check(said["protocol"] == "newstyle-fixed" and said["structured"], said)
            exports = {e["export-name"]: e for e in said["exports"]}
            tap.check(sorted(exports) == ["one", "two"], said)
            one = exports["one"]
            tap.check(one["description"] == "some text" and one["export-size"] == 32 * M, one)
            tap.check(one["contexts"] == ["base:allocation", "qemu:allocation-depth"], one)
            for can in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
                tap.check(one[f"can_{can}"], f"{can}: {one}")
            tap.check((one["block_size_minimum"], one["block_size_maximum"]) == (1, 32 * M), one)
            theirs = tap.run(["qemu-nbd", "--list", "-k", tmp / "s"])
            ours = tap.run([LODGE, "serve", "-L", "-k", tmp / "s"])
            tap.check(ours == theirs, f"{ours}\n{theirs}")
        with serve(tmp / "s", "-r", tmp / "b"):
            one = json.loads(tap.run(["nbdinfo", "--json", uri(tmp / "s")]))["exports"][0]
            tap.check(one["is_read_only"] and not one["can_multi_conn"] and not one["can_trim"], one)


def maps():
    """base:allocation and qemu:allocation-depth are what qemu-nbd says of the same chain."""
    with folder() as tmp:
        filled(tmp / "base", "qcow2", seed=3)
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp / "base", "-F", "qcow2", tmp / "top"])
        tap.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 9 1M 3M", "-c", "write -q -z 20M 1M", tmp / "top"])
        said = {}
        for name, argv in (("ours", [LODGE, "serve"]), ("theirs", ["qemu-nbd"])):
            with running([*argv, "-t", "-r", "-A", "-f", "qcow2", "-k", tmp / name, tmp / "top"], tmp / name):
                said[name] = [json.loads(tap.run(["nbdinfo", "--json", f"--map={context}", uri(tmp / name)]))
                              for context in ("base:allocation", "qemu:allocation-depth")]
                for tool in (LODGE, "qemu-img"):
                    said[name].append(json.loads(tap.run([tool, "map", "-f", "raw", "--output=json", uri(tmp / name)])))
        tap.check(said["ours"][2] == said["ours"][3], f"map: {said['ours'][2]}\n{said['ours'][3]}")
        tap.check(said["ours"] == said["theirs"], f"{said['ours']}\n{said['theirs']}")


def bitmaps():
    """qemu:dirty-bitmap:NAME of a bitmap that QEMU made."""
    with folder() as tmp:
        filled(tmp / "a", "qcow2")
        tap.run(["qemu-img", "bitmap", "--add", "-g", "64k", "-f", "qcow2", tmp / "a", "b0"])
        tap.run(["qemu-io", "-f", "qcow2", "-c", "write -q 1M 100k", "-c", "write -q 9M 64k", tmp / "a"])
        if "b0" not in tap.run([LODGE, "info", "-f", "qcow2", tmp / "a"]):
            print("# SKIP persistent bitmaps of qcow2: this lodge-img does not read them")
            return
        said = {}
        for name, argv in (("ours", [LODGE, "serve"]), ("theirs", ["qemu-nbd"])):
            with running([*argv, "-t", "-r", "-B", "b0", "-f", "qcow2", "-k", tmp / name, tmp / "a"], tmp / name):
                context = "qemu:dirty-bitmap:b0"
                said[name] = [json.loads(tap.run(["nbdinfo", "--json", f"--map={context}", uri(tmp / name)]))]
                node = f"driver=raw,file.driver=nbd,file.path={tmp / name},file.x-dirty-bitmap={context}"
                for tool in (LODGE, "qemu-img"):
                    said[name].append(json.loads(tap.run([tool, "map", "--output=json", "--image-opts", node])))
        tap.check(said["ours"] == said["theirs"] and said["ours"][1] == said["ours"][2], f"{said['ours']}\n{said['theirs']}")
        said = tap.run([LODGE, "serve", "-B", "nope", "-f", "qcow2", "-k", tmp / "x", tmp / "a"], 1)
        tap.check("Bitmap 'nope' is not found" in said, said)


def copies():
    """nbdcopy and qemu-img read all of it and write all of it, with every format below."""
    with folder() as tmp:
        filled(tmp / "in")
        for fmt in ("raw", "qcow2", "vdi"):
            tap.run(["qemu-img", "create", "-q", "-f", fmt, tmp / "out", "32M"])
            with serve(tmp / "s", "-e", "0", "-f", fmt, tmp / "out"):
                tap.run(["nbdcopy", "--flush", tmp / "in", uri(tmp / "s")])
                tap.run(["nbdcopy", uri(tmp / "s"), tmp / "back"])
                same(tmp / "in", tmp / "back")
                tap.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", tmp / "in", uri(tmp / "s")])
                same(tmp / "in", uri(tmp / "s"))
            same(tmp / "in", tmp / "out", "raw", fmt)
            if fmt != "raw":
                tap.run(["qemu-img", "check", "-f", fmt, tmp / "out"])


def part():
    """-o leaves out what is in front; -s keeps the image as it is."""
    with folder() as tmp:
        filled(tmp / "a")
        with serve(tmp / "s", "-f", "raw", "-s", "-o", "1M", tmp / "a"):
            tap.check(tap.run(["nbdinfo", "--size", uri(tmp / "s")]).strip() == str(31 * M), "size")
            tap.run(["qemu-io", "-f", "raw", "-c", "write -q -P 77 0 1M", "-c", "read -q -P 77 0 1M", uri(tmp / "s")])
        tap.run(["qemu-io", "-f", "raw", "-c", "write -q -P 78 1M 64k", tmp / "a"])
        with serve(tmp / "s", "-f", "raw", "-o", "1M", tmp / "a"):
            tap.run(["qemu-io", "-r", "-f", "raw", "-c", "read -q -P 78 0 64k", uri(tmp / "s")])


def client():
    """Our client with qemu-nbd below: read, write, zeroes, discard, flush, map, compare."""
    with folder() as tmp:
        filled(tmp / "a", "qcow2")
        filled(tmp / "in", seed=5)
        with running(["qemu-nbd", "-t", "-e", "0", "-f", "qcow2", "-k", tmp / "s", tmp / "a"], tmp / "s"):
            for name in (uri(tmp / "s"), f"nbd:unix:{tmp / 's'}"):
                tap.run([LODGE, "convert", "-n", "-f", "raw", "-O", "raw", tmp / "in", name])
                tap.run([LODGE, "compare", "-f", "raw", "-F", "raw", tmp / "in", name])
                tap.run([LODGE, "io", "-f", "raw", "-c", "write -q -P 5 1000 5000", "-c", "write -q -z 3000 1000", "-c", "flush",
                         "-c", "read -q -P 5 1000 2000", "-c", "read -q -P 0 3000 1000", "-c", "discard -q 1M 1M", name])
        with running(["qemu-nbd", "-t", "-r", "-x", "a b/c", "-f", "qcow2", "-k", tmp / "s", tmp / "a"], tmp / "s"):
            node = f"driver=nbd,server.type=unix,server.path={tmp / 's'},export=a b/c"
            said = tap.run([LODGE, "info", "--image-opts", node])
            tap.check(f"image: nbd+unix:///a b/c?socket={tmp / 's'}\nfile format: nbd" in said, said)
            tap.run([LODGE, "io", "-r", "--image-opts", "-c", "read -q -P 5 1000 2000", node])
            said = tap.run([LODGE, "io", "--image-opts", "-c", "read 0 512", node], None)
            tap.check("write permission" in said, said)
            for tool in (LODGE, "qemu-img"):
                said = tap.run([tool, "info", f"nbd:unix:{tmp / 's'}:exportname=b"], 1)
                tap.check("Requested export not available\nserver reported: export 'b' not present" in said, said)
        for name, word in ((uri(tmp / "gone"), "Failed to connect to"), ("nbd://", "No valid URL"), ("nbd:x", "port missing"),
                           ("nbd+unix:///", "No valid URL")):
            tap.check(word in tap.run([LODGE, "info", name], 1), name)


def nbdkit():
    """Plug-ins: sizes that are no sector's, blocks that are the server's, errors, old style, no structured replies."""

    def kit(*args):
        for name in ("pid", "s"):
            (tmp / name).unlink(missing_ok=True)
        return running(["nbdkit", "-f", "-P", tmp / "pid", "-U", tmp / "s", *args], tmp / "pid")

    with folder() as tmp:
        with kit("memory", "1000000"):
            tap.run([LODGE, "io", "-f", "raw", "-c", "write -q -P 5 999000 1000", "-c", "read -q -P 5 999000 1000", uri(tmp / "s")])
        for front, back in ((["--filter=blocksize-policy"], ["blocksize-minimum=4096", "blocksize-error-policy=error"]),
                            (["--filter=nozero"], ["zeromode=none"]), (["--filter=noextents"], []), (["--no-sr"], [])):
            with kit(*front, "memory", "8M", *back):
                tap.run([LODGE, "io", "-f", "raw", "-c", "write -q -P 5 1000 100000", "-c", "write -q -z 5000 60000", "-c", "flush",
                         "-c", "read -q -P 5 1000 4000", "-c", "read -q -P 0 5000 60000", "-c", "read -q -P 5 65000 36000",
                         uri(tmp / "s")])
                tap.run([LODGE, "convert", "-f", "raw", "-O", "qcow2", uri(tmp / "s"), tmp / "copy"])
                same(tmp / "copy", uri(tmp / "s"), "qcow2")
        with kit("-o", "pattern", "8M"): # old style; its flags are wrong for writing
            tap.run([LODGE, "convert", "-f", "raw", "-O", "qcow2", uri(tmp / "s"), tmp / "copy"])
            same(tmp / "copy", uri(tmp / "s"), "qcow2")
        with kit("sparse-random", "64M", "percent=10"):
            tap.run([LODGE, "convert", "-f", "raw", "-O", "raw", uri(tmp / "s"), tmp / "copy"])
            tap.run(["nbdcopy", uri(tmp / "s"), tmp / "other"])
            same(tmp / "copy", tmp / "other")
        with kit("--filter=error", "memory", "8M", "error-pread=EIO", "error-pread-rate=100%"):
            said = tap.run([LODGE, "io", "-f", "raw", "-c", "read 0 4096", uri(tmp / "s")], None)
            tap.check("Input/output error" in said, said)


def multi_conn():
    """What one connection has written another one reads, without a flush."""
    with folder() as tmp:
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp / "a", "8M"])
        with serve(tmp / "s", "-e", "0", "-f", "qcow2", tmp / "a"):
            readers = [exerciser("-f", "raw", uri(tmp / "s")) for _ in range(2)]
            for number in range(30):
                place = f"-P {number + 1} {number * 1000} 70000"
                for process, verb in ((readers[number % 2], "write"), (readers[1 - number % 2], "read")):
                    said = ask(process, f"{verb} {place}")
                    tap.check("70000/70000" in said and "failed" not in said, said)
            for process in readers:
                process.communicate("quit\n", timeout=10)
        tap.run(["qemu-img", "check", "-f", "qcow2", tmp / "a"])


def killed():
    """kill -9: of a client, which harms nobody; of the server, which its client survives."""
    with folder() as tmp:
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp / "a", "64M"])
        with serve(tmp / "s", "-e", "0", "-f", "qcow2", tmp / "a"):
            for number in range(8):
                client_process = subprocess.Popen([LODGE, "bench", "-w", "-f", "raw", "-c", "100000", "-s", "64k", uri(tmp / "s")],
                                                  stdout=subprocess.DEVNULL)
                time.sleep(0.05 + 0.01 * number)
                client_process.kill()
                client_process.wait()
                tap.run(["qemu-io", "-f", "raw", "-c", "read -q 0 64k", uri(tmp / "s")])
        tap.run(["qemu-img", "check", "-f", "qcow2", tmp / "a"])
        # The server dies and another one takes its place: requests wait.
        argv = [LODGE, "serve", "-t", "-f", "qcow2", "-k", tmp / "s", tmp / "a"]
        server = start(argv, tmp / "s")
        node = f"driver=raw,file.driver=nbd,file.path={tmp / 's'},file.reconnect-delay=20"
        writer = exerciser("--image-opts", node)
        ask(writer, "write -q -P 1 0 64k\nflush")
        server.kill()
        server.communicate()
        writer.stdin.write("write -q -P 2 64k 64k\nflush\n")
        writer.stdin.flush()
        time.sleep(0.3)
        server = start(argv, tmp / "s", late=True)
        said = ask(writer, "read -P 2 64k 64k\nread -P 1 0 64k")
        writer.communicate("quit\n", timeout=20)
        tap.check(writer.returncode == 0 and said.count("65536/65536") == 2 and "failed" not in said, said)
        # Without a delay a lost server is an error at once.
        server.kill()
        server.communicate()
        server = start(["qemu-nbd", "-t", "-f", "qcow2", "-k", tmp / "t", tmp / "a"], tmp / "t")
        reader = exerciser("-f", "raw", uri(tmp / "t"))
        ask(reader, "read 0 512")
        server.kill()
        server.communicate()
        said = reader.communicate("read 0 512\nquit\n", timeout=20)[0]
        tap.check("Input/output error" in said, said)
        # A server that is late.
        process = subprocess.Popen([LODGE, "info", "--image-opts", f"driver=nbd,path={tmp / 'u'},open-timeout=20"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(0.3)
        with serve(tmp / "u", "-f", "qcow2", tmp / "a"):
            said = process.communicate(timeout=30)[0]
        tap.check(process.returncode == 0, said)


def ends():
    """SIGTERM writes all and takes the socket away; without -t the last client ends it; --fork comes back; sockets are handed over."""
    with folder() as tmp:
        tap.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp / "a", "8M"])
        server = start([LODGE, "serve", "-t", "-f", "qcow2", "-k", tmp / "s", tmp / "a"], tmp / "s")
        tap.run(["qemu-io", "-f", "raw", "-c", "write -q -P 3 0 1M", uri(tmp / "s")])
        server.terminate()
        out = server.communicate(timeout=10)[0]
        tap.check(server.returncode == 0 and out == uri(tmp / "s") + "\n", f"{server.returncode} {out}")
        tap.check(not (tmp / "s").exists(), "the socket is still there")
        tap.run(["qemu-img", "check", "-f", "qcow2", tmp / "a"])
        tap.run(["qemu-io", "-r", "-f", "qcow2", "-c", "read -q -P 3 0 1M", tmp / "a"])
        server = start([LODGE, "serve", "-f", "qcow2", "-k", tmp / "s", tmp / "a"], tmp / "s")
        tap.run(["qemu-io", "-f", "raw", "-c", "read -q -P 3 0 1M", uri(tmp / "s")])
        server.communicate(timeout=10)
        tap.check(server.returncode == 0, "the last client left")
        tap.run([LODGE, "serve", "-t", "--fork", "--pid-file", tmp / "pid", "-f", "qcow2", "-k", tmp / "s", tmp / "a"])
        pid = int((tmp / "pid").read_text())
        tap.run(["nbdinfo", uri(tmp / "s")])
        os.kill(pid, signal.SIGTERM)
        for _ in range(200):
            if not (tmp / "s").exists():
                break
            time.sleep(0.02)
        tap.check(not (tmp / "s").exists() and not (tmp / "pid").exists(), "it is still there")
        said = tap.run([LODGE, "serve", "--fork", "-f", "qcow2", "-k", tmp / "s", tmp / "none"], 1)
        tap.check("none" in said, said)
        said = tap.run(["nbdinfo", "--size", "--", "[", LODGE, "serve", "-r", "-f", "qcow2", tmp / "a", "]"])
        tap.check(said.strip() == str(8 * M), said)
        with running([LODGE, "serve", "-t", "-f", "qcow2", "-b", "127.0.0.1", "-p", "0", "--pid-file", tmp / "tcp", tmp / "a"],
                     tmp / "tcp") as server:
            where = server.stdout.readline().strip()
            tap.check(tap.run(["nbdinfo", "--size", where]).strip() == str(8 * M), where)
            tap.check("8 MiB" in tap.run([LODGE, "info", where]), where)


def as_qemu_nbd():
    """Under that name, with its options."""
    with folder() as tmp:
        (tmp / "qemu-nbd").symlink_to(LODGE)
        filled(tmp / "a", "qcow2")
        with running([tmp / "qemu-nbd", "-v", "-t", "-e", "42", "-x", "", "-f", "qcow2", "--cache=writeback", "--aio=threads",
                      "--discard=unmap", "-k", tmp / "s", tmp / "a"], tmp / "s"):
            theirs = tap.run(["qemu-nbd", "--list", "-k", tmp / "s"])
            tap.check(tap.run([tmp / "qemu-nbd", "--list", "-k", tmp / "s"]) == theirs, theirs)
        for args, word in ((["-c", "/dev/nbd0", tmp / "a"], "/dev/nbdN"), (["-k", "relative", tmp / "a"], "absolute"),
                           (["-e", "x", tmp / "a"], "shared"), ([], "arguments"), (["--tls-authz", "x", tmp / "a"], "tls-creds")):
            ours = tap.run([tmp / "qemu-nbd", *args], 1)
            tap.check(word in ours, ours)


# ---- TLS


def certificate(path, name, subject, ca=None):
    """A key and a certificate in @path; a client's and a server's are signed by @ca."""
    path.mkdir(exist_ok=True)
    info = path / "info"
    info.write_text(f"cn = {subject}\ncountry = XX\n" + ("ca\ncert_signing_key\n" if not ca else
                    "ip_address = 127.0.0.1\ndns_name = lodge.example\nsigning_key\nencryption_key\ntls_www_server\ntls_www_client\n"))
    key, cert = path / f"{name}-key.pem", path / f"{name}-cert.pem"
    tap.run(["certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", key])
    sign = ["--generate-certificate", "--load-ca-privkey", ca / "ca-key.pem", "--load-ca-certificate", ca / "ca-cert.pem"] if ca \
        else ["--generate-self-signed"]
    tap.run(["certtool", *sign, "--load-privkey", key, "--template", info, "--outfile", cert])
    if ca:
        shutil.copy(ca / "ca-cert.pem", path / "ca-cert.pem")


def tls():
    """x509 both ways with QEMU: hostnames, foreign authorities, clients without certificates, who may come in."""
    with folder() as tmp:
        filled(tmp / "a")
        shutil.copy(tmp / "a", tmp / "b")
        for ca in ("ca1", "ca2"):
            certificate(tmp / ca, "ca", ca)
        for name, role, ca in (("server", "server", "ca1"), ("good", "client", "ca1"), ("alien", "client", "ca2")):
            certificate(tmp / name, role, name, tmp / ca)
        (tmp / "bare").mkdir()
        shutil.copy(tmp / "ca1" / "ca-cert.pem", tmp / "bare")

        def creds(name, role, verify="on"):
            return ["--object", f"tls-creds-x509,id=t,dir={tmp / name},endpoint={role},verify-peer={verify}"]

        def node(extra="tls-hostname=127.0.0.1"):
            return f"driver=raw,file.driver=nbd,file.path={tmp / 's'},file.tls-creds=t" + "".join(f",file.{e}" for e in [extra] if extra)

        for server in ([LODGE, "serve"], ["qemu-nbd"]):
            with running([*server, "-t", *creds("server", "server"), "--tls-creds", "t", "-f", "raw", "-k", tmp / "s", tmp / "a"],
                         tmp / "s"):
                for tool in (LODGE, "qemu-img"):
                    tap.run([tool, "compare", *creds("good", "client"), "--image-opts", f"driver=raw,file.filename={tmp / 'b'}", node()])
                    for who, extra, word in (("good", "tls-hostname=other", "does not match the hostname other"), ("good", "", "hostname"),
                                             ("alien", "tls-hostname=127.0.0.1", "known issuer"),):
                        said = tap.run([tool, "info", *creds(who, "client"), "--image-opts", node(extra)], 1)
                        tap.check(word in said, f"{server} {tool} {who}: {said}")
                    tap.run([tool, "info", *creds("bare", "client"), "--image-opts", node()], 1)
                    said = tap.run([tool, "info", uri(tmp / "s")], 1)
                    tap.check("TLS negotiation required before option 7 (go)\nDid you forget a valid tls-creds?" in said, said)
        with running(["qemu-nbd", "-t", "-f", "raw", "-k", tmp / "s", tmp / "a"], tmp / "s"):
            for tool in (LODGE, "qemu-img"):
                said = tap.run([tool, "info", *creds("good", "client"), "--image-opts", node()], 1)
                tap.check("Denied by server for option 5 (starttls)\nserver reported: TLS not configured" in said, said)
        with running([LODGE, "serve", "-t", *creds("server", "server", "off"), "--tls-creds", "t", "-f", "raw", "-k", tmp / "s", tmp / "a"],
                     tmp / "s"):
            tap.run([LODGE, "info", *creds("bare", "client"), "--image-opts", node()])


def psk():
    with folder() as tmp:
        filled(tmp / "a")
        for name in ("one", "two"):
            (tmp / name).mkdir()
            tap.run(["psktool", "-u", "user", "-p", tmp / name / "keys.psk"])
        node = f"driver=raw,file.driver=nbd,file.path={tmp / 's'},file.tls-creds=t"
        for server in ([LODGE, "serve"], ["qemu-nbd"]):
            with running([*server, "-t", "--object", f"tls-creds-psk,id=t,dir={tmp / 'one'},endpoint=server", "--tls-creds", "t",
                          "-f", "raw", "-k", tmp / "s", tmp / "a"], tmp / "s"):
                for tool in (LODGE, "qemu-img"):
                    for name, status in (("one", 0), ("two", 1)):
                        tap.run([tool, "info", "--object", f"tls-creds-psk,id=t,dir={tmp / name},username=user,endpoint=client",
                                 "--image-opts", node], status)
        with running([LODGE, "serve", "-t", "--object", "tls-creds-anon,id=t,endpoint=server", "--tls-creds", "t",
                      "-f", "raw", "-k", tmp / "s", tmp / "a"], tmp / "s"):
            for tool in (LODGE, "qemu-img"):
                tap.run([tool, "info", "--object", "tls-creds-anon,id=t,endpoint=client", "--image-opts", node])


def impolite():
    """Clients that stop in the middle, or say nothing at all, keep nobody from anything."""
    with folder() as tmp:
        filled(tmp / "a")
        with serve(tmp / "s", "-t", "-e", "20", "-f", "raw", tmp / "a"):
            idle = []
            for text in (b"", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT\0\0\0\7\0\1", b"\0\0\0\3IHAVEOPT\0\0\0\7\xff\xff\xff\xff", b"GET / HTTP/1.0\r\n\r\n"):
                s = socket.socket(socket.AF_UNIX)
                s.connect(str(tmp / "s"))
                s.sendall(text)
                idle.append(s)
            tap.run(["nbdinfo", uri(tmp / "s")])
            for s in idle:
                s.close()


def main():
    tap.need("qemu-img", "qemu-io", "qemu-nbd", "nbdinfo", "nbdcopy", "nbdkit", "certtool", "psktool")
    tap.main([(f.__name__, f) for f in (described, maps, bitmaps, copies, part, client, nbdkit, multi_conn, killed, ends, as_qemu_nbd, tls,
                                        psk, impolite)])


if __name__ == "__main__":
    main()
