# SPDX-License-Identifier: LGPL-2.1-or-later
"""`lodge run` as a user meets it: documents, options, consoles, exit statuses, messages. Prints TAP.

usage: run.py LODGE SOURCE_FOLDER
"""
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time

sys.dont_write_bytecode = True
from vmm_guest import COM1, ECHO, IDLE, POWER_OFF, RESET, image, out8, text  # noqa: E402

LODGE, SOURCE = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
LIMIT_S = 20
DOCUMENT = """<domain type='qemu'>
  <name>little</name>
  <memory unit='MiB'>16</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel></os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <sparkle bright='yes'/>
  <devices>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
{devices}
  </devices>
</domain>
"""
tests = []


def test(function):
    tests.append(function)
    return function


class Guest:
    """A folder with a kernel of a few instructions and its document."""

    def __init__(self, code, kernel="kernel", devices=""):
        self.folder = tempfile.TemporaryDirectory(prefix="lodge-run-")
        self.write("kernel", image(code))
        self.write("guest.xml", DOCUMENT.format(kernel=kernel, devices=devices).encode())

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as f:
            f.write(data)

    def run(self, *arguments, cwd=None):
        return subprocess.run([LODGE, "run", *arguments], capture_output=True, text=True, timeout=LIMIT_S, cwd=cwd,
                              stdin=subprocess.DEVNULL)

    def start(self, *arguments):
        return subprocess.Popen([LODGE, "run", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)


def wait_for(condition, what):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S} s"
        time.sleep(0.02)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return [int(w) for w in f.read().split()]


@test
def document_runs_and_powers_off():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    done = guest.run(guest.path("guest.xml"))
    assert done.returncode == 0, done
    assert "hello" in done.stdout, done
    engine = [line for line in done.stderr.splitlines() if "engine" in line]
    assert len(engine) == 1 and "soft" in engine[0], done.stderr
    assert re.search(r"guest\.xml:7: domain/sparkle", done.stderr), done.stderr


@test
def relative_paths_are_the_documents():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    done = guest.run(guest.path("guest.xml"), cwd="/")
    assert done.returncode == 0 and "hello" in done.stdout, done


@test
def options_alone_and_their_dry_run():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    options = ["--kernel", guest.path("kernel"), "--memory", "16M", "--net", "none", "--engine", "soft"]
    done = guest.run(*options)
    assert done.returncode == 0 and "hello" in done.stdout, done
    dry = guest.run(*options, "--dry-run")
    assert dry.returncode == 0 and dry.stdout.startswith("<domain type='qemu'>"), dry
    guest.write("dry.xml", dry.stdout.encode())
    again = guest.run(guest.path("dry.xml"))
    assert again.returncode == 0 and again.stdout == done.stdout, again


@test
def cpu_models():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    options = ["--kernel", guest.path("kernel"), "--memory", "16M", "--net", "none", "--engine", "soft", "--cpu", "x86-64-v1,+cx16,-pcid"]
    dry = guest.run(*options, "--dry-run")
    assert dry.returncode == 0 and "<model fallback='forbid'>x86-64-v1</model>" in dry.stdout, dry
    assert "<feature policy='require' name='cx16'/>" in dry.stdout and "<feature policy='disable' name='pcid'/>" in dry.stdout, dry
    guest.write("dry.xml", dry.stdout.encode())
    done = guest.run(guest.path("dry.xml"))
    assert done.returncode == 0 and "hello" in done.stdout, done
    for wrong, part in (("i8080", "x86-64-v3"), ("max,aes", "+aes"), ("max,+warp", "warp")):
        expect_error(guest.run("--kernel", guest.path("kernel"), "--cpu", wrong), part)
    expect_error(guest.run(*options[:-1], "max,+vmx"), "vmx")
    done = guest.run(*options[:-1], "max,+aes")
    assert (done.returncode == 0) == ("aes" not in done.stderr), done


@test
def document_from_standard_input():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    with open(guest.path("guest.xml"), "rb") as f:
        done = subprocess.run([LODGE, "run", "-", "--console", "stdio"], stdin=f, capture_output=True, text=True,
                              cwd=guest.folder.name, timeout=LIMIT_S)
    assert done.returncode == 0 and "hello" in done.stdout, done


@test
def console_to_a_file():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    done = guest.run(guest.path("guest.xml"), "--console", guest.path("log"))
    assert done.returncode == 0 and "hello" not in done.stdout, done
    with open(guest.path("log"), encoding="ascii") as f:
        assert "hello" in f.read()


