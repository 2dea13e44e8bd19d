# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the side-by-side measurements share: where programs and guests are, how to start both machines, medians and ratios."""
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
GUEST = BUILD / "guest"
VMM = BUILD / "src" / "bin" / "lodge-vmm"
QEMU = shutil.which("qemu-system-x86_64")


def need(*paths):
    for path in paths:
        if not path or not pathlib.Path(path).exists():
            sys.exit(f"bench: {path or 'qemu-system-x86_64'} is missing; run `make bench`, which makes or installs it")


def lodge(kernel, initrd=None, append="", memory=1024, vcpus=1, extra=(), engine="soft"):
    argv = [str(VMM), "--memory", f"{memory}M", "--vcpus", str(vcpus), "--engine", engine, "--kernel", str(kernel),
            "--no-reboot", "--chardev", "stdio,id=c0", "--device", "isa-serial,chardev=c0"]
    if initrd:
        argv += ["--initrd", str(initrd)]
    return argv + (["--cmdline", append] if append else []) + list(extra)


def tcg(kernel, initrd=None, append="", memory=1024, vcpus=1, extra=()):
    argv = [QEMU, "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", str(memory), "-smp", str(vcpus), "-nodefaults",
            "-no-reboot", "-display", "none", "-serial", "stdio", "-monitor", "none", "-kernel", str(kernel)]
    if initrd:
        argv += ["-initrd", str(initrd)]
    return argv + (["-append", append] if append else []) + list(extra)


class Guest:
    """A running machine whose console is its standard output."""

    def __init__(self, argv):
        self.born = time.monotonic()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.seen = b""

    def wait_for(self, marker, limit_s=300):
        """Seconds since the start when @marker stood on the console; ends the program with the console's tail if it never does."""
        os.set_blocking(self.process.stdout.fileno(), True)
        while marker not in self.seen:
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data or time.monotonic() - self.born > limit_s:
                tail = self.seen[-2000:].decode("latin1")
                self.end()
                sys.exit(f"bench: {self.process.args[0]}: no {marker!r} on the console; it ends with:\n{tail}")
            self.seen += data
        return time.monotonic() - self.born

    def end(self):
        self.process.kill()
        self.process.wait()


def overhead_kib(pid, guest_mib):
    """Memory of a process apart from its guest's RAM, in KiB: what it has mapped twice (Pss) counts once. RAM is a memfd whose
    name says so, or a mapping of at least half the guest's size."""
    total = size = 0
    ram = False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ram = "lodge-guest-ram" in line or "memory-backend" in line
        elif line.startswith("Size:"):
            size = int(line.split()[1])
        elif line.startswith("Pss:") and not ram and size < guest_mib * 1024 // 2:
            total += int(line.split()[1])
    return total


def compare(name, unit, ours, theirs, gate=None, least=None):
    """Prints one line: medians and their ratio; returns whether the gate (a largest, or a least ratio) holds."""
    a, b = statistics.median(ours), statistics.median(theirs)
    held = (gate is None or a / b <= gate) and (least is None or a / b >= least)
    bound = f"at most {gate}" if gate is not None else f"at least {least}"
    print(f"{name}: lodge {a:.4g} {unit} ({min(ours):.4g} to {max(ours):.4g}), qemu {b:.4g} {unit} "
          f"({min(theirs):.4g} to {max(theirs):.4g}), ratio {a / b:.2f}"
          + ("" if gate is None and least is None else f", {bound}: {'holds' if held else 'BROKEN'}"), flush=True)
    return held


def limit(name, unit, values, most):
    a = statistics.median(values)
    print(f"{name}: lodge {a:.4g} {unit} ({min(values):.4g} to {max(values):.4g}), at most {most}: "
          f"{'holds' if a <= most else 'BROKEN'}", flush=True)
    return a <= most
