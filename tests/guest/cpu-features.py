#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guest CPU models: the stock kernel on one, and a program that executes an instruction of each feature.

usage: cpu-features.py MODEL     as lodge-vmm's --cpu takes it
What CPUID offers must work; what it does not must be undefined (where it has an encoding of its own), and it offers
what the model says; the kernel takes the TSC as its clock without measuring it. Exit status 77 (skipped) where the kernel cannot be had.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
LIMIT_S = 240
# The x86-64 psABI's levels, 3.1.1; OSXSAVE shows in xsave.
LEVELS = {1: "cx8 cmov fxsr mmx sse sse2", 2: "cx16 lahf_lm popcnt pni sse4.1 sse4.2 ssse3",
          3: "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"}
ANYWHERE = set("tsc clflush erms fsrm".split())  # in every model where the engine has them
# Old encodings that mean something else, or nothing, without the feature.
SILENT = set("erms fsrm lahf_lm abm 3dnowprefetch".split())
FLAGS = {"nonstop_tsc", "smep", "smap", "umip", "pcid", "nx", "x2apic", "tsc_deadline_timer", "hypervisor", "constant_tsc"}


def run_guest(folder, model):
    program, script, initrd = (os.path.join(folder, n) for n in ("cpu-features", "script", "initrd"))
    subprocess.run(["gcc", "-O1", "-static", "-march=x86-64", "-o", program, ROOT / "tests/guest/cpu-features.c"], check=True)
    with open(script, "w") as f:
        f.write("CLOCK=/sys/devices/system/clocksource/clocksource0\ncpu-features\ngrep -m 1 '^flags' /proc/cpuinfo\n"
                "for i in $(seq 100); do grep -q tsc $CLOCK/current_clocksource && break; usleep 100000; done\n"
                "echo CLOCK $(cat $CLOCK/current_clocksource)\n"
                "dmesg | grep -iE 'tsc|clocksource|calibrat|kvm-clock' | sed 's/^/DMESG /'\n"
                "echo THREADS $(cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list)\n"
                "echo CORES $(cat /sys/devices/system/cpu/cpu*/topology/core_siblings_list)\n")
    done = subprocess.run([ROOT / "scripts/guest/make-initrd", "--folder", BUILD / "guest", "--output", initrd, "--script", script,
                           "--file", f"{program}:bin/cpu-features"], capture_output=True, text=True)
    if done.returncode:
        print("skipped: " + done.stderr.strip())
        sys.exit(77)
    argv = [BUILD / "src/bin/lodge-vmm", "--engine", "soft", "--memory", "256M", "--vcpus", "4,sockets=1,cores=2,threads=2", "--cpu", model,
            "--kernel", BUILD / "guest/vmlinuz", "--initrd", initrd, "--cmdline", "console=ttyS0 quiet", "--chardev", "stdio,id=c",
            "--device", "isa-serial,chardev=c"]
    vmm = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S)
    if "this host's CPU lacks" in vmm.stderr:
        print("skipped: " + vmm.stderr.strip())
        sys.exit(77)
    if "INIT-LAST-LINE" not in vmm.stdout:
        sys.exit(f"not ok - the guest ends\n{vmm.stderr}\n{vmm.stdout[-3000:]}")
    return vmm.stdout


def judge_clock(text):
    """The kernel takes the TSC, whose frequency it is told, and keeps it."""
    said = [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("DMESG ")]
    frequency = next(line.split()[1:] for line in text.splitlines() if line.startswith("FREQUENCY "))
    yield f"both leaves have one frequency {frequency}", frequency[0] == frequency[1] != "0"
    yield "the clock source is the TSC", "CLOCK tsc" in text.split("\n") or "CLOCK tsc\r" in text
    for wanted in ("kvm-clock: Using msrs", "Detected", "Calibrating delay loop (skipped)", "Switched to clocksource tsc"):
        yield f"the kernel says '{wanted}'", any(wanted in line for line in said)
    for bad in ("unstable", "calibration", "Fast TSC", "Refined", "skipped ref", "Marking"):
        yield f"the kernel does not say '{bad}'", not any(bad in line for line in said)


def judge(text, model):
    """(what, whether it holds) of everything that the guest said."""
    lines = [line.split() for line in text.splitlines()]
    features = {w[1]: (w[2] == "yes", w[3]) for w in lines if len(w) == 4 and w[0] == "FEATURE"}
    flags = next(set(w[2:]) for w in lines if w[:2] == ["flags", ":"])
    yield "all features were tried", len(features) > 40
    for name, (offered, result) in features.items():
        if offered:
            yield f"{name} is offered and works ({result})", result == "right"
        elif name not in SILENT:
            yield f"{name} is not offered and undefined ({result})", result == "undefined"
    base, *changes = model.split(",")
    if base != "max":
        wanted = set(" ".join(LEVELS[n] for n in range(1, int(base[-1]) + 1)).split())
        for change in changes:
            name, _, policy = change.partition("=")
            (wanted.add if policy == "require" else wanted.discard)(name)
        offered = {n for n, f in features.items() if f[0]} - ANYWHERE
        yield f"exactly {base}'s features are offered (not {sorted(offered ^ wanted)})", offered == wanted
    else:
        yield "max has at least what x86-64-v1 has", all(features[n][0] for n in LEVELS[1].split())
    yield f"the kernel has its own ({FLAGS - flags})", FLAGS <= flags
    yield "two threads a core, two cores", any(w == ["THREADS", "0-1", "0-1", "2-3", "2-3"] for w in lines)
    yield "one package", any(w == ["CORES", "0-3", "0-3", "0-3", "0-3"] for w in lines)


def main():
    failures = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("LODGE_TEST_TMP")) as folder:
        text = run_guest(folder, sys.argv[1])
    for what, ok in [*judge(text, sys.argv[1]), *judge_clock(text)]:
        failures += not ok
        print(("ok - " if ok else "not ok - ") + what, flush=True)
    if failures:
        sys.exit("--- console ---\n" + text[-3000:])


if __name__ == "__main__":
    main()
