#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layer check finds a forbidden include, an unknown folder and a bare include, and passes a clean tree."""
import pathlib
import subprocess
import sys
import tempfile

SCRIPT = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts" / "check-layers"


def run(files):
    with tempfile.TemporaryDirectory() as tmp:
        root = pathlib.Path(tmp)
        (root / "layers.txt").write_text("base:\ndisk: base\nbin: *\n")
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        done = subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True)
        return done.returncode, done.stdout


clean = {"src/disk/a.c": '#include "base/b.h"\n#include "disk/a.h"\n', "src/bin/m.c": '#include "disk/a.h"\n'}
code, out = run(clean)
assert code == 0, out
for bad, what in (({"src/base/b.c": '#include "disk/a.h"\n'}, "may not include layer 'disk'"),
                  ({"src/odd/b.c": '#include "base/a.h"\n'}, "not a layer"),
                  ({"src/disk/c.c": '#include "a.h"\n'}, 'write #include "disk/')):
    code, out = run({**clean, **bad})
    assert code == 1 and what in out, out
