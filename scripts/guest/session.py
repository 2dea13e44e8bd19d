# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest driven through its serial console and QMP socket: what `make run` and the guest tests share."""
import json
import os
import re
import select
import socket
import subprocess
import time

LOGIN, PASSWORD = "root", "lodge"


class SessionError(Exception):
    pass


class Qmp:
    """As much of a QMP client as this needs: one command at a time, events skipped."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.greeting = json.loads(self.file.readline())
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command}) + "\n")
        self.file.flush()
        while True:
            line = self.file.readline()
            if not line:
                raise SessionError(f"QMP: the guest process went away during {command}")
            answer = json.loads(line)
            if "error" in answer:
                raise SessionError(f"QMP: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]


class Session:
    """@argv starts a guest whose console is its standard input and output; @qmp is the path it was told to listen on."""

    def __init__(self, argv, qmp, limit_s, echo=None):
        self.qmp_path, self.echo = qmp, echo
        self.born = time.monotonic()
        self.deadline = self.born + limit_s
        self.text = ""
        self.mark = 0  # how far expect() has consumed
        self.peak_kib = 0
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.errors = ""
        self.open = [self.process.stdout, self.process.stderr]

    def elapsed(self):
        return time.monotonic() - self.born

    def tail(self):
        return self.text[-3000:] + (f"\n[standard error]\n{self.errors[-3000:]}" if self.errors else "")

    def pump(self, wait_s):
        """Reads what is there, waiting at most @wait_s; False once the process closed its output."""
        ready, _, _ = select.select(self.open, [], [], wait_s)
        for stream in ready:
            data = os.read(stream.fileno(), 65536).decode("utf-8", "replace")
            if not data:
                self.open.remove(stream)
            elif stream is self.process.stdout:
                self.text += data
                if self.echo:
                    self.echo.write(data)
                    self.echo.flush()
            else:
                self.errors += data
        return self.process.stdout in self.open

    def expect(self, pattern, what=None):
        """Waits for the regular expression @pattern in what was not consumed yet; returns its match."""
        expression = re.compile(pattern)
        while True:
            match = expression.search(self.text, self.mark)
            if match:
                self.mark = match.end()
                return match
            if time.monotonic() > self.deadline:
                raise SessionError(f"no {what or pattern} within {self.deadline - self.born:.0f} s; the console ends with:\n{self.tail()}")
            if not self.pump(0.2) and not expression.search(self.text, self.mark):
                self.process.wait()
                raise SessionError(f"the guest ended (status {self.process.returncode}) before {what or pattern}; "
                                   f"the console ends with:\n{self.tail()}")

    def send(self, text):
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def login(self):
        """Waits for the prompt, logs in; returns the seconds from start to prompt."""
        self.expect(r"login: ?", "login prompt")
        seconds = self.elapsed()
        self.send(LOGIN + "\n")
        self.expect(r"Password: ?", "password prompt")
        time.sleep(0.5)  # login(1) flushes what was typed before it turned echo off
        self.send(PASSWORD + "\n")
        self.expect(r"[#$] ", "shell prompt")
        self.send("export PS1=; stty -echo; dmesg -n 1; bind 'set enable-bracketed-paste off' 2>/dev/null; echo READY=$((40+2))\n")
        self.expect(r"READY=42\r?\n", "shell")
        return seconds

    def run(self, command):
        """Runs a shell command; returns its output and exit status."""
        self.send(f"echo BEGIN=$((6*7)); {{ {command}\n}} 2>&1; r=$?; echo; echo END=$r=$((6*7))\n")
        self.expect(r"BEGIN=42\r?\n", "start of the command's output")
        start = self.mark
        match = self.expect(r"\r?\nEND=(\d+)=42\r?\n", f"end of `{command}`")
        return self.text[start:match.start()].replace("\r\n", "\n").strip("\n"), int(match.group(1))

    def vmm_pid(self):
        """The process that is the guest: lodge-vmm below `lodge run`, or the process itself."""
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as f:
                children = [int(w) for w in f.read().split()]
        except OSError:
            children = []
        return children[0] if children else self.process.pid

    def note_memory(self):
        """Remembers the guest process's peak resident memory; call it while the guest runs."""
        try:
            with open(f"/proc/{self.vmm_pid()}/status", encoding="ascii") as f:
                for line in f:
                    if line.startswith("VmHWM:"):
                        self.peak_kib = max(self.peak_kib, int(line.split()[1]))
        except OSError:
            pass

    def qmp(self):
        return Qmp(self.qmp_path)

    def powerdown(self):
        """Presses the ACPI power button and waits for the guest to go; returns the exit status."""
        self.note_memory()
        self.qmp().execute("system_powerdown")
        return self.wait()

    def wait(self):
        while self.process.poll() is None:
            if time.monotonic() > self.deadline:
                raise SessionError(f"the guest did not power off; the console ends with:\n{self.tail()}")
            if not self.pump(0.2):
                time.sleep(0.05)
        while self.pump(0) and select.select(self.open, [], [], 0)[0]:
            pass
        return self.process.returncode

    def end(self):
        """Ends the guest, whatever its state."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
