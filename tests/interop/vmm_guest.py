# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests of a few instructions as multiboot images, and what it takes to run lodge-vmm on them."""
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

LOAD = 0x100000


def image(code):
    """A multiboot image (address fields, no ELF) that starts with @code in 32-bit protected mode."""
    flags = 0x10000
    header = struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    entry = LOAD + 32
    header += struct.pack("<IIIII", LOAD, LOAD, 0, 0, entry)
    return header + code + b"\0" * 16


def out8(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


def out16(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


def text(port, message):
    return b"".join(out8(port, c) for c in message)


IDLE = b"\xf4\xeb\xfd"  # hlt; jmp back
SPIN = b"\xeb\xfe"
COM1 = 0x3F8
POWER_OFF = out16(0x604, 0x2000 | 5 << 10)
RESET = out8(0xCF9, 2) + out8(0xCF9, 6)
# in al,dx from COM1's LSR until data is ready, then echo it back: a serial echo.
ECHO = (b"\x66\xba" + struct.pack("<H", COM1 + 5) + b"\xec\xa8\x01\x74\xf7"
        b"\x66\xba" + struct.pack("<H", COM1) + b"\xec\xee\xeb\xef")


class Vmm:
    """lodge-vmm on an image, with a QMP client unless qmp=False."""

    def __init__(self, program, code, *options, qmp=True, stdin=subprocess.DEVNULL, engine="soft", **popen):
        self.dir = tempfile.TemporaryDirectory(prefix="lodge-vmm-")
        kernel = os.path.join(self.dir.name, "kernel")
        with open(kernel, "wb") as f:
            f.write(image(code))
        self.socket = os.path.join(self.dir.name, "qmp")
        command = [program, "--engine", engine, "--memory", "16", "--kernel", kernel, *options]
        if qmp:
            command += ["--qmp", "unix:" + self.socket]
        self.process = subprocess.Popen(command, stdin=stdin, stdout=popen.pop("stdout", subprocess.PIPE),
                                        stderr=subprocess.PIPE, **popen)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        self.dir.cleanup()

    def wait(self, seconds=10):
        return self.process.wait(seconds)

    def connect(self):
        deadline = time.monotonic() + 10
        while True:
            try:
                s = socket.socket(socket.AF_UNIX)
                s.connect(self.socket)
                return Client(s)
            except OSError:
                s.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.01)


class Client:
    """A QMP client that shares no code with the server."""

    def __init__(self, s):
        self.s = s
        self.pending = b""
        self.events = []

    def close(self):
        self.s.close()

    def message(self, seconds=10):
        while b"\n" not in self.pending:
            if not select.select([self.s], [], [], seconds)[0]:
                raise TimeoutError("no message within %d s" % seconds)
            data = self.s.recv(65536)
            if not data:
                raise EOFError("the server closed the connection")
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return json.loads(line)

    def send(self, data):
        self.s.sendall(data)

    def answer(self):
        while True:
            m = self.message()
            if "event" not in m:
                return m
            self.events.append(m)

    def execute(self, command, **arguments):
        request = {"execute": command}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.send(json.dumps(request).encode())
        return self.answer()

    def value(self, command, **arguments):
        answer = self.execute(command, **arguments)
        if "return" not in answer:
            raise AssertionError("%s: %s" % (command, answer))
        return answer["return"]

    def negotiate(self):
        greeting = self.message()
        assert "QMP" in greeting, greeting
        assert self.value("qmp_capabilities") == {}
        return greeting

    def event(self, name, seconds=10):
        while True:
            for i, m in enumerate(self.events):
                if m["event"] == name:
                    return self.events.pop(i)
            m = self.message(seconds)
            assert "event" in m, m
            self.events.append(m)


def run_tests(tests):
    """Calls every test with the program's path (argv[1]); prints TAP."""
    program = sys.argv[1]
    print("1..%d" % len(tests), flush=True)
    failed = 0
    for number, test in enumerate(tests, 1):
        name = test.__name__.replace("_", "-")
        try:
            test(program)
            print("ok %d %s" % (number, name), flush=True)
        except Exception as error:  # every failure is a result, not an end
            failed += 1
            import traceback
            traceback.print_exc()
            print("not ok %d %s: %s" % (number, name, error), flush=True)
    sys.exit(failed != 0)
