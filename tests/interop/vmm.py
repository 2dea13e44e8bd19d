#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""lodge-vmm as a program: options, errors, consoles, signals, exit status. vmm.py LODGE-VMM."""
import os
import pty
import re
import select
import signal
import socket
import subprocess
import tempfile
import termios
import time

from vmm_guest import COM1, ECHO, IDLE, LOAD, POWER_OFF, RESET, SPIN, Vmm, out8, run_tests, text

CONSOLE = ["--chardev", "stdio,id=c0", "--device", "isa-serial,chardev=c0"]


def run(program, *arguments):
    return subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)


def help_and_version(program):
    r = run(program, "--help")
    assert r.returncode == 0 and "--kernel" in r.stdout and not r.stderr
    r = run(program, "--version")
    assert r.returncode == 0 and r.stdout.startswith("lodge-vmm ")


def manual(program):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with open(os.path.join(root, "docs/man/lodge-vmm.1")) as f:
        page = [line[4:].replace("Fl -", "--").replace(" Ar ", " ").strip() for line in f if line.startswith(".It Fl")]
    said = [line.strip() for line in run(program, "--help").stdout.splitlines() if line.startswith("  --")]
    assert page == said, set(page) ^ set(said)
    with open(os.path.join(root, "docs/qmp.md")) as f:
        written = f.read()
    made = subprocess.run([os.path.join(root, "scripts/qmp-gen"), os.path.join(root, "schema/qmp/lodge.json"), "doc"],
                          capture_output=True, text=True, check=True).stdout
    assert made == written, "docs/qmp.md is not what scripts/qmp-gen makes"


def refusals(program):
    with tempfile.TemporaryDirectory() as d:
        junk = os.path.join(d, "junk")
        with open(junk, "wb") as f:
            f.write(b"#!/bin/sh\n" * 1000)
        fifo = os.path.join(d, "fifo")
        os.mkfifo(fifo)
        cases = [
            (["--memry", "1G"], "--memry"),
            (["stray"], "stray"),
            (["--memory"], "--memory needs"),
            (["--memory", "lots"], "lots"),
            (["--memory", "99999999999999999999G"], "--memory"),
            (["--memory", "0"], "--memory"),
            (["--uuid", "12"], "UUID"),
            (["--vcpus", "0"], "--vcpus"),
            (["--vcpus", "4,sockets=3"], "--vcpus"),
            (["--vcpus", "2,colour=1"], "--vcpus"),
            (["--engine", "steam"], "steam"),
            (["--paused=yes"], "takes no value"),
            (["--chardev", "stdio"], "id="),
            (["--chardev", "stdio,id=a,id=b"], "twice"),
            (["--chardev", ",id=a"], "type"),
            (["--qmp", "tcp:1"], "unix:PATH"),
            (["--sandbox", "maybe"], "maybe"),
            (["--cpu", "i8080"], "x86-64-v3"),
            (["--cpu", "max,warp=require"], "warp"),
            (["--engine", "soft", "--cpu", "max,vmx=require", "--kernel", "/nowhere"], "vmx"),
            (["--perf-map", ""], "--perf-map"),
            ([], "no kernel"),
            (["--kernel", "/nowhere/k"], "/nowhere/k"),
            (["--engine", "soft", "--kernel", junk, "--perf-map", junk], "exists"),
            (["--engine", "soft", "--kernel", junk, "--perf-map", "/nowhere/%p.map"], "/nowhere/"),
            (["--kernel", junk], "junk"),
            (["--kernel", fifo], "regular file"),
            (["--kernel", "/"], "/"),
            (["--kernel", junk, "--chardev", "pigeon,id=a"], "pigeon"),
            (["--kernel", junk, "--chardev", "null,id=a,size=2"], "size"),
            (["--kernel", junk, "--chardev", "null,id=a", "--chardev", "null,id=a"], "'a'"),
            (["--kernel", junk, "--chardev", "file,id=a,path=/nowhere/x"], "/nowhere/x"),
            (["--kernel", junk, "--chardev", "file,id=a,path=" + fifo], "nobody reads"),
            (["--kernel", junk, "--drive", "raw,id=d,file=" + fifo], "fifo"),
            (["--kernel", junk, "--initrd", fifo], "initrd"),
            (["--kernel", junk, "--chardev", "unix,id=a,path=" + "x" * 200], "107"),
            (["--kernel", junk, "--chardev", "unix,id=a,path=%s/s,server=off" % d], "server=on"),
            (["--kernel", junk, "--device", "flux-capacitor"], "flux-capacitor"),
            (["--kernel", junk, "--device", "isa-serial,chardev=no"], "no"),
            (["--kernel", junk, "--drive", "raw,id=d,file=/nowhere/d"], "/nowhere/d"),
        ]
        for arguments, part in cases:
            r = run(program, *arguments)
            assert r.returncode != 0 and part in r.stderr, (arguments, r)
            assert r.stderr.startswith("lodge-vmm: ") and r.stderr.count("\n") == 1, (arguments, r.stderr)
            assert not r.stdout, r


