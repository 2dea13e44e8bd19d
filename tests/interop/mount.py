#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images mounted as files: what is done to the file is what QEMU finds in the image.

usage: mount.py LODGE_IMG
"""
import concurrent.futures
import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tap

LODGE = str(pathlib.Path(sys.argv[1]).resolve())
M = 1024 * 1024
KEEP, PUNCH, ZERO = 1, 2, 16
FORMATS = ("raw", "qcow2", "vmdk")


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="lodge-mount-") as tmp:
        tmp = pathlib.Path(tmp)
        (tmp / "m").touch()
        (tmp / "d").mkdir()
        try:
            yield tmp
        finally:
            for place in ("m", "d"):
                if mounted_at(tmp / place):
                    subprocess.run(["fusermount3", "-u", "-z", "-q", str(tmp / place)], stderr=subprocess.DEVNULL)


def mounted_at(path):
    return any(line.split()[1] == str(path) for line in pathlib.Path("/proc/mounts").read_text().splitlines())


def until(condition, message):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise tap.Failure(message)


def start(tmp, *args, at="m"):
    """The server in the background; its process id."""
    tap.run([LODGE, "mount", "--fork", "--pid-file", tmp / "pid", *args, tmp / at], timeout=20)
    return int((tmp / "pid").read_text())


def running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def mount(tmp, *args, at="m", end=signal.SIGTERM):
    """@end: the signal that ends it; None: umount does."""
    pid = start(tmp, *args, at=at)
    try:
        yield tmp / at
    finally:
        if end is None:
            tap.run(["fusermount3", "-u", tmp / at])
        elif running(pid):
            os.kill(pid, end)
        try:
            until(lambda: not running(pid), "the server did not end")
        except tap.Failure:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            subprocess.run(["fusermount3", "-u", "-z", "-q", str(tmp / at)], stderr=subprocess.DEVNULL)
    tap.check(not mounted_at(tmp / at), "still mounted")
    tap.check(not (tmp / "pid").exists(), "the pid file is left")


def create(tmp, fmt, size="64M"):
    if fmt == "raw":  # qemu-img would write its first block
        tap.run(["truncate", "-s", size, tmp / "image"])
    else:
        tap.run(["qemu-img", "create", "-q", "-f", fmt, tmp / "image", size])
    return ["-f", fmt, tmp / "image"]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def same_as_qemu(tmp, fmt, expected):
    """What QEMU reads of the image has this digest, and it finds the image sound."""
    tap.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", tmp / "image", tmp / "qemu.raw"])
    tap.check(digest(tmp / "qemu.raw") == expected, f"{fmt}: the content differs from what was written")
    if fmt != "raw":
        tap.run(["qemu-img", "check", "-f", fmt, tmp / "image"])


def fallocate(fd, mode, offset, length):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return 0 if libc.fallocate(fd, mode, offset, length) == 0 else ctypes.get_errno()


def written(fmt):
    """dd, a sparse hole, a file system: QEMU sees the same; so does a second mount."""
    with folder() as tmp:
        image = create(tmp, fmt)
        with mount(tmp, *image) as m:
            tap.check(m.stat().st_size == 64 * M, "size")
            tap.check(m.stat().st_blocks * 512 < M, "an empty image takes space")
            tap.run(["mkfs.ext4", "-q", "-F", m])
            tap.run(["e2fsck", "-fn", m])
            tap.run(["dd", "if=/dev/urandom", f"of={m}", "bs=64k", "count=32", "seek=900", "conv=notrunc,fsync", "status=none"])
            tap.run(["dd", "if=/dev/urandom", f"of={m}", "bs=64k", "count=4", "seek=700", "oflag=direct", "conv=notrunc", "status=none"])
            before = digest(m)
        same_as_qemu(tmp, fmt, before)
        with mount(tmp, "-r", *image, end=None) as m:
            tap.check(digest(m) == before, "another content when mounted again")
            try:
                open(m, "r+b").close()
                raise tap.Failure("opened for writing")
            except OSError as error:
                tap.check(error.errno == errno.EROFS, f"{error}")


def sparse(fmt):
    """Holes are seen, kept, made."""
    with folder() as tmp:
        image = create(tmp, fmt)
        with mount(tmp, *image) as m:
            fd = os.open(m, os.O_RDWR)
            os.pwrite(fd, b"x" * M, 8 * M)
            os.pwrite(fd, b"y" * M, 32 * M)
            tap.check(os.lseek(fd, 0, os.SEEK_DATA) == 8 * M, "data begins elsewhere")
            tap.check(os.lseek(fd, 8 * M, os.SEEK_HOLE) == 9 * M, "the hole begins elsewhere")
            tap.check(os.lseek(fd, 33 * M, os.SEEK_HOLE) == 33 * M, "no hole at the end")
            for where, wrong in ((64 * M, os.SEEK_DATA), (34 * M, os.SEEK_DATA)):
                try:
                    os.lseek(fd, where, wrong)
                    raise tap.Failure("data where there is none")
                except OSError as error:
                    tap.check(error.errno == errno.ENXIO, f"{error}")
            tap.check(fallocate(fd, PUNCH | KEEP, 32 * M, M) == 0, "punch hole")
            tap.check(fallocate(fd, ZERO, 8 * M, M // 2) == 0, "zero range")
            tap.check(fallocate(fd, 0, 0, M) == errno.EOPNOTSUPP, "allocation inside is not promised")
            tap.check(os.pread(fd, M, 32 * M) == bytes(M), "the hole has data")
            tap.check(os.pread(fd, M, 8 * M) == bytes(M // 2) + b"x" * (M // 2), "zero range has other data")
            os.fsync(fd)
            os.close(fd)
            tap.run(["cp", "--sparse=auto", m, tmp / "copy"])
            tap.check((tmp / "copy").stat().st_blocks * 512 < 4 * M, "cp did not see the holes")
            before = digest(m)
            tap.check(digest(tmp / "copy") == before, "the copy differs")
        same_as_qemu(tmp, fmt, before)


def parallel():
    """Many users at once, each with a part of its own."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        model = bytearray(64 * M)

        def work(n):
            part, rand = n * 4 * M, random.Random(n)
            fd = os.open(tmp / "m", os.O_RDWR)
            for _ in range(100):
                offset, length = part + rand.randrange(4 * M - 65536), rand.randrange(1, 65536)
                data = rand.randbytes(length)
                model[offset:offset + length] = data
                os.pwrite(fd, data, offset)
                tap.check(os.pread(fd, length, offset) == data, "not what was written")
            os.close(fd)
        with mount(tmp, *image):
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(work, range(16)))
        same_as_qemu(tmp, "qcow2", hashlib.sha256(model).hexdigest())


