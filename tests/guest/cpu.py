#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's kernel to init on the software CPU in one of its modes, and programs there that are hard on a CPU.

usage: cpu.py VMM MODE [--vcpus N] [--long] [PROGRAM ...]
MODE is what lodge-vmm --cpu-debug takes, or `none`. VMM may be lockstep-vmm. --long: only with LODGE_CHECK_LONG=1.
Each PROGRAM (tests/guest/programs) must end with status 0.
Exit status 77 (skipped) where the kernel cannot be had, or without LODGE_CHECK_LONG.
"""
import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))


def skip(why):
    print("skipped: " + why)
    sys.exit(77)


def make_initrd(folder, programs):
    script, initrd = os.path.join(folder, "run.sh"), os.path.join(folder, "initrd")
    with open(script, "w", encoding="ascii") as f:
        for p in programs:
            f.write(f"/{p.name}; echo EXIT {p.name} $?\n")
    argv = [ROOT / "scripts/guest/make-initrd", "--folder", BUILD / "guest", "--output", initrd, "--script", script]
    for p in programs:
        argv += ["--file", str(p)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        skip(done.stderr.strip())
    return initrd


def boot(args, initrd):
    """The machine until it has switched itself off: what it printed, and how long it took."""
    tuning = [] if args.mode == "none" else ["--cpu-debug", args.mode]
    argv = [args.vmm, "--memory", "192", "--vcpus", str(args.vcpus), "--engine", "soft", *tuning, "--sandbox", "off",
            "--kernel", str(BUILD / "guest/vmlinuz"), "--initrd", initrd, "--no-reboot",
            "--cmdline", "quiet console=ttyS0 panic=-1 mitigations=off no_timer_check lpj=4000000",
            "--chardev", "stdio,id=c", "--device", "isa-serial,chardev=c"]
    born = time.monotonic()
    vmm = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        out = vmm.communicate(timeout=args.limit)[0]
    except subprocess.TimeoutExpired:
        vmm.kill()
        out = vmm.communicate()[0] + b"\n(killed: not at its end in time)\n"
    return vmm.returncode, out.decode(errors="replace").replace("\r", ""), time.monotonic() - born


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("vmm")
    ap.add_argument("mode")
    ap.add_argument("--vcpus", type=int, default=1)
    ap.add_argument("--long", action="store_true")
    ap.add_argument("--limit", type=int, default=280)
    ap.add_argument("programs", nargs="*", type=pathlib.Path)
    args = ap.parse_intermixed_args()
    if args.long and not os.environ.get("LODGE_CHECK_LONG"):
        skip("only with LODGE_CHECK_LONG=1 (make check-long)")
    if args.long:
        args.limit = 3600
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        initrd = make_initrd(folder, args.programs)
        status, out, seconds = boot(args, initrd)
    print(out[-6000:])
    print(f"{args.mode}, {args.vcpus} vCPUs: {seconds:.1f} s")
    lines = out.split("\n")
    if status != 0:
        problems.append(f"the machine's exit status is {status}")
    for wanted in ["INIT-FIRST-LINE", "INIT-LAST-LINE"] + [f"EXIT {p.name} 0" for p in args.programs]:
        if not any(wanted in line for line in lines):
            problems.append(f"there is no '{wanted}'")
    for p in problems:
        print("FAILED: " + p)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