def quiet_and_verbose(program):
    for options, expected in (([], b""), (["--verbose"], b"soft")):
        with Vmm(program, POWER_OFF + IDLE, *options, qmp=False) as vm:
            assert vm.wait() == 0
            errors = vm.process.stderr.read()
            assert expected in errors and bool(expected) == bool(errors), errors
            assert vm.process.stdout.read() == b""


def console_to_a_pipe(program):
    with Vmm(program, text(COM1, b"hello, pipe\n") + POWER_OFF + IDLE, *CONSOLE, qmp=False) as vm:
        assert vm.wait() == 0
        assert vm.process.stdout.read() == b"hello, pipe\n"


def console_from_a_pipe(program):
    with Vmm(program, ECHO, *CONSOLE, qmp=False, stdin=subprocess.PIPE) as vm:
        vm.process.stdin.write(b"ping\x1dpong" * 20)  # Ctrl-] means nothing in a pipe
        vm.process.stdin.close()
        got = b""
        while len(got) < 180:
            got += os.read(vm.process.stdout.fileno(), 200)
        assert got == b"ping\x1dpong" * 20, got
        assert vm.process.poll() is None  # end of input is not the end


def console_on_a_terminal(program):
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with Vmm(program, text(COM1, b"up") + ECHO, *CONSOLE, qmp=False, stdin=slave, stdout=slave) as vm:
        got = b""
        while b"up" not in got:
            assert select.select([master], [], [], 10)[0]
            got += os.read(master, 100)
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        os.write(master, b"\x03k")  # Ctrl-C is the guest's
        while b"\x03k" not in got:
            assert select.select([master], [], [], 10)[0]
            got += os.read(master, 100)
        os.write(master, b"\x1d")
        assert vm.wait() == 0
        assert b"left by Ctrl-]" in os.read(master, 200)
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def console_on_a_socket(program):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "con")
        options = ["--chardev", "unix,id=c0,path=" + path, "--device", "isa-serial,chardev=c0"]
        with Vmm(program, ECHO, *options) as vm:
            vm.connect().negotiate()
            for _ in range(3):  # one peer after another
                s = socket.socket(socket.AF_UNIX)
                s.connect(path)
                s.sendall(b"abc")
                got = b""
                while len(got) < 3:
                    got += s.recv(3)
                assert got == b"abc"
                s.close()
            r = run(program, "--kernel", "/dev/null", "--chardev", "unix,id=x,path=" + path)
            assert "another process" in r.stderr, r.stderr
            vm.process.send_signal(signal.SIGKILL)
            vm.wait()
        with Vmm(program, POWER_OFF + IDLE, *options, qmp=False) as vm:  # the stale socket is no hindrance
            assert vm.wait() == 0


def console_in_a_file(program):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "a,b")
        options = ["--chardev", "file,id=c0,path=" + path.replace(",", ",,"), "--device", "isa-serial,chardev=c0"]
        with Vmm(program, text(COM1, b"filed") + POWER_OFF + IDLE, *options, qmp=False) as vm:
            assert vm.wait() == 0, vm.process.stderr.read()
        with open(path, "rb") as f:
            assert f.read() == b"filed"


def exit_status(program):
    options = ["--device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    for value in (0, 1, 0x10):
        with Vmm(program, out8(0xF4, value) + IDLE, *options, qmp=False) as vm:
            assert vm.wait() == value << 1 | 1


def signals(program):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with Vmm(program, SPIN) as vm:
            c = vm.connect()
            c.negotiate()
            vm.process.send_signal(number)
            assert c.event("SHUTDOWN")["data"] == {"guest": False, "reason": "host-signal"}
            assert vm.wait() == 0


def triple_fault_resets(program):
    # lidt of an empty table, then int3: the machine starts again; the count is kept in RAM above the image.
    again = b"\xff\x05\x00\x00\x20\x00"             # inc dword [0x200000]
    enough = b"\x83\x3d\x00\x00\x20\x00\x03"        # cmp dword [0x200000], 3
    leave = POWER_OFF + IDLE
    code = again + enough + b"\x72" + bytes([len(leave)]) + leave
    code += b"\x6a\x00\x6a\x00\x0f\x01\x1c\x24\xcc"  # push 0; push 0; lidt [esp]; int3
    code = b"\xbc\x00\x00\x30\x00" + code            # mov esp, 0x300000
    with Vmm(program, code, qmp=False) as vm:
        assert vm.wait() == 0
    with Vmm(program, RESET + IDLE, "--no-reboot", qmp=False) as vm:
        assert vm.wait() == 0


def pidfile(program):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "pid")
        with Vmm(program, IDLE, "--pidfile", path) as vm:
            vm.connect().negotiate()
            with open(path) as f:
                assert int(f.read()) == vm.process.pid
            r = run(program, "--kernel", "/dev/null", "--pidfile", path)
            assert "running machine" in r.stderr, r.stderr


