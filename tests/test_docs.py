"""What the docs say is what the commands do: made pages are as made, tutorials run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cftools.weights import index

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


def test_made_pages_are_what_their_sources_say() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "pages.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    """Every block of shell, in order, in one empty folder; the first line that fails ends it."""
    for name in re.findall(r"<!-- needs: (\S+) -->", page.read_text(encoding="utf-8")):
        if name not in index():
            pytest.skip(f"weights {name} are not bundled")
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 2
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, "PATH": place},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "wrong").exists(), "what the tutorial says is refused"
    pictures = [path for path in tmp_path.rglob("*.png")]
    assert all(path.stat().st_size > 20_000 for path in pictures)
    images = re.findall(r"-o (\S+\.png)", "".join(blocks))
    assert {path.name for path in pictures} == set(images)


def test_the_site_names_every_page() -> None:
    """A page that no menu leads to is one that nobody reads."""
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert f" {name}\n" in menu, f"{name} is in no menu of mkdocs.yml"