def sizes():
    """A disk's size is fixed, unless it is growable."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        with mount(tmp, *image) as m:
            for function in (lambda: os.truncate(m, 32 * M), lambda: open(m, "wb").close()):
                try:
                    function()
                    raise tap.Failure("truncated")
                except PermissionError:
                    pass
            fd = os.open(m, os.O_RDWR)
            try:
                os.pwrite(fd, b"x", 64 * M)
                raise tap.Failure("written past the end")
            except OSError as error:
                tap.check(error.errno == errno.ENOSPC, f"{error}")
            os.close(fd)
        with mount(tmp, "--growable", *image) as m:
            fd = os.open(m, os.O_RDWR)
            os.pwrite(fd, b"x" * 512, 80 * M)
            tap.check(os.fstat(fd).st_size == 80 * M + 512, f"size {os.fstat(fd).st_size}")
            os.ftruncate(fd, 128 * M)
            tap.check(fallocate(fd, 0, 128 * M, M) == 0, "allocate at the end")
            os.close(fd)
        tap.check('"virtual-size": %d' % (129 * M) in tap.run(["qemu-img", "info", "--output=json", tmp / "image"]), "size for QEMU")
        with mount(tmp, "--growable", *image) as m:
            os.truncate(m, 16 * M)
        tap.check('"virtual-size": %d' % (16 * M) in tap.run(["qemu-img", "info", "--output=json", tmp / "image"]), "size for QEMU")


def in_folder():
    """A folder gets one file; names that cannot be one are refused."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        with mount(tmp, *image, at="d") as d:
            tap.check(os.listdir(d) == ["image"], f"{os.listdir(d)}")
            (d / "image").open("r+b").write(b"hello")
            tap.check((d / "image").read_bytes()[:6] == b"hello\0", "content")
            tap.check(not (d / "other").exists(), "a file that is not there")
        with mount(tmp, "-x", "disk", "-r", *image, at="d") as d:
            tap.check((d / "disk").read_bytes()[:6] == b"hello\0", "content")
        tap.check("cannot be a file's name" in tap.run([LODGE, "mount", "-x", "a/b", *image, tmp / "d"], expect=1), "a/b")
        tap.check("cannot mount on" in tap.run([LODGE, "mount", *image, tmp / "nowhere"], expect=1), "nowhere")
        tap.check("Expecting" in tap.run([LODGE, "mount", *image], expect=1), "usage")