def sandboxed(program):
    with Vmm(program, IDLE) as vm:
        vm.connect().negotiate()
        with open("/proc/%d/status" % vm.process.pid) as f:
            status = f.read()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    with Vmm(program, IDLE, "--sandbox", "off") as vm:
        vm.connect().negotiate()
        with open("/proc/%d/status" % vm.process.pid) as f:
            assert "Seccomp:\t0" in f.read()


LONG_MODE = """
    .code32
    movl $0x201003, 0x200000    # PML4, and one page of 1 GiB
    movl $0x83, 0x201000
    mov $0x20, %eax
    mov %eax, %cr4
    mov $0x200000, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80000011, %eax
    mov %eax, %cr0
    lgdt pointer
    ljmp $8, $wide
    .code64
wide:
    mov $1000000, %ecx
1:  dec %ecx
    jnz 1b
2:  hlt
    jmp 2b
    .balign 8
gdt: .quad 0, 0x00209b0000000000
pointer: .word 15; .long gdt
"""


def assemble(folder, source):
    """The bytes of @source for Vmm: it starts at LOAD + 32."""
    paths = [os.path.join(folder, n) for n in ("a.s", "a.o", "a.bin")]
    with open(paths[0], "w") as f:
        f.write(source)
    subprocess.run(["as", "--64", "-o", paths[1], paths[0]], check=True)
    subprocess.run(["ld", "-Ttext", hex(LOAD + 32), "-e", "0", "--oformat", "binary", "-o", paths[2], paths[1]], check=True)
    with open(paths[2], "rb") as f:
        return f.read()


def perf_map(program):
    with tempfile.TemporaryDirectory() as d:
        with Vmm(program, assemble(d, LONG_MODE), "--perf-map", os.path.join(d, "perf-%p.map")) as vm:
            c = vm.connect()
            c.negotiate()
            deadline = time.monotonic() + 10
            while "HLT=1" not in c.value("human-monitor-command", command_line="info registers") and time.monotonic() < deadline:
                time.sleep(0.05)
            values = {s["name"]: s["value"] for s in c.value("query-stats", target="vcpu")[0]["stats"]}
            path = os.path.join(d, "perf-%d.map" % vm.process.pid)
            assert os.stat(path).st_mode & 0o7777 == 0o600
            with open(path) as f:
                lines = f.read().splitlines()
        assert len(lines) == values["blocks-translated"] > 0, (lines, values)
        assert 0 < values["translated-guest-bytes"] < values["translated-host-bytes"], values
        assert values["translation-time"] > 0 and values["code-cache-used"] > values["translated-host-bytes"], values
        for line in lines:
            match = re.fullmatch(r"([0-9a-f]+) ([0-9a-f]+) guest:([0-9a-f]+)@([0-9a-f]+)", line)
            assert match and match[3] == match[4] and int(match[2], 16) > 0, line
            assert LOAD < int(match[3], 16) < LOAD + 4096, line


def starts_fast(program):
    best = 1.0
    for _ in range(5):
        start = time.monotonic()
        with Vmm(program, text(COM1, b"!") + IDLE, *CONSOLE, qmp=False) as vm:
            os.read(vm.process.stdout.fileno(), 1)
            best = min(best, time.monotonic() - start)
    print("# process start to a byte from the guest: %.1f ms" % (best * 1000))
    assert best < 0.2  # the promise (20 ms) is measured by bench/startup on a quiet machine


run_tests([help_and_version, manual, refusals, quiet_and_verbose, console_to_a_pipe, console_from_a_pipe,
           console_on_a_terminal, console_on_a_socket, console_in_a_file, exit_status, signals, triple_fault_resets,
           pidfile, sandboxed, perf_map, starts_fast])
