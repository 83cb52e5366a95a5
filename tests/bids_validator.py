"""What the BIDS validator itself says of a folder; it runs without the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("bids-validator-deno")


def bids_errors(folder: str | Path) -> list[str]:
    """The validator's errors, one a line; the test is skipped where the program cannot run at all."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "DENO_DIR": cache, "DENO_NO_UPDATE_CHECK": "1"}
        try:
            subprocess.run([PROGRAM, "--version"], env=environment, capture_output=True, check=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"the BIDS validator cannot run here: {error}")
        done = subprocess.run(
            [PROGRAM, "--json", str(folder)], env=environment, capture_output=True, text=True, timeout=300
        )
    report = json.loads(done.stdout)
    errors = [issue for issue in report["issues"]["issues"] if issue["severity"] == "error"]
    assert bool(errors) == (done.returncode == 16), done.stderr
    return [f"{issue['code']} {issue.get('subCode', '')} {issue.get('location', '')}" for issue in errors]
