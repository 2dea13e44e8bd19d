#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock gdb against Debian's kernel: from its first instruction to start_kernel, into system calls, and away again.

Debian's kernel image has no symbols; a first boot reads their addresses from /proc/kallsyms, and a symbol file is made of
them. Exit status 77 (skipped) where the kernel or gdb cannot be had.
"""
import atexit
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
LIMIT_S = 400
FUNCTIONS = ("start_kernel", "kernel_init", "do_sys_openat2", "do_sys_poll", "schedule")
DATA = ("linux_banner", "jiffies_64", "init_task")
TEXT = 0xFFFFFFFF81000000


def skip(why):
    print("skipped: " + why)
    sys.exit(77)


def make_initrd(folder):
    script, initrd = os.path.join(folder, "script"), os.path.join(folder, "initrd")
    with open(script, "w") as f:
        f.write("awk '$3 ~ /^(%s)$/ {print \"SYMBOL\", $1, $3}' /proc/kallsyms\n" % "|".join(FUNCTIONS + DATA))
    done = subprocess.run([ROOT / "scripts/guest/make-initrd", "--folder", BUILD / "guest", "--output", initrd, "--script", script],
                          capture_output=True, text=True)
    if done.returncode:
        skip(done.stderr.strip())
    return initrd


def start(initrd, *options):
    argv = [BUILD / "src/bin/lodge-vmm", "--engine", "soft", "--memory", "256M", "--vcpus", "2", "--kernel", BUILD / "guest/vmlinuz",
            "--initrd", initrd, "--cmdline", "console=ttyS0 quiet nokaslr", "--chardev", "stdio,id=c", "--device", "isa-serial,chardev=c", *options]
    vmm = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    atexit.register(vmm.kill)
    timer = threading.Timer(LIMIT_S, vmm.kill)
    timer.daemon = True
    timer.start()
    return vmm


def symbols(initrd):
    vmm = start(initrd)
    out = vmm.communicate()[0]
    found = {name: int(address, 16) for address, name in re.findall(r"SYMBOL ([0-9a-f]{16}) (\w+)", out)}
    assert vmm.returncode == 0 and set(found) == set(FUNCTIONS + DATA), out
    return found


def symbol_file(folder, found):
    """An ELF file with nothing but symbols at their addresses."""
    source, target = os.path.join(folder, "empty.s"), os.path.join(folder, "vmlinux")
    with open(source, "w") as f:
        f.write('.section .text, "ax", @nobits\n.space 0x3000000\n')
    subprocess.run(["gcc", "-c", "-o", target + ".o", source], check=True)
    adds = []
    for name, address in found.items():
        kind = "function" if name in FUNCTIONS else "object"
        adds += ["--add-symbol", "%s=.text:%#x,%s,global" % (name, address - TEXT, kind)]
    subprocess.run(["objcopy", "--change-section-address", ".text=%#x" % TEXT, *adds, target + ".o"], check=True)
    subprocess.run(["ld", "-Ttext=%#x" % TEXT, "-e", str(TEXT), "-o", target, target + ".o"], check=True)
    return target


def gdb(path, vmlinux, *commands):
    script = path + ".script"
    with open(script, "w") as f:
        f.write("set pagination off\nset confirm off\nset width 0\nset print thread-events off\ntarget remote %s\n" % path)
        for number, command in enumerate(commands):
            f.write("echo \\n<<%d>>\\n\n%s\n" % (number, command))
        f.write("echo \\n<<end>>\\n\n")
    out = subprocess.run(["gdb", "-nx", "-batch", "-x", script, vmlinux], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S).stdout
    pieces = re.split(r"\n<<\w+>>\n", out)
    assert len(pieces) == len(commands) + 2, out
    print(out, flush=True)
    return [p.strip() for p in pieces[1:-1]]


def debug(initrd, folder, vmlinux):
    path = os.path.join(folder, "gdb")
    vmm = start(initrd, "--gdb", "unix:" + path, "--paused")
    while not os.path.exists(path):
        assert vmm.poll() is None, vmm.communicate()[0]
    out = gdb(path, vmlinux, "hbreak start_kernel", "continue", "print/x $cr3 != 0", "print $cr0", "x/s &linux_banner", "info threads", "delete",
              "break do_sys_openat2", "continue", "print/x $gs_base != 0", "bt 1", "stepi", "stepi", "x/2i $pc", "delete",
              "watch *(long *)&jiffies_64", "continue", "continue", "delete", "break kernel_init", "info breakpoints", "delete",
              "tbreak schedule thread 2", "continue", "info threads", "detach")
    assert "start_kernel" in out[1] and out[2].endswith("= 0x1") and "PG" in out[3], out[1:4]
    assert "Linux version 6." in out[4], out[4]
    assert re.search(r"1 .*CPU#0 \[running\].*start_kernel", out[5]) and "CPU#1 [waits for SIPI]" in out[5], out[5]
    assert "do_sys_openat2" in out[8] and out[9].endswith("= 0x1") and "do_sys_openat2" in out[10], out[8:11]
    assert "do_sys_openat2" in out[12], out[12]
    for stop in out[16:18]:
        old, new = (int(v) for v in re.search(r"Old value = (\d+)\nNew value = (\d+)", stop).groups())
        assert 0 < new - old < 1000, stop
    assert "Thread 2" in out[23] and "schedule" in out[23], out[23]
    assert "waits for SIPI" not in out[24], out[24]
    console = vmm.communicate()[0]
    assert vmm.returncode == 0 and "INIT-LAST-LINE" in console, console


def main():
    if not shutil.which("gdb"):
        skip("there is no gdb")
    with tempfile.TemporaryDirectory(prefix="lodge-gdb-") as folder:
        initrd = make_initrd(folder)
        found = symbols(initrd)
        debug(initrd, folder, symbol_file(folder, found))
    print("gdb and the kernel: ok")


if __name__ == "__main__":
    main()
