# SPDX-License-Identifier: LGPL-2.1-or-later
"""Test Anything Protocol for the tests that run other programs."""
import shutil
import subprocess
import sys
import traceback


class Failure(Exception):
    pass


def need(*tools):
    """Skips the whole test, visibly, unless all @tools are installed."""
    missing = [t for t in tools if not shutil.which(t)]
    if missing:
        print(f"1..0 # SKIP {', '.join(missing)} not installed")
        sys.exit(0)


def run(argv, expect=0, text=None, timeout=60):
    """Runs @argv; its output. Another exit status than @expect (None: any) is a failure."""
    done = subprocess.run([str(a) for a in argv], input=text, stdin=None if text else subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=timeout)
    if expect is not None and done.returncode != expect:
        shown = " ".join(str(a) for a in argv)
        raise Failure(f"{shown[:2000]}\nexit {done.returncode}, expected {expect}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout + done.stderr


def check(condition, message):
    if not condition:
        raise Failure(message)


def main(tests):
    """@tests: (name, function). Exit status 1 if one failed."""
    print(f"1..{len(tests)}", flush=True)
    failed = 0
    for number, (name, function) in enumerate(tests, 1):
        try:
            function()
            print(f"ok {number} {name}", flush=True)
        except Exception as error:
            failed += 1
            print(f"not ok {number} {name}", flush=True)
            text = str(error) if isinstance(error, Failure) else traceback.format_exc()
            print("".join(f"# {line}\n" for line in text.splitlines()), flush=True, end="")
    sys.exit(1 if failed else 0)