@test
def debugger_starts_a_paused_guest():
    guest = Guest(text(COM1, b"hello\n") + POWER_OFF)
    path = guest.path("gdb")
    process = guest.start(guest.path("guest.xml"), "--paused", "--gdb", f"unix:{path}")
    try:
        wait_for(lambda: os.path.exists(path), "socket")
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            s.sendall(b"+$p10#d1")  # RIP
            got = b""
            while b"#" not in got:
                got += s.recv(100)
            assert got.startswith(b"+$20f00f0000000000#"), got  # what stands for a BIOS comes first
            s.sendall(b"+$D#44")
            out, error = process.communicate(timeout=LIMIT_S)
            assert process.returncode == 0 and "hello" in out, (out, error)
    finally:
        process.kill()
        process.wait()
    expect_error(guest.run(guest.path("guest.xml"), "--gdb", path), "unix:PATH")


@test
def console_on_a_socket_and_qmp():
    guest = Guest(ECHO)
    console, qmp = guest.path("console"), guest.path("qmp")
    process = guest.start(guest.path("guest.xml"), "--console", f"unix:{console}", "--qmp", qmp)
    try:
        wait_for(lambda: os.path.exists(console) and os.path.exists(qmp), "sockets")
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT_S)
            s.connect(console)
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT_S)
            s.connect(qmp)
            lines = s.makefile("rw")
            assert "QMP" in json.loads(lines.readline())
            lines.write('{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n')
            lines.flush()
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.communicate()


@test
def terminal_is_raw_and_comes_back():
    guest = Guest(ECHO)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([LODGE, "run", guest.path("guest.xml")], stdin=slave, stdout=slave,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: termios.tcgetattr(slave)[3] & termios.ICANON == 0, "raw terminal")
        os.write(master, b"\x03")  # Ctrl-C is the guest's
        assert select.select([master], [], [], LIMIT_S)[0]
        assert b"\x03" in os.read(master, 100)
        os.write(master, b"\x1d")  # Ctrl-] is ours
        process.wait(LIMIT_S)
        assert termios.tcgetattr(slave) == before, "the terminal stayed raw"
    finally:
        process.kill()
        process.wait()


