#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory as page tables say, for user code that has run for long: tests/guest/mirror.c in a guest.

usage: mirror.py VCPUS TUNING [CASE...]     TUNING as lodge-vmm's --cpu-debug takes it, or "none"
The program's cases pass, and what they compute is what this host's own processor computes. Exit status 77 (skipped)
where the kernel cannot be had.
"""
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
LIMIT_S = 280
# What Intel's processors leave behind when these fault is not what AMD's do, nor the software CPU (tests/cpu/diff.c).
VENDORS_DIFFER = ("matrix repe cmpsb", "matrix repne scasq", "matrix maskmovdqu")
INTEL = "GenuineIntel" in pathlib.Path("/proc/cpuinfo").read_text()
SOURCES = [ROOT / "tests/guest" / f"mirror{part}.c" for part in ("", "-machine", "-matrix", "-fuzz", "-space", "-share")]


def build(folder):
    program = os.path.join(folder, "mirror")
    subprocess.run(["gcc", "-O1", "-static", "-no-pie", "-march=x86-64", "-w", "-o", program, *SOURCES, "-lpthread", "-lrt"], check=True)
    return program


def make_initrd(folder, program, cases):
    script, initrd = os.path.join(folder, "script"), os.path.join(folder, "initrd")
    with open(script, "w") as f:
        f.write(f"mirror {shlex.join(cases)}\n")
    done = subprocess.run([ROOT / "scripts/guest/make-initrd", "--folder", BUILD / "guest", "--output", initrd, "--script", script,
                           "--file", f"{program}:bin/mirror"], capture_output=True, text=True)
    if done.returncode:
        print("skipped: " + done.stderr.strip())
        sys.exit(77)
    return initrd


def map_count(pid):
    try:
        with open(f"/proc/{pid}/maps") as f:
            return sum(1 for _ in f)
    except OSError:
        return 0


def run_guest(folder, initrd, vcpus, tuning):
    """(console, most pieces of address space that were mapped at one time)"""
    out = os.path.join(folder, "console")
    argv = [BUILD / "src/bin/lodge-vmm", "--engine", "soft", "--memory", "512M", "--vcpus", vcpus, "--kernel", BUILD / "guest/vmlinuz",
            "--initrd", initrd, "--cmdline", "console=ttyS0 quiet", "--chardev", "stdio,id=c", "--device", "isa-serial,chardev=c"]
    if tuning != "none":
        argv += ["--cpu-debug", tuning]
    with open(out, "wb") as console:
        vmm = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.PIPE, text=True)
        deadline, most = time.monotonic() + LIMIT_S, 0
        while vmm.poll() is None and time.monotonic() < deadline:
            most = max(most, map_count(vmm.pid))
            time.sleep(0.2)
        vmm.kill()
        errors = vmm.communicate()[1]
    with open(out, encoding="utf-8", errors="replace") as f:
        text = f.read()
    if "INIT-LAST-LINE" not in text or vmm.returncode != 0:
        sys.exit(f"not ok - the guest ends ({vmm.returncode})\n{errors}\n{text[-3000:]}")
    return text, most


def results(text):
    return [line.strip() for line in text.splitlines() if line.startswith("RESULT ")]


def judge(guest, native, most, tuning):
    passes = [line.split() for line in guest.splitlines() if line.startswith(("PASS ", "FAIL "))]
    yield "the program came to its end", "ALL-CASES-DONE" in guest
    for words in passes:
        yield " ".join(words[1:]), words[0] == "PASS"
    here, there = results(guest), results(native)
    yield f"it computed something ({len(here)} lines)", len(here) == len(there)
    for a, b in zip(here, there):
        if a != b and not (INTEL and any(word in a for word in VENDORS_DIFFER)):
            yield f"{a}: this host's processor says {b}", False
    off = "interpreter" in tuning or "mirror=off" in tuning
    yield f"{most} pieces of address space: few without mirrors, many with them, not too many", \
        most < 500 if off else 100 < most < 60000


def main():
    vcpus, tuning, cases = sys.argv[1], sys.argv[2], sys.argv[3:]
    failures = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("LODGE_TEST_TMP")) as folder:
        program = build(folder)
        initrd = make_initrd(folder, program, cases)
        native = subprocess.run([program, *(cases or ["matrix", "wild", "fuzz"])], capture_output=True, text=True, timeout=LIMIT_S).stdout
        guest, most = run_guest(folder, initrd, vcpus, tuning)
    for what, ok in judge(guest, native, most, tuning):
        failures += not ok
        print(("ok - " if ok else "not ok - ") + what, flush=True)
    if failures:
        sys.exit("--- console ---\n" + guest[-3000:])


if __name__ == "__main__":
    main()
