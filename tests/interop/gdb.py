#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A stock gdb against a guest with symbols, and a bare peer where gdb cannot be made to misbehave. gdb.py LODGE-VMM DEBUGGEE"""
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time

from vmm_guest import Client, run_tests

DEBUGGEE = sys.argv[2]


class Guest:
    """The debuggee, waiting for a debugger (or running, paused=False)."""

    def __init__(self, program, vcpus=2, paused=True, where=None):
        self.dir = tempfile.TemporaryDirectory(prefix="lodge-gdb-")
        self.path = os.path.join(self.dir.name, "gdb")
        self.where = where or "unix:" + self.path
        command = [program, "--engine", "soft", "--memory", "64", "--vcpus", str(vcpus), "--kernel", DEBUGGEE, "--gdb", self.where,
                   "--qmp", "unix:" + self.path + ".qmp"]
        if paused:
            command.append("--paused")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 10
        while not os.path.exists(self.path + ".qmp") or (not where and not os.path.exists(self.path)):
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()
            time.sleep(0.01)
        self.target = self.path if not where else where.removeprefix("tcp:")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        self.dir.cleanup()

    def qmp(self):
        s = socket.socket(socket.AF_UNIX)
        s.connect(self.path + ".qmp")
        client = Client(s)
        client.negotiate()
        return client

    def gdb(self, *commands, check=True, seconds=60):
        """What gdb prints for each of @commands: a dictionary, and in order a list."""
        script = os.path.join(self.dir.name, "script")
        with open(script, "w") as f:
            f.write("set pagination off\nset confirm off\nset width 0\nset print thread-events off\nset tcp connect-timeout 10\n")
            f.write("target remote %s\n" % self.target)
            for number, command in enumerate(commands):
                f.write("echo \\n<<%d>>\\n\n%s\n" % (number, command))
            f.write("echo \\n<<%d>>\\n\n" % len(commands))
        done = subprocess.run(["gdb", "-nx", "-batch", "-x", script, DEBUGGEE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=seconds)
        pieces = re.split(r"\n<<\d+>>\n", done.stdout)
        if check and len(pieces) != len(commands) + 2:
            raise AssertionError(done.stdout)
        return [p.strip() for p in pieces[1:-1]] if check else done.stdout


def functions_and_variables(program):
    with Guest(program) as g:
        out = g.gdb("break note", "continue", "bt", "print value", "finish", "print watched", "print rounds", "print/x constant",
                    "break factorial if n == 2", "continue", "bt", "info breakpoints", "delete", "tbreak note", "continue",
                    "print value", "set var read_me = 1000", "tbreak vectors", "continue", "print result", "up", "info locals")
        assert "hit Breakpoint 1, note (value=3)" in out[1], out[1]
        assert re.search(r"#0 +note \(value=3\)(.|\n)*#1 .* in guest_main \(\)", out[2]), out[2]
        assert out[3] == "$1 = 3" and "guest_main ()" in out[4] and out[5] == "$2 = 3" and out[6] == "$3 = 1", out
        assert out[7].endswith("0x1122334455667788"), out[7]
        frames = re.findall(r"^#\d+ .*", out[10], re.M)
        assert [re.search(r"n=(?:n@entry=)?(\d)", f).group(1) for f in frames[:4]] == ["2", "3", "4", "5"], out[10]
        assert "stop only if n == 2" in out[11] and "already hit 1 time" in out[11], out[11]
        assert "Temporary breakpoint" in out[14] and out[15].endswith("= 6"), out
        assert out[19].endswith("= 1120"), out[19]  # factorial(5) + read_me


def steps(program):
    with Guest(program) as g:
        out = g.gdb("break note", "continue", "x/i $pc", "stepi", "x/i $pc", "print (long)$pc - (long)note", "next", "next", "step", "print rounds",
                    "set scheduler-locking on", "print second_rounds", "next", "next", "print second_rounds",
                    "thread 2", "stepi 30", "print second_rounds > $4", "set scheduler-locking off", "delete", "print factorial(6)", "nexti 3")
        assert "note" in out[2] and "note" in out[4] and out[2] != out[4], out
        assert re.fullmatch(r"\$1 = [1-9]\d*", out[5]), out[5]
        assert "guest_main" in out[6] and "vectors ()" in out[8], out
        assert out[11].split("=")[1] == out[14].split("=")[1], (out[11], out[14])  # thread 2 stood still
        assert out[17].endswith("= 1"), out[17]
        assert out[20].endswith("= 720"), out[20]  # a call made by gdb, in the guest


def watchpoints(program):
    with Guest(program) as g:
        out = g.gdb("break guest_main", "continue", "delete", "watch watched", "continue", "continue", "delete",
                    "watch bytes[5]", "continue", "delete", "rwatch read_me", "continue", "delete",
                    "awatch result", "continue", "continue", "delete", "watch rounds if rounds == 40", "continue", "print rounds",
                    "watch second_rounds thread 2", "continue")
        assert "Hardware watchpoint" in out[3], out[3]
        assert re.search(r"Old value = 0\nNew value = 3\n", out[4]) and "note (value=3)" in out[4], out[4]
        assert re.search(r"Old value = 3\nNew value = 6\n", out[5]), out[5]
        assert re.search(r"Old value = 3 '\\003'\nNew value = 6 '\\006'\n", out[8]), out[8]
        assert "Hardware read watchpoint" in out[11] and "Value = 77" in out[11], out[11]
        assert "Hardware access (read/write) watchpoint" in out[14] and "guest_main" in out[14], out[14]
        assert "Hardware access (read/write) watchpoint" in out[15], out[15]
        assert "New value = 40" in out[18] and out[19].endswith("= 40"), out
        assert "Thread 2 hit" in out[21] and "second_main" in out[21], out[21]


def user_mode(program):
    with Guest(program) as g:
        out = g.gdb("break user_work", "continue", "print $cs & 3", "bt", "print user_rounds", "delete", "watch user_value", "continue", "continue",
                    "delete", "awatch user_rounds", "continue", "continue", "delete", "break note", "continue", "print $cs & 3", "stepi", "delete",
                    "tbreak user_work", "continue", "stepi 2", "finish", "stepi 3", "watch user_value if user_value > 100", "continue",
                    "print user_value", "delete", "break note", "ignore $bpnum 300", "continue", "delete", "rwatch user_spins", "continue", "continue",
                    "delete", "watch user_spins", "continue", "continue", "delete", "watch user_value", "continue", "print $cs & 3")
        assert "user_work ()" in out[1] and out[2].endswith("= 3") and "user_entry" in out[3] and out[4].endswith("= 0"), out
        assert re.search(r"Old value = 0\nNew value = 2\n", out[7]) and re.search(r"Old value = 2\nNew value = 4\n", out[8]), out
        assert "access (read/write) watchpoint" in out[11] and "access (read/write) watchpoint" in out[12], out
        assert out[16].endswith("= 0") and "user_work" in out[20] and out[26].endswith("= 102"), out
        # After 300 rounds, where the engine may have found better ways to run it.
        assert "hit Breakpoint" in out[30] and "Hardware read watchpoint" in out[33] and "Hardware read watchpoint" in out[34], out
        for stop in out[37:39]:
            old, new = (int(v) for v in re.search(r"Old value = (\d+)\nNew value = (\d+)", stop).groups())
            assert new == old + 1, stop
        assert "Hardware watchpoint" in out[41] and "user_work" in out[41] and out[42].endswith("= 3"), out


def registers(program):
    with Guest(program) as g:
        out = g.gdb("print/x $rip == (long)_start", "break vectors_loaded", "continue", "print/x $xmm0.v2_int64", "print with_avx",
                    "print/x $ymm1.v4_int64", "set var $xmm5.uint128 = 0x0123456789abcdef", "print/x $xmm5.v2_int64[0]", "print $cr0", "print $cr4",
                    "print $efer", "print/x $cr3 != 0", "print $cs", "info registers eflags mxcsr fctrl ftag k_gs_base fs_base",
                    "set var $gs_base = 0x123450", "print/x $gs_base", "set var $rbx = 0x1122334455667788", "stepi", "print/x $rbx",
                    "print $rip", "print $cs", "set var $eflags |= 1", "print $eflags", "info all-registers", "print $st0", "thread 2",
                    "print/x $rbx == 0x1122334455667788")
        assert out[0].endswith("= 0x1"), out[0]
        assert out[3].endswith("= {0x1111111111111111, 0x2222222222222222}"), out[3]
        if not out[4].endswith("= 0"):
            assert out[5].endswith("{0x1111111111111111, 0x2222222222222222, 0x3333333333333333, 0x4444444444444444}"), out[5]
        assert out[7].endswith("0x123456789abcdef"), out[7]
        assert all(f in out[8] for f in ("PE", "PG")) and all(f in out[9] for f in ("PAE", "OSFXSR")) and "LMA" in out[10], out[8:11]
        assert out[11].endswith("0x1") and out[12].endswith("= 8"), out
        assert all(r in out[13] for r in ("eflags", "mxcsr", "k_gs_base")) and re.search(r"fctrl +0x", out[13]), out[13]
        assert out[15].endswith("0x123450") and out[18].endswith("0x1122334455667788"), out
        assert "CF" in out[22] and out[26].endswith("0x0"), out
        out = g.gdb("set var $cs = 0x18", check=False)
        assert 'Could not write register "cs"' in out, out  # its hidden part would not follow


def memory(program):
    with Guest(program) as g:
        out = g.gdb("break note", "continue", "x/gx &constant", "x/gx (char *)&constant - 0x80000000", "output $_siginfo", check=False)
        assert out.count("0x1122334455667788") == 2, out
        out = g.gdb("set var *(long *)&read_me = -1", "print read_me", "python print('py')", "dump binary memory %s/dump note (char *)note+64" % g.dir.name,
                    "set var *(char *)(0xffffffff80000000 + (long)&bytes[9]) = 99", "print bytes[9]")
        assert out[1].endswith("= -1") and out[5].endswith("99 'c'"), out
        assert os.path.getsize(os.path.join(g.dir.name, "dump")) == 64
        for address in ("0x123456789000", "0x8000000000000000", "0xfee00000"):
            out = g.gdb("x/gx " + address, check=False)
            assert "Cannot access memory at address " + address in out, out


def threads(program):
    with Guest(program, vcpus=3) as g:
        out = g.gdb("info threads", "break second_main", "continue", "info threads", "bt", "delete", "break note thread 1", "continue",
                    "thread apply all -q print $_thread")
        assert re.search(r"1 .*CPU#0 \[running\].*_start", out[0]) and re.search(r"2 .*CPU#1 \[waits for SIPI\]", out[0]), out[0]
        assert re.search(r"Thread [23] hit Breakpoint 1, second_main", out[2]), out[2]
        assert "second_main" in out[4] and "Thread 1 hit" in out[7], out
        assert sorted(re.findall(r"= (\d)$", out[8], re.M)) == ["1", "2", "3"], out[8]


def receive(s, wanted):
    data = b""
    while wanted not in data:
        more = s.recv(100)
        assert more, data
        data += more


def detach_and_go_on(program):
    for commands in (["detach"], ["disconnect"], []):
        with Guest(program) as g:
            g.gdb("break note", "continue", "print rounds", "watch second_rounds", *commands)
            out = g.gdb("print rounds", "delete", "set var finish = 1", "detach")
            assert int(out[0].split("= ")[1]) > 1, out[0]  # it went on between the two
            assert g.process.wait(10) == 0


def kill(program):
    with Guest(program) as g:
        g.gdb("kill", check=False)
        assert g.process.wait(10) == 0


def guest_that_runs_is_stopped(program):
    with Guest(program, paused=False) as g:
        qmp = g.qmp()
        time.sleep(0.1)
        out = g.gdb("print rounds > 0", "info threads", "shell sleep 0.2", "print rounds > 0")
        assert out[0].endswith("= 1"), out
        assert qmp.value("query-status")["running"] is True
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(g.path)
            s.sendall(b"+$?#3f")
            receive(s, b"+$T05thread:1;#")
            assert qmp.value("query-status") == {"status": "paused", "singlestep": False, "running": False}
            s.sendall(b"+$vCont;c#a8")
            time.sleep(0.1)
            assert qmp.value("query-status")["running"] is True
            qmp.value("stop")
            receive(s, b"+$T02thread:1;#")
            qmp.value("cont")
            assert qmp.value("query-status")["running"] is True
            s.sendall(b"+$vCont;c#a8\x03")
            receive(s, b"+$T02thread:1;#")
            assert qmp.value("query-status")["running"] is False
        deadline = time.monotonic() + 5  # a lost connection is as good as a detach
        while not qmp.value("query-status")["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def interrupt(program):
    with Guest(program) as g:
        script = ["gdb", "-nx", "-batch", "-ex", "set pagination off", "-ex", "target remote " + g.path, "-ex", "continue", "-ex", "print rounds > 5",
                  DEBUGGEE]
        gdb = subprocess.Popen(script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(2)
        gdb.send_signal(2)
        out = gdb.communicate(timeout=30)[0]
        assert "received signal SIGINT" in out and "$1 = 1" in out, out


def monitor(program):
    with Guest(program) as g:
        out = g.gdb("monitor info status", "monitor info registers", "thread 2", "monitor info registers", "monitor help", "monitor nonsense",
                    "maintenance print target-stack")
        assert out[0] == "VM status: paused (prelaunch)", out[0]
        assert "CPU#0" in out[1] and "RIP=" in out[1] and "CPU#1" in out[3], out
        assert "info registers" in out[4] and "unknown command" in out[5], out


def tcp(program):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Guest(program, where="tcp:127.0.0.1:%d" % port) as g:
        out = g.gdb("break note", "continue", "set var finish = 1", "detach")
        assert "hit Breakpoint 1, note" in out[1], out[1]
        assert g.process.wait(10) == 0
        assert "password" not in g.process.stderr.read()
    r = subprocess.run([program, "--kernel", "/nowhere", "--gdb", "tcp:0.0.0.0:1"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    assert "there is no password" in r.stderr, r.stderr


def socket_and_refusals(program):
    with Guest(program) as g:
        assert stat.S_IMODE(os.stat(g.path).st_mode) == 0o600 and stat.S_ISSOCK(os.stat(g.path).st_mode)
    for value, said in (("pigeon:1", "unix:PATH"), ("tcp:localhost:1", "127.0.0.1:1234"), ("tcp:127.0.0.1", "127.0.0.1:1234"),
                        ("tcp:127.0.0.1:0", "127.0.0.1:1234"), ("tcp:127.0.0.1:65536", "127.0.0.1:1234"), ("tcp:192.0.2.1:1", "192.0.2.1"),
                        ("unix:", "107"), ("unix:" + "x" * 200, "107"), ("unix:/nowhere/gdb", "/nowhere/gdb")):
        r = subprocess.run([program, "--kernel", DEBUGGEE, "--gdb", value], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
        assert r.returncode in (1, 2) and said in r.stderr, (value, r.stderr)


def peer_that_does_not_read(program):
    """The machine goes on serving others, whatever a debugger does not take."""
    with Guest(program) as g, socket.socket(socket.AF_UNIX) as s:
        s.connect(g.path)
        s.settimeout(0.2)
        try:
            for _ in range(2000):
                s.sendall(b"$g#67" * 100)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        qmp = g.qmp()
        assert qmp.value("query-status")["status"] == "prelaunch"
        s.close()
        out = g.gdb("print rounds")
        assert out[0].endswith("= 0"), out


if __name__ == "__main__":
    if not shutil.which("gdb"):
        print("1..0 # SKIP there is no gdb")
        sys.exit(0)
    run_tests([functions_and_variables, steps, watchpoints, user_mode, registers, memory, threads, detach_and_go_on, kill, guest_that_runs_is_stopped,
               interrupt, monitor, tcp, socket_and_refusals, peer_that_does_not_read])
