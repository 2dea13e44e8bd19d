#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every promise of docs/SPECIFICATION.md names its proof, and every proof named there exists. usage: specification-test.py BUILD"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def main():
    out = subprocess.run(["meson", "introspect", "--tests", sys.argv[1]], capture_output=True, text=True, check=True).stdout
    tests = {t["name"] for t in json.loads(out)}
    benches = {p.name for p in (ROOT / "bench").iterdir() if p.stat().st_mode & 0o100}
    problems, proofs = [], 0
    for number, line in enumerate((ROOT / "docs/SPECIFICATION.md").read_text().splitlines(), 1):
        cells = [c.strip() for c in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 3 or cells[2] in ("proven by", "---"):
            continue
        named = re.findall(r"\b(test|bench) ([\w-]+)", cells[2])
        if not named:
            problems.append(f"line {number}: a promise without a proof: {cells[0]}")
        for kind, name in named:
            proofs += 1
            if name not in (tests if kind == "test" else benches):
                problems.append(f"line {number}: there is no {kind} '{name}'")
    for problem in problems:
        print(problem)
    print(f"{proofs} proofs, {len(problems)} problems")
    sys.exit(1 if problems or proofs < 20 else 0)


if __name__ == "__main__":
    main()
