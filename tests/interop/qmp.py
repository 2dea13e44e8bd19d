#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QMP as clients use it: qmp.py LODGE-VMM. With Debian's or PyPI's qemu.qmp where that is installed."""
import os
import socket
import time

from vmm_guest import ECHO, IDLE, POWER_OFF, RESET, SPIN, Client, Vmm, run_tests


def negotiation(program):
    with Vmm(program, IDLE) as vm:
        c = vm.connect()
        greeting = c.message()
        assert greeting["QMP"]["version"]["qemu"]["major"] == 7
        assert greeting["QMP"]["version"]["package"].startswith("lodge ")
        assert greeting["QMP"]["capabilities"] == []
        assert c.execute("query-status")["error"]["class"] == "CommandNotFound"
        assert c.execute("qmp_capabilities", enable=["oob"])["error"]["class"] == "GenericError"
        assert c.value("qmp_capabilities") == {}
        assert c.execute("qmp_capabilities")["error"]["class"] == "CommandNotFound"
        assert c.value("query-status")["status"] == "running"


def identifiers_and_framing(program):
    with Vmm(program, IDLE) as vm:
        c = vm.connect()
        c.negotiate()
        c.send(b'{"execute":"query-name","id":{"a":[1]}}{"execute":"query-name","id":"two"}')
        assert c.answer()["id"] == {"a": [1]}
        assert c.answer()["id"] == "two"
        for byte in b' {"execute" :\n"query-version"}':
            c.send(bytes([byte]))
        assert "qemu" in c.answer()["return"]
        c.send(b"nonsense\n")
        assert c.answer()["error"]["class"] == "GenericError"
        c.send(b'{"execute":"query-name","id":3,"arguments":{"x":1}}')
        m = c.answer()
        assert m["id"] == 3 and "'x'" in m["error"]["desc"]
        assert c.execute("no-such")["error"]["class"] == "CommandNotFound"
        assert "command-line" in c.execute("human-monitor-command")["error"]["desc"]
        assert c.execute("query-balloon")["error"]["class"] == "DeviceNotActive"
        c.send(b"[" * 1000)
        assert c.answer()["error"]["class"] == "GenericError"
        try:
            c.message()
            raise AssertionError("a client that nests too deep must be left")
        except (EOFError, ConnectionError):
            pass
        d = vm.connect()
        d.negotiate()
        try:
            d.send(b'{"execute":"' + b"x" * (2 << 20))
        except BrokenPipeError:
            pass  # left before all of it was sent
        assert d.answer()["error"]["class"] == "GenericError"


def stop_and_cont(program):
    with Vmm(program, SPIN, "--vcpus", "2", "--name", "spin") as vm:
        c = vm.connect()
        c.negotiate()
        assert c.value("stop") == {}
        stamp = c.event("STOP")["timestamp"]
        assert abs(stamp["seconds"] - time.time()) < 10
        assert c.value("query-status") == {"status": "paused", "singlestep": False, "running": False}
        assert c.value("cont") == {}
        c.event("RESUME")
        assert c.value("query-status")["running"]
        assert c.value("query-name") == {"name": "spin"}
        assert len(c.value("query-cpus-fast")) == 2
        assert c.value("query-kvm")["enabled"] is False


def paused_start(program):
    with Vmm(program, POWER_OFF + IDLE, "--paused") as vm:
        c = vm.connect()
        c.negotiate()
        assert c.value("query-status")["status"] == "prelaunch"
        time.sleep(0.1)
        assert vm.process.poll() is None
        c.value("cont")
        m = c.event("SHUTDOWN")
        assert m["data"] == {"guest": True, "reason": "guest-shutdown"}, m
        assert vm.wait() == 0


def registers(program):
    with Vmm(program, b"\xb8\x78\x56\x34\x12" + SPIN) as vm:
        c = vm.connect()
        c.negotiate()
        deadline = time.monotonic() + 5
        while True:
            text = c.value("human-monitor-command", command_line="info registers")
            if "RAX=0000000012345678" in text or time.monotonic() > deadline:
                break
        assert "RAX=0000000012345678" in text, text
        assert "RIP=0000000000100025" in text, text
        assert "CS =" in text and "CR0=" in text
        assert "running" in c.value("human-monitor-command", command_line="info status")
        assert "info registers" in c.value("human-monitor-command", command_line="help")
        assert "unknown command" in c.value("human-monitor-command", command_line="make coffee")
        assert "error" in c.execute("human-monitor-command", command_line="info status", cpu_index=7)


