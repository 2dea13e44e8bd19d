# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `make install` puts in place works from there. Prints TAP.

usage: install.py BUILD_FOLDER
"""
import os
import subprocess
import sys
import tempfile

from vmm_guest import POWER_OFF, image

FILES = ["bin/lodge", "bin/lodge-img", "bin/lodge-vmm", "share/bash-completion/completions/lodge",
         "share/bash-completion/completions/lodge-img"]
NAMES = [f"libexec/lodge/names/{name}" for name in ("qemu-img", "qemu-io", "qemu-nbd")]
PAGES = ["lodge", "lodge-run", "lodge-img", "lodge-vmm"]
LIMIT_S = 30


def main():
    print("1..2")
    with tempfile.TemporaryDirectory(prefix="lodge-install-") as folder:
        subprocess.run(["meson", "install", "-C", sys.argv[1], "--no-rebuild", "--destdir", folder], check=True,
                       timeout=LIMIT_S, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        [share] = [where for where, folders, _ in os.walk(folder) if os.path.basename(where) == "share"]
        prefix = os.path.dirname(share)
        missing = [name for name in FILES + [f"share/man/man1/{page}.1" for page in PAGES]
                   if not os.path.isfile(os.path.join(prefix, name))]
        missing += [name for name in NAMES if not os.path.islink(os.path.join(prefix, name))]
        print("not ok" if missing else "ok", "1 programs, pages and completion", "# missing:" if missing else "", *missing)
        kernel = os.path.join(folder, "kernel")
        with open(kernel, "wb") as f:
            f.write(image(POWER_OFF))
        env = {k: v for k, v in os.environ.items() if k != "LODGE_VMM"}
        done = subprocess.run([os.path.join(prefix, "bin/lodge"), "run", "--kernel", kernel, "--memory", "16M", "--verbose"],
                              capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL, env=env)
        good = done.returncode == 0 and os.path.join(prefix, "bin/lodge-vmm") in done.stderr
        print("ok" if good else "not ok", "2 the installed lodge runs the installed lodge-vmm", "" if good else f"# {done}")
        sys.exit(0 if good and not missing else 1)


main()
