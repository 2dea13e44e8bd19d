#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Instruction handlers must end in a jump to the next one: a call there deepens the host's stack at each instruction that
the guest executes, until it overflows. A local variable whose address escapes is enough to make a compiler do that.

usage: tail-calls-test.py libvcpu-soft.a
"""
import os
import re
import subprocess
import sys

# SoftOp.handler of the next op is at 64(op); of a block's first op at 0(op).
CALL = re.compile(r"call\s+\*(0x40)?\(%r[a-z0-9]+\)")
ALLOWED = {"soft_blocks_run", "soft_op_run"}  # the callers of blocks, and of single ops for translated code
OTHER_TABLES = re.compile(r"^(translate_block$|soft_(port|msr|cr8|rmw)_|loop$|write_piece|device_)")  # callbacks at the same offset


def main():
    if os.environ.get("LODGE_SANITIZED"):
        print("sanitizers forbid tail calls; the handlers return to the run loop there")
        sys.exit(77)
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", sys.argv[1]], check=True, stdout=subprocess.PIPE,
                             universal_newlines=True).stdout
    function, handlers, found = "", 0, []
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line[line.index("<") + 1:-2]
        elif re.search(r"jmp\s+\*", line):
            handlers += 1
        elif CALL.search(line) and function not in ALLOWED and not OTHER_TABLES.match(function):
            found.append(f"{function}: {line.strip()}")
    print(f"{handlers} jumps to a next handler, {len(found)} calls")
    print("\n".join(found))
    sys.exit(1 if found or handlers < 500 else 0)


if __name__ == "__main__":
    main()