def reset(program):
    with Vmm(program, IDLE) as vm:
        c = vm.connect()
        c.negotiate()
        c.value("system_reset")
        assert c.event("RESET")["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
        assert c.value("query-status")["status"] == "running"
        c.value("system_powerdown")
        c.event("POWERDOWN")
    with Vmm(program, RESET + IDLE, "--no-reboot", "--paused") as vm:
        c = vm.connect()
        c.negotiate()
        c.value("cont")
        assert c.event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-reset"}
        assert vm.wait() == 0


def quit_ends(program):
    with Vmm(program, SPIN) as vm:
        c = vm.connect()
        c.negotiate()
        c.send(b'{"execute":"quit"}')
        assert c.answer() == {"return": {}}
        assert c.event("SHUTDOWN")["data"]["reason"] == "host-qmp-quit"
        assert vm.wait() == 0


def clients_one_after_another(program):
    with Vmm(program, IDLE) as vm:
        first = vm.connect()
        first.negotiate()
        second = vm.connect()
        try:
            second.message(0.2)
            raise AssertionError("two clients at once")
        except TimeoutError:
            pass
        first.close()
        second.negotiate()
        assert second.value("query-status")["running"]


def statistics(program):
    with Vmm(program, ECHO, "--vcpus", "2", "--chardev", "pty,id=p0", "--device", "isa-serial,chardev=p0") as vm:
        c = vm.connect()
        c.negotiate()
        schema, = c.value("query-stats-schemas")
        assert (schema["provider"], schema["target"]) == ("lodge", "vcpu"), schema
        kinds = {s["name"]: s for s in schema["stats"]}
        assert kinds["translation-time"] == {"name": "translation-time", "type": "cumulative", "unit": "seconds", "base": 10,
                                             "exponent": -9}, kinds
        assert kinds["code-cache-used"]["type"] == "instant" and kinds["code-cache-used"]["unit"] == "bytes"
        deadline = time.monotonic() + 10  # the guest may not have had the processor yet
        while not any(s["value"] for s in c.value("query-stats", target="vcpu")[0]["stats"] if s["name"] == "exits-io"):
            assert time.monotonic() < deadline, "the guest does nothing"
            time.sleep(0.05)
        first, second = c.value("query-stats", target="vcpu")
        assert first["provider"] == "lodge" and first["qom-path"] == c.value("query-cpus-fast")[0]["qom-path"]
        values = {s["name"]: s["value"] for s in first["stats"]}
        assert set(values) == set(kinds)
        assert values["exits-io"] > 0 and values["blocks-decoded"] + values["blocks-translated"] > 0, values
        assert values["code-cache-size"] >= values["code-cache-used"], values
        assert not any(s["value"] for s in second["stats"] if s["name"] == "exits-io"), second  # waits for its SIPI
        some, = c.value("query-stats", target="vcpu", vcpus=[second["qom-path"]],
                        providers=[{"provider": "lodge", "names": ["exits-io", "tlb-misses"]}])
        assert some["qom-path"] == second["qom-path"] and {s["name"] for s in some["stats"]} == {"exits-io", "tlb-misses"}
        assert c.value("query-stats", target="vm") == []
        assert c.value("query-stats", target="vcpu", providers=[]) == []
        for wrong, part in (({"target": "disk"}, "disk"), ({"target": "vm", "vcpus": []}, "vcpus"),
                            ({"target": "vcpu", "vcpus": ["/machine/cpu[2]"]}, "cpu[2]"),
                            ({"target": "vcpu", "vcpus": [1]}, "vCPU"),
                            ({"target": "vcpu", "providers": [{"provider": "kvm"}]}, "kvm"),
                            ({"target": "vcpu", "providers": [1]}, "provider"),
                            ({"target": "vcpu", "providers": [{"provider": "lodge", "names": ["luck"]}]}, "luck"),
                            ({"target": "vcpu", "providers": [{"provider": "lodge", "names": 1}]}, "array")):
            answer = c.execute("query-stats", **wrong)
            assert part in answer["error"]["desc"], (wrong, answer)
        assert "kvm" in c.execute("query-stats-schemas", provider="kvm")["error"]["desc"]


def descriptors(program):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with Vmm(program, IDLE, "--qmp", "fd:%d" % theirs.fileno(), qmp=False, pass_fds=[theirs.fileno()]):
        theirs.close()
        c = Client(ours)
        c.negotiate()
        assert c.value("query-uuid")["UUID"].count("-") == 4
        c.close()
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0lodge-qmp-test-%d" % id(server))
    server.listen()
    with Vmm(program, IDLE, "--qmp", "fd:%d" % server.fileno(), qmp=False, pass_fds=[server.fileno()]):
        for _ in range(2):
            s = socket.socket(socket.AF_UNIX)
            s.connect(server.getsockname())
            c = Client(s)
            c.negotiate()
            c.close()
    server.close()


def queries(program):
    options = ["--uuid", "01234567-89ab-cdef-0123-456789abcdef", "--chardev", "pty,id=p0", "--device",
               "isa-serial,chardev=p0", "--chardev", "null,id=n0"]
    with Vmm(program, ECHO, *options) as vm:
        c = vm.connect()
        c.negotiate()
        assert c.value("query-uuid")["UUID"] == "01234567-89ab-cdef-0123-456789abcdef"
        names = [x["name"] for x in c.value("query-commands")]
        assert len(names) == len(set(names)) and "human-monitor-command" in names
        for name in names:
            if name.startswith("query-") and name not in ("query-balloon", "query-stats"):
                c.value(name)
        chardevs = {x["label"]: x for x in c.value("query-chardev")}
        assert chardevs["p0"]["filename"].startswith("pty:/dev/pts/"), chardevs
        assert chardevs["p0"]["frontend-open"] and not chardevs["n0"]["frontend-open"]
        path = chardevs["p0"]["filename"][4:]
        with open(os.open(path, os.O_RDWR | os.O_NOCTTY), "r+b", buffering=0) as pty:
            pty.write(b"echo?")
            got = b""
            while len(got) < 5:
                got += pty.read(5)
            assert got == b"echo?", got


def stock_client(program):
    try:
        import asyncio

        from qemu.qmp import QMPClient
    except ImportError:
        print("# the stock client qemu.qmp is not installed: skipped")
        return
    with Vmm(program, IDLE) as vm:
        vm.connect().close()

        async def talk():
            client = QMPClient("lodge")
            await client.connect(vm.socket)
            status = await client.execute("query-status")
            assert status["status"] == "running"
            await client.disconnect()
        asyncio.run(talk())


run_tests([negotiation, identifiers_and_framing, stop_and_cont, paused_start, registers, reset, quit_ends,
           clients_one_after_another, statistics, descriptors, queries, stock_client])