@test
def terminal_comes_back_after_a_crash():
    guest = Guest(ECHO)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    process = subprocess.Popen([LODGE, "run", guest.path("guest.xml")], stdin=slave, stdout=slave,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(lambda: termios.tcgetattr(slave)[3] & termios.ICANON == 0, "raw terminal")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert process.wait(LIMIT_S) == 1
        assert termios.tcgetattr(slave) == before, "the terminal stayed raw"
        assert "ended by signal 9" in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        os.close(master)


@test
def sigterm_ends_the_guest():
    guest = Guest(text(COM1, b"up\n") + IDLE)
    process = guest.start(guest.path("guest.xml"))
    try:
        assert process.stdout.readline().strip() == "up"
        child = children(process.pid)[0]
        process.terminate()
        process.wait(LIMIT_S)
        assert not os.path.exists(f"/proc/{child}"), "lodge-vmm is still there"
    finally:
        process.kill()
        process.communicate()


@test
def guest_ends_with_its_parent():
    guest = Guest(text(COM1, b"up\n") + IDLE)
    process = guest.start(guest.path("guest.xml"))
    assert process.stdout.readline().strip() == "up"
    child = children(process.pid)[0]
    process.kill()
    process.communicate()
    wait_for(lambda: not os.path.exists(f"/proc/{child}"), "the end of lodge-vmm")


@test
def test_devices_give_the_guest_the_exit_status():
    for value in (0, 3, 0x30):
        guest = Guest(out8(0xE0, 9) + b"\xe4\xe0" + b"\x04" + bytes([(value - 9) & 0xFF]) + b"\xe6\xf4" + IDLE)
        options = ["--kernel", guest.path("kernel"), "--memory", "16M", "--net", "none", "--engine", "soft"]
        done = guest.run(*options, "--test-devices")
        assert done.returncode == (value << 1 | 1), done
        expect_error(guest.run(*options, "--test-devices", "--dry-run"), "--test-devices")


@test
def reset_with_on_reboot_destroy():
    guest = Guest(RESET + IDLE)
    done = guest.run(guest.path("guest.xml"))
    assert done.returncode == 0, done


def expect_error(done, *needles):
    assert done.returncode == 1, done
    for needle in needles:
        assert needle in done.stderr, f"'{needle}' is not in: {done.stderr}"
    assert len([line for line in done.stderr.splitlines() if "error:" in line]) >= 1, done.stderr


@test
def errors_name_file_and_line():
    guest = Guest(IDLE, kernel="nowhere")
    expect_error(guest.run(guest.path("guest.xml")), "guest.xml:4", "cannot read", guest.path("nowhere"))
    guest.write("guest.xml", b"<domain type='kvm'>\n<name>x</name>\n</domein>")
    expect_error(guest.run(guest.path("guest.xml")), "guest.xml:3")
    guest.write("guest.xml", b"<domain type='kvm'>\n<name>x</name>\n<memory>y</memory></domain>")
    expect_error(guest.run(guest.path("guest.xml")), "guest.xml:1: domain: element os is missing")
    expect_error(guest.run(guest.path("absent.xml")), "absent.xml: cannot open the document")
    expect_error(guest.run(), "name a domain XML file")
    expect_error(guest.run("--memory", "x"), "--memory: 'x'")


@test
def everything_refused_at_once():
    guest = Guest(IDLE)
    done = guest.run(os.path.join(SOURCE, "tests/golden/domain/debian9_libvirt.xml"))
    expect_error(done, "11 things", "debian9_libvirt.xml:126: <video model='qxl'>", ":123: <sound model='ich9'>",
                 ":120: <graphics type='spice'>", ":42: <disk device='cdrom'", "use type='user'")


@test
def broken_image_is_an_error():
    guest = Guest(IDLE, devices="<disk><driver name='qemu' type='qcow2'/><source file='bad'/>"
                                "<target dev='vda' bus='virtio'/></disk>")
    guest.write("bad", b"QFI\xfb" + b"\xff" * 600)
    expect_error(guest.run(guest.path("guest.xml")), guest.path("bad"))


@test
def a_fifo_is_no_disk_and_does_not_hang():
    guest = Guest(IDLE)
    os.mkfifo(guest.path("fifo"))
    done = guest.run("--kernel", guest.path("kernel"), "--disk", guest.path("fifo"))
    assert done.returncode == 1 and guest.path("fifo") in done.stderr, done
    done = guest.run("--kernel", guest.path("kernel"), "--console", guest.path("fifo"))
    assert done.returncode == 1 and guest.path("fifo") in done.stderr, done


@test
def closed_descriptors_are_not_taken_for_others():
    guest = Guest(IDLE)
    with subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&-', "sh", LODGE, "run", guest.path("guest.xml")],
                          stderr=subprocess.PIPE) as started:
        wait_for(lambda: children(started.pid), "lodge-vmm")
        time.sleep(0.3)
        started.terminate()
        assert started.wait(LIMIT_S) in (0, 1)
    guest.write("disk.raw", b"\0" * 512)
    subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", LODGE, "image", "info", "-f", "raw", guest.path("disk.raw")],
                   timeout=LIMIT_S, stderr=subprocess.DEVNULL)
    with open(guest.path("disk.raw"), "rb") as f:
        assert f.read() == b"\0" * 512


@test
def other_commands():
    def lodge(*words):
        return subprocess.run([LODGE, *words], capture_output=True, text=True, timeout=LIMIT_S)
    assert re.fullmatch(r"lodge \d+\.\d+\.\d+\n", lodge("--version").stdout)
    assert "Commands:" in lodge("help").stdout and lodge("help").stdout == lodge("--help").stdout
    assert lodge("run", "--help").stdout == lodge("help", "run").stdout
    assert lodge("fly").returncode == 1 and "there is no command 'fly'" in lodge("fly").stderr
    assert lodge().returncode == 1
    with open("/dev/full", "wb") as full:
        failed = subprocess.run([LODGE, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert failed.returncode == 1 and "standard output" in failed.stderr, failed
    shown = lodge("image", "--help")
    assert shown.returncode == 0 and "convert" in shown.stdout, shown


def main():
    print(f"1..{len(tests)}")
    failed = 0
    for number, function in enumerate(tests, 1):
        name = function.__name__.replace("_", "-")
        try:
            function()
            print(f"ok {number} - {name}", flush=True)
        except (AssertionError, OSError, subprocess.SubprocessError, IndexError) as e:
            failed += 1
            print(f"not ok {number} - {name}", flush=True)
            for line in f"{type(e).__name__}: {e}".splitlines():
                print(f"# {line}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
