# SPDX-License-Identifier: LGPL-2.1-or-later
"""Building and running guestbench.c: on this host, and in a guest of the stock kernel whose init runs it."""
import os
import subprocess
import sys
import time

from common import GUEST, ROOT, Guest

APPEND = "quiet console=ttyS0 mitigations=off"
CLOCK_SLACK_S, CLOCK_SLACK = 1.0, 0.05  # the console's latency; how far the guest's clock may be off


def build(folder):
    """The program, in @folder."""
    program = os.path.join(folder, "guestbench")
    subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-static", "-march=x86-64", "-o", program, ROOT / "bench/guestbench.c", "-lm"],
                   check=True)
    return program


def make_initrd(folder, program, commands, files=()):
    """An initramfs that runs @commands, lines of shell, with guestbench in its PATH and @files (PATH:NAME)."""
    script, initrd = os.path.join(folder, "script"), os.path.join(folder, "initrd")
    with open(script, "w") as f:
        f.write(f"echo BENCH-BEGIN\n{commands}\necho BENCH-END\nsleep 30\n")  # it is ended before
    subprocess.run([ROOT / "scripts/guest/make-initrd", "--folder", GUEST, "--output", initrd, "--script", script,
                    "--file", f"{program}:bin/guestbench", *(w for f in files for w in ("--file", f))], check=True, stderr=subprocess.DEVNULL)
    return initrd


def lines_of(text):
    lines = [line.split() for line in text.splitlines()]
    return [w for w in lines if len(w) == 4 and w[0] == "BENCH"]


def figures(text):
    """{workload: (seconds, check)} of guestbench's output."""
    return {w[1]: (float(w[2]), w[3]) for w in lines_of(text)}


def run_native(program, arguments):
    done = subprocess.run(["taskset", "-c", "0", program, *arguments], capture_output=True, text=True, check=True)
    return figures(done.stdout)


def run_guest(argv, limit_s=900, before_end=None):
    """figures() of the guest's run, and whether its clock ran as the host's; @before_end is called when the last line stands."""
    guest = Guest(argv)
    first = guest.wait_for(b"INIT-FIRST-LINE", limit_s)
    guest.wait_for(b"BENCH-BEGIN", limit_s)
    begin = time.monotonic()
    guest.wait_for(b"BENCH-END", limit_s)
    host = time.monotonic() - begin
    if before_end:
        before_end()
    guest.end()
    found = figures(guest.seen.decode("latin1"))
    if "TOTAL" not in found:
        sys.exit("bench: guestbench failed in the guest:\n" + guest.seen[-1500:].decode("latin1"))
    inside = sum(float(w[2]) for w in lines_of(guest.seen.decode("latin1")) if w[1] == "TOTAL")
    print(f"# {os.path.basename(argv[0])}: init after {first:.2f} s, {inside:.2f} s by the guest's clock, {host:.2f} s by the host's",
          flush=True)
    found["CLOCK"] = (abs(host - inside) <= CLOCK_SLACK_S + CLOCK_SLACK * host, "")
    return found
