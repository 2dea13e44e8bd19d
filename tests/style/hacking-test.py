#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""HACKING.md's recipes work: applied to a scratch copy of the tree, built, and what they add is there."""
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def run(argv, **options):
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          stdin=subprocess.DEVNULL, **options)
    return done.returncode, done.stdout


def must(argv, **options):
    code, out = run(argv, **options)
    assert code == 0, f"{argv}: {out[-3000:]}"
    return out


def copy_tree(target):
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True,
                           check=True).stdout.decode().split("\0")
    for name in names:
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
            (target / name).chmod((ROOT / name).stat().st_mode)


def insert(path, body):
    lines = body.splitlines()
    anchor, added = lines[0], [line[1:] for line in lines[1:]]
    assert all(line.startswith("+") for line in lines[1:]), body
    text = path.read_text().splitlines()
    at = [i for i, line in enumerate(text) if line.strip().startswith(anchor.strip())]
    assert len(at) == 1, f"{path}: {len(at)} lines start with: {anchor}"
    path.write_text("\n".join(text[:at[0] + 1] + added + text[at[0] + 1:]) + "\n")


def apply(target):
    blocks = re.findall(r"^```(\w+) (\S+)\n(.*?)^```$", (ROOT / "HACKING.md").read_text(), re.M | re.S)
    assert len(blocks) >= 14, len(blocks)
    for kind, name, body in blocks:
        if kind == "diff":
            insert(target / name, body)
        else:
            assert not (target / name).exists(), name
            (target / name).write_text(body)


def main():
    with tempfile.TemporaryDirectory() as tmp:
        target = pathlib.Path(tmp)
        copy_tree(target)
        apply(target)
        must([target / "scripts/check-layers", target])
        build = target / "build"
        must(["meson", "setup", build, target, "-Dwerror=true", "-Dbuildtype=debug"])
        must(["ninja", "-C", build], timeout=900)
        programs = build / "src" / "bin"
        code, out = run([programs / "lodge-vmm", "--engine", "soft", "--device", "scratchpad,iobase=none"])
        assert code != 0 and "iobase" in out and "scratchpad" in out, out
        image = target / "z.img"
        image.write_bytes(b"LODGEZER" + struct.pack("<Q", 1 << 20))
        assert "zeros" in must([programs / "lodge-img", "info", image])
        assert must([programs / "lodge", "version"]).strip()
        code, out = run(["meson", "test", "-C", build, "--no-rebuild", "bytes", "contract-devices"], env={**os.environ})
        assert code == 0, out[-3000:]
    print("ok: the recipes of HACKING.md build and run")


if __name__ == "__main__":
    sys.exit(main())
