#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images on web servers that behave, and that do not. The server is this script's own, on loopback. Prints TAP.

usage: http-images.py LODGE_IMG MODULES
"""
import base64
import http.server
import os
import pathlib
import random
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = sys.argv[1]
if not (pathlib.Path(sys.argv[2]) / "lodge-disk-curl.so").exists():
    print("1..0 # SKIP the module lodge-disk-curl.so was not built (libcurl)")
    sys.exit(0)
os.environ["LODGE_MODULES"] = sys.argv[2]

folder = tempfile.TemporaryDirectory(prefix="lodge-http-")
DIR = pathlib.Path(folder.name)
SIZE = 6 << 20
rng = random.Random(7)
CONTENT = bytearray(rng.randbytes(SIZE))
requests, lock = [], threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    """The first part of the path says how to behave."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def headers_for(self, status, length, **more):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def answer(self, body):
        how = self.path.split("/")[1]
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with lock:
            requests.append((how, self.command, self.headers.get("Range")))
            count = sum(1 for r in requests if r[0] == how and r[2])
            first_time = sum(1 for r in requests if r[0] == how and r[2] == self.headers.get("Range")) == 1
        if how == "moved":
            return self.headers_for(302, 0, Location="/good/disk")
        if how == "loop":
            return self.headers_for(302, 0, Location="/loop/disk")
        if how == "elsewhere":
            return self.headers_for(302, 0, Location="file:///etc/passwd")
        if how == "gone":
            return self.headers_for(404, 0)
        if how == "user":
            want = "Basic " + base64.b64encode(b"me:open sesame").decode()
            if self.headers.get("Authorization") != want:
                return self.headers_for(401, 0, WWW_Authenticate='Basic realm="x"')
        if how == "cookie" and "token=abc" not in self.headers.get("Cookie", ""):
            return self.headers_for(403, 0)
        more = {} if how in ("noranges", "quiet") else {"Accept_Ranges": "bytes"}
        if how == "etag":
            more["ETag"] = f'"{count > 2}"'
        if how == "nohead" and not body:
            return self.headers_for(405, 0)
        if not asked or how == "noranges":
            self.headers_for(200, SIZE, **more)
            if body:
                try:
                    self.wfile.write(CONTENT)
                except OSError:
                    pass
            return None
        first, last = int(asked[1]), min(int(asked[2]), SIZE - 1)
        if how == "broken" or (how == "flaky" and first_time):
            return self.headers_for(503, 0)
        part = CONTENT[first:last + 1]
        total = SIZE + 512 if how == "grown" and count > 1 else SIZE
        if how == "wrong":
            first, last = first + 512, last + 512
        self.headers_for(206, len(part), Content_Range=f"bytes {first}-{last}/{total}", **more)
        if how in ("short", "hiccup") and (how == "short" or first_time):
            self.wfile.write(part[:len(part) // 2])
            self.close_connection = True
            return None
        if how == "stall":
            self.wfile.write(part[:100])
            self.wfile.flush()
            time.sleep(6)
            self.close_connection = True
            return None
        self.wfile.write(part)
        return None


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass


def serve(tls=None):
    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


PORT = serve()


def url(how):
    return f"http://127.0.0.1:{PORT}/{how}/disk"


def convert(source, *args, expect=0, fmt="raw"):
    out = DIR / "out"
    out.unlink(missing_ok=True)
    text = tap.run([LODGE, "convert", "-f", fmt, "-O", "raw", *args, source, out], expect)
    if expect == 0:
        tap.check(out.read_bytes() == CONTENT, f"{source}: other bytes")
    return text


def tree(options):
    return f"driver=raw,file.driver=http,file.url={url(options[0])}" + "".join(f",file.{o}" for o in options[1:])


def compare(options, *objects, expect=0):
    """Reads all of it and compares it with a local copy."""
    raw = DIR / "local"
    raw.write_bytes(CONTENT)
    return tap.run([LODGE, "compare", *objects, "--image-opts", tree(options), f"driver=raw,file.filename={raw}"], expect)


def test_reads():
    for how in ("good", "moved", "nohead", "quiet"):
        convert(url(how))
    out = tap.run([LODGE, "info", url("good")])
    tap.check(f"({SIZE} bytes)" in out, out)


def test_small():
    """Small reads in a row come from a few requests, and are right at every place."""
    with lock:
        requests.clear()
    commands = []
    for at in range(0, 1 << 20, 4096):
        commands += ["-c", f"read -q {at} 4096"]
    tap.run([LODGE, "io", "-r", "-f", "raw", *commands, url("good")])
    with lock:
        ranged = [r for r in requests if r[2]]
    tap.check(1 <= len(ranged) <= 16, f"{len(ranged)} requests for 256 reads of 4 KiB")


def test_parallel():
    """Several readers at once, at random places."""
    pattern = 0x5a
    saved = bytes(CONTENT[1 << 20:2 << 20])
    CONTENT[1 << 20:2 << 20] = bytes([pattern]) * (1 << 20)
    try:
        commands = []
        for _ in range(120):
            at = (1 << 20) + rng.randrange(0, (1 << 20) - 65536)
            commands += ["-c", f"aio_read -q -P {pattern} {at // 512 * 512} {rng.choice([512, 4096, 40960])}"]
        out = tap.run([LODGE, "io", "-r", "-f", "raw", *commands, "-c", "aio_flush", url("good")])
        tap.check("fail" not in out.lower(), out)
    finally:
        CONTENT[1 << 20:2 << 20] = saved


def test_recovers():
    for how in ("flaky", "hiccup"):
        with lock:
            requests.clear()
        convert(url(how))


def test_refused():
    cases = [("noranges", "does not support 'range'"), ("gone", "404"), ("loop", "redirects"), ("elsewhere", "file")]
    for how, words in cases:
        out = tap.run([LODGE, "info", url(how)], 1)
        tap.check(words in out, f"{how}: {out}")
    out = tap.run([LODGE, "io", "-c", "read 0 512", url("good")], 1)
    tap.check("does not support writes" in out, out)
    out = tap.run([LODGE, "info", "http://127.0.0.1:1/none"], 1)
    tap.check("CURL: Error opening file" in out, out)
    out = tap.run([LODGE, "info", "--image-opts", "driver=http,url=https://127.0.0.1/x"], 1)
    tap.check("does not start with 'http://'" in out, out)
    out = tap.run([LODGE, "info", "--image-opts", f"driver=http,url={url('good')},readahead=1000"], 1)
    tap.check("not a multiple of 512" in out, out)


def test_errors():
    for how in ("broken", "short", "wrong", "grown", "etag"):
        with lock:
            requests.clear()
        convert(url(how), expect=1)


def test_stall():
    start = time.monotonic()
    out = compare(["stall", "timeout=1"], expect=None)
    tap.check("imed out" in out and time.monotonic() - start < 5, f"{time.monotonic() - start:.1f} s: {out}")


def test_credentials():
    secret = ["--object", "secret,id=p,data=open sesame"]
    compare(["user", "username=me", "password-secret=p"], *secret)
    convert(url("user").replace("http://", "http://me:open%20sesame@"))
    out = tap.run([LODGE, "info", url("user")], 1)
    tap.check("401" in out, out)
    compare(["cookie", "cookie=token=abc"])
    compare(["cookie", "cookie-secret=c"], "--object", "secret,id=c,data=token=abc")
    out = compare(["cookie", "cookie=a", "cookie-secret=p"], *secret, expect=2)
    tap.check("both cookie and cookie secret" in out, out)


def test_backing():
    overlay = DIR / "overlay"
    tap.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", url("good"), "-F", "raw", overlay, str(SIZE)])
    tap.run([LODGE, "io", "-c", "write -P 1 0 512", overlay])
    tap.run([LODGE, "io", "-r", "-c", "read -P 1 0 512", overlay])
    saved, CONTENT[:512] = bytes(CONTENT[:512]), bytes([1]) * 512
    try:
        convert(overlay, fmt="qcow2")
    finally:
        CONTENT[:512] = saved


def test_tls():
    cert, key = DIR / "cert.pem", DIR / "key.pem"
    tap.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj",
             "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
    port = serve((cert, key))
    options = f"driver=raw,file.driver=https,file.url=https://127.0.0.1:{port}/good/disk"
    out = tap.run([LODGE, "info", "--image-opts", options], 1)
    tap.check("certificate" in out, out)
    out = tap.run([LODGE, "info", "--image-opts", options + ",file.sslverify=off"])
    tap.check(f"({SIZE} bytes)" in out, out)


def test_same_as_qemu():
    if subprocess.run(["qemu-img", "info", url("good")], capture_output=True, check=False).returncode:
        return  # qemu-img without its module for HTTP
    ours, theirs = (tap.run([t, "map", "--output=json", "-f", "raw", url("good")]) for t in (LODGE, "qemu-img"))
    tap.check(ours == theirs, f"{ours}\n{theirs}")


def test_module():
    env = dict(os.environ, LODGE_MODULES=str(DIR))
    done = subprocess.run([LODGE, "info", url("good")], capture_output=True, text=True, env=env, check=False)
    tap.check(done.returncode == 1 and "lodge-disk-curl.so, is not installed" in done.stderr, done.stderr)
    out = tap.run([LODGE, "info", "ssh://host/path"], 1)
    tap.check("ssh are not supported" in out, out)


tap.need("qemu-img", "openssl")
tap.main([("reads", test_reads), ("small reads", test_small), ("parallel reads", test_parallel), ("recovers", test_recovers),
          ("refused", test_refused), ("errors", test_errors), ("stalls", test_stall), ("credentials", test_credentials),
          ("backing file", test_backing), ("TLS", test_tls), ("map as qemu-img", test_same_as_qemu), ("modules", test_module)])
