#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""luks beside qemu-img and cryptsetup: each other's images and passphrases, what is said of them, what is refused.

usage: luks.py LODGE_IMG     (LODGE_CHECK_LONG=1: every cipher, mode, vector and hash)
"""
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

tap.need("qemu-img", "qemu-io")

LODGE = sys.argv[1]
LONG = bool(os.environ.get("LODGE_CHECK_LONG"))
SIZE = 3 << 20
SECRET = ["--object", "secret,id=s0,data=sesame"]
OTHER = ["--object", "secret,id=s1,data=caraway"]
# Does this lodge-img take --object where data is written?
HELP = tap.run([LODGE, "--help"], None)
WRITES = "--object" in (re.search(r"^  convert .*\n(?:    .*\n)*", HELP, re.M) or [""])[0]

KINDS = ["", "cipher-alg=aes-128", "cipher-alg=serpent-256,hash-alg=sha512", "cipher-alg=twofish-128,ivgen-alg=plain",
         "cipher-alg=cast5-128,cipher-mode=cbc,hash-alg=sha1", "cipher-mode=cbc,ivgen-alg=essiv", "cipher-mode=ctr",
         "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,hash-alg=ripemd160", "cipher-mode=ecb", "cipher-alg=twofish-192"]
if LONG:
    KINDS += [f"cipher-alg={c},cipher-mode={m},ivgen-alg={i},hash-alg={h}" for c, m, i, h in itertools.product(
        ["aes-128", "aes-192", "aes-256", "serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256"],
        ["cbc", "xts", "ctr", "ecb"], ["plain", "plain64", "essiv"], ["sha256", "sha384", "md5"])
              if m == "xts" or "192" not in c]  # keys of 24 bytes: qemu-img 7.2 aborts

folder = tempfile.TemporaryDirectory(prefix="lodge-luks-")
DIR = pathlib.Path(folder.name)


def options(kind, secret="s0"):
    return f"key-secret={secret},iter-time=10" + ("," + kind if kind else "")


def opts(path, secret="s0"):
    return f"driver=luks,key-secret={secret},file.filename={path}"


def make(tool, kind, path):
    return tap.run([tool, "create", *SECRET, "-f", "luks", "-o", options(kind), path, str(SIZE)], None)


def write(path, seed):
    commands = [f"write -P {seed} 0 64k", f"write -P {seed + 1} 65024 5120", f"write -P {seed + 2} 2M 1M", f"write -P {seed + 3} 1M 512"]
    tap.run(["qemu-io", *SECRET, *[x for c in commands for x in ("-c", c)], "--image-opts", opts(path)])


def plain(path):
    raw = DIR / "plain"
    tap.run(["qemu-img", "convert", *SECRET, "--image-opts", opts(path), "-O", "raw", raw])
    return raw


def compare(tool, path, raw, secret="s0", objects=SECRET):
    tap.run([tool, "compare", *objects, "--image-opts", opts(path, secret), f"driver=raw,file.filename={raw}"])


def test_reads():
    for number, kind in enumerate(KINDS if LONG else KINDS[2:6] + KINDS[-1:]):  # qemu-img measures its CPU for a second each
        path = DIR / "q.luks"
        if "Unsupported" in make("qemu-img", kind, path):
            continue
        write(path, number % 100 + 1)
        compare(LODGE, path, plain(path))


def test_is_read():
    for number, kind in enumerate(KINDS):
        path = DIR / "l.luks"
        make(LODGE, kind, path)
        write(path, number % 100 + 1)
        raw = plain(path)
        compare(LODGE, path, raw)
        if WRITES:
            tap.run([LODGE, "convert", *SECRET, "-f", "raw", "-O", "luks", "-o", options(kind), raw, path])
            compare("qemu-img", path, raw)
            tap.run([LODGE, "convert", *SECRET, "--image-opts", opts(path), "-O", "raw", DIR / "back"])
            tap.check(raw.read_bytes() == (DIR / "back").read_bytes(), f"{kind}: converted back, it differs")


def test_says():
    for kind in KINDS:
        path = DIR / "i.luks"
        make(LODGE, kind, path)
        for args in ([], ["--output=json"]):
            ours, theirs = (tap.run([t, "info", *args, path]) for t in (LODGE, "qemu-img"))
            tap.check(ours == theirs, f"info {kind}:\n{ours}\n{theirs}")


def test_measure():
    for kind in ("", "cipher-alg=aes-128", "cipher-alg=cast5-128,cipher-mode=cbc"):
        ours, theirs = (tap.run([t, "measure", *SECRET, "-O", "luks", "-o", "key-secret=s0" + ("," + kind if kind else ""),
                                 "--size", "1G"]) for t in (LODGE, "qemu-img"))
        tap.check(ours == theirs, f"measure {kind}: {ours} {theirs}")


def test_resize():
    path = DIR / "r.luks"
    make(LODGE, "", path)
    write(path, 50)
    tap.run([LODGE, "resize", *SECRET, "--image-opts", opts(path), str(SIZE * 2)])
    compare("qemu-img", path, plain(path))
    tap.check(f"({SIZE * 2} bytes)" in tap.run(["qemu-img", "info", path]), "the new size is not seen")


def amend(tool, path, what, secret="s0", force=False):
    force = ["--force"] if force else []
    return tap.run([tool, "amend", *SECRET, *OTHER, *force, "-o", what, "--image-opts", opts(path, secret)], None)


def test_amend():
    path = DIR / "a.luks"
    make(LODGE, "", path)
    write(path, 60)
    raw = plain(path)
    amend(LODGE, path, "state=active,new-secret=s1,iter-time=10")
    compare("qemu-img", path, raw, "s1", OTHER)
    amend(LODGE, path, "state=inactive,old-secret=s0", "s1")
    tap.check("cannot unlock any keyslot" in tap.run(["qemu-img", "map", *SECRET, "--image-opts", opts(path)], 1), "s0 opens")
    amend("qemu-img", path, "state=active,new-secret=s0,keyslot=5,iter-time=10", "s1")
    compare(LODGE, path, raw)
    amend(LODGE, path, "state=inactive,keyslot=1", "s0")
    compare("qemu-img", path, raw)


def test_amend_in_use():
    """Keys do not change under a reader, as qemu-img has it."""
    path = DIR / "u.luks"
    make(LODGE, "", path)
    reader = subprocess.Popen(["qemu-io", "-r", *SECRET, "--image-opts", opts(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    try:
        reader.stdin.write("length\n")
        reader.stdin.flush()
        while "MiB" not in reader.stdout.readline():
            pass
        ours, theirs = (words(amend(t, path, "state=active,new-secret=s1,iter-time=10")) for t in (LODGE, "qemu-img"))
        tap.check(ours == f"{theirs} It is process {reader.pid} (qemu-io)." and "consistent read" in ours, f"{ours}\n{theirs}")
    finally:
        reader.communicate("quit\n", timeout=20)
    tap.check(not amend(LODGE, path, "state=active,new-secret=s1,iter-time=10"), "refused after the reader went")


# Each with the state of an image whose only passphrase is s0's; the words are qemu-img's.
REFUSED = ["state=active,new-secret=s1,keyslot=0", "state=active,new-secret=s1,keyslot=9", "state=active", "new-secret=s1",
           "state=foo", "state=active,new-secret=s1,old-secret=s0", "state=active,new-secret=none", "state=inactive",
           "state=inactive,keyslot=0", "state=inactive,keyslot=4", "state=inactive,old-secret=s0", "state=inactive,old-secret=s1",
           "state=inactive,keyslot=0,old-secret=s1", "state=inactive,keyslot=0,new-secret=s1", "state=inactive,keyslot=0,iter-time=10"]


def words(text):
    return re.sub(r"^(lodge-img|qemu-img): ", "", text.strip(), flags=re.M)


def test_refusals():
    path = DIR / "f.luks"
    make("qemu-img", "", path)
    for what in REFUSED:
        ours, theirs = (words(amend(t, path, what)) for t in (LODGE, "qemu-img"))
        tap.check(ours == theirs and ours, f"amend {what}:\n{ours}\n{theirs}")
    for kind in ("cipher-alg=foo", "cipher-mode=foo", "ivgen-alg=foo", "hash-alg=foo", "cipher-alg=3des", "iter-time=x",
                 "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha1"):
        ours, theirs = (words(make(t, kind, DIR / "n.luks")) for t in (LODGE, "qemu-img"))
        tap.check(ours.split("\n")[-1] == theirs.split("\n")[-1], f"create {kind}:\n{ours}\n{theirs}")
    for args in (["map", path], ["map", *OTHER, "--image-opts", opts(path, "s1")], ["map", "--image-opts", opts(path)]):
        ours, theirs = (words(tap.run([t, *args], 1)) for t in (LODGE, "qemu-img"))
        tap.check(ours == theirs, f"{args}:\n{ours}\n{theirs}")


def test_cryptsetup():
    opened = 0
    for kind in KINDS[:7]:
        path = DIR / "c.luks"
        make(LODGE, kind, path)
        dump = tap.run(["cryptsetup", "luksDump", path])
        tap.check(re.search(r"Key Slot 0: ENABLED", dump) and re.search(r"Key Slot 1: DISABLED", dump), dump)
        key = DIR / "key"
        key.write_text("sesame")
        out = tap.run(["cryptsetup", "open", "--test-passphrase", "--key-file", key, path], None)
        if "device-mapper" in out:  # this cipher it leaves to the kernel
            continue
        tap.check(not out, f"{kind}: {out}")
        opened += 1
        key.write_text("wrong")
        tap.run(["cryptsetup", "open", "--test-passphrase", "--key-file", key, path], 2)
    tap.check(opened > 0, "cryptsetup opened none")
    path = DIR / "cs.luks"
    path.write_bytes(bytes(8 << 20))
    key.write_text("sesame")
    for extra in ([], ["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "sha1"]):
        tap.run(["cryptsetup", "luksFormat", "-q", "--type", "luks1", *extra, "--iter-time", "10", "--key-file", key, path])
        tap.check("file format: luks" in tap.run([LODGE, "info", path]), "cryptsetup's image is not seen as luks")
        compare(LODGE, path, plain(path))
    done = subprocess.run(["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
                           "--key-file", key, path], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        out = tap.run([LODGE, "info", "-f", "luks", path], 1)
        tap.check("LUKS version 2 is not supported" in out, out)
        tap.check("file format: raw" in tap.run([LODGE, "info", path]), "LUKS 2 is not raw when probed")


TESTS = [("qemu-img's images are read", test_reads), ("lodge-img's images are read", test_is_read), ("info is the same", test_says),
         ("measure is the same", test_measure), ("resize", test_resize), ("passphrases come and go", test_amend),
         ("passphrases of an image in use", test_amend_in_use),
         ("refusals in the same words", test_refusals)]
if subprocess.run(["sh", "-c", "command -v cryptsetup"], capture_output=True, check=False).returncode == 0:
    TESTS.append(("cryptsetup opens and is opened", test_cryptsetup))
else:
    TESTS.append(("cryptsetup opens and is opened # SKIP cryptsetup is not installed", lambda: None))
tap.main(TESTS)