def mapped():
    """What is written through a mapping is in the image when a signal ends the server, even with users there."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        pid = start(tmp, *image)
        fd = os.open(tmp / "m", os.O_RDWR)
        area = mmap.mmap(fd, M)
        area[0:5] = b"hello"
        os.kill(pid, signal.SIGINT)
        until(lambda: not running(pid), "the server did not end")
        with contextlib.suppress(OSError):  # ENOTCONN
            os.close(fd)
        with contextlib.suppress(OSError):
            area.close()
        until(lambda: not mounted_at(tmp / "m"), "still mounted")
        same_as_qemu(tmp, "qcow2", hashlib.sha256(b"hello" + bytes(64 * M - 5)).hexdigest())


def killed():
    """kill -9: what was flushed is there, and the same place can be used again at once."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        pid = start(tmp, *image)
        fd = os.open(tmp / "m", os.O_RDWR)
        os.pwrite(fd, b"k" * M, 5 * M)
        os.fsync(fd)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not running(pid), "not killed")
        with contextlib.suppress(OSError):  # ENOTCONN, or ECONNABORTED in the middle of it
            os.close(fd)
        tap.check(mounted_at(tmp / "m"), "nothing of it is left to be cleaned")
        tap.run(["qemu-img", "check", "-f", "qcow2", tmp / "image"])
        (tmp / "pid").unlink()
        with mount(tmp, *image) as m:
            tap.check(m.read_bytes()[5 * M:6 * M] == b"k" * M, "what was flushed is lost")
            before = digest(m)
        same_as_qemu(tmp, "qcow2", before)


def locked():
    """The image is in use while it is mounted, as QEMU's locks say."""
    with folder() as tmp:
        image = create(tmp, "qcow2")
        with mount(tmp, *image):
            tap.check("lock" in tap.run(["qemu-io", "-c", "write 0 512", "-f", "qcow2", tmp / "image"], expect=1), "not locked")


def usable():
    """Why /dev/fuse cannot be used; None: it can."""
    with folder() as tmp:
        done = subprocess.run([LODGE, "mount", "--fork", "--pid-file", tmp / "pid", *map(str, create(tmp, "raw")), tmp / "m"],
                              capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            os.kill(int((tmp / "pid").read_text()), signal.SIGTERM)
            until(lambda: not mounted_at(tmp / "m"), "still mounted")
            return None
        why = done.stderr.strip()
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    if "libfuse3" in why or os.geteuid() != 0 or not can_mount():
        return why
    return None


def can_mount():
    """May this process mount anything at all?"""
    with folder() as tmp:
        if subprocess.run(["mount", "-t", "tmpfs", "none", str(tmp / "d")], stderr=subprocess.DEVNULL).returncode != 0:
            return False
        return subprocess.run(["umount", str(tmp / "d")]).returncode == 0


def main():
    os.environ["PATH"] += ":/sbin:/usr/sbin"
    tap.need("qemu-img", "qemu-io", "fusermount3", "mkfs.ext4", "e2fsck")
    why = usable()
    if why:
        print(f"1..0 # SKIP FUSE cannot be used here: {' '.join(why.split())}")
        return
    tests = [(f"{f.__name__} {fmt}", lambda f=f, fmt=fmt: f(fmt)) for f in (written, sparse) for fmt in FORMATS]
    tap.main(tests + [(f.__name__, f) for f in (parallel, sizes, in_folder, mapped, killed, locked)])


if __name__ == "__main__":
    main()
