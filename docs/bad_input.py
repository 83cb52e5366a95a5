"""The page of bad input: every case of tests/bad_input.py, run, with the exit code and the line that it ends with.

python docs/bad_input.py            writes docs/bad-input.md
python docs/bad_input.py --check    says whether it is what would be written; the tests check it too
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "bad-input.md"
TITLES = {
    "image": "Images",
    "image on stdin": "Images on stdin",
    "latent on stdin": "Latents on stdin",
    "latent": "Latents",
    "weights": "Weights",
    "table": "Tables of participants",
    "mask": "Masks",
    "output": "Outputs",
}
INTRODUCTION = """# Bad input

A file that cannot be used ends a command with one line on stderr, which names the file and says what is wrong, and
with an exit code: 3 where every input was refused, 2 where the command line asks for what cannot be, such as an
output that is there already. Nothing is written, no temporary file is left, and no input is touched. Among several
scans, those that are refused are named and the others are done, with exit code 1. A traceback only comes with `-vv`.

What is odd but sound is taken, with a warning where it matters, which `--strict` makes an error: 64-bit and unsigned
integers, big-endian files, NIfTI-2, .hdr/.img, FreeSurfer's .mgz, 4D with one volume, oblique and sheared grids, an
sform unlike the qform, no form code, thick slices, NaN as background, links, and any name that a file can have.

This page is made by running each case (`python docs/bad_input.py`), and the tests run them too:
**{files} bad files and outputs in {runs} command lines; {tracebacks} tracebacks, {partial} with something written,
{lines} with other than one line.** A full disk, a folder that is read-only, a kill at any moment, and two commands
that write one file at once have tests of their own (`tests/test_faults.py`).
"""


def page(found: Sequence[tuple[Any, Any]]) -> str:
    """The page for cases and their outcomes."""
    counts = {
        "files": len({(case.kind, case.name) for case, _ in found}),
        "runs": len(found),
        "tracebacks": sum(outcome.is_crash for _, outcome in found),
        "partial": sum(bool(outcome.changed) for _, outcome in found),
        "lines": sum(outcome.err.count("\n") != 1 for _, outcome in found),
    }
    parts = [INTRODUCTION.format(**counts)]
    for kind, group in groupby(found, key=lambda pair: pair[0].kind):
        parts += [f"## {TITLES[kind]}", "", "| what | commands | exit | what it says |", "|---|---|---|---|"]
        for name, same in groupby(group, key=lambda pair: pair[0].name):
            parts.append(_row(name, list(same)))
        parts.append("")
    return "\n".join(parts)


def _row(name: str, found: list[tuple[Any, Any]]) -> str:
    """One bad file: which commands were given it, and what the first of them said."""
    commands = ", ".join(dict.fromkeys(f"cf-{case.command}" for case, _ in found))
    codes = ", ".join(dict.fromkeys(str(outcome.code) for _, outcome in found))
    return f"| {name.replace('-', ' ')} | {commands} | {codes} | {_said(found[0][1].err)} |"


def _said(err: str) -> str:
    """The line after the command's name, as code; what libraries say differs with their versions and is left out."""
    line = err.strip().partition(": error: ")[2]
    line = re.sub(r"damaged( metadata)? \(.*\)", r"damaged\1 (...)", line)
    line = re.sub(r"(.{40}).{60,}(\.[a-z]+(\.gz)?: )", r"\1...\2", line)
    return f"`{line.replace('|', chr(92) + '|').replace('`', chr(39))}`"


def main() -> int:
    """Write, or check; the exit code."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from bad_input import CASES, outcome

    text = page([(case, outcome(case)) for case in CASES])
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is not what happens: python docs/bad_input.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
