"""Bad input, command by command: refused with one line, nothing written, nothing lost; what is only odd is taken."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import bad_tables
import pytest
from bad_input import CASES, INPUT_REFUSED, Case, outcome, run
from bad_nifti import ACCEPTED, WARNINGS, nifti_bytes

from cftools.cohort import find_scans, known_of
from cftools.condition import Condition, Variable
from cftools.errors import CftoolsWarning

AGE = Variable("age", "number", 5.0, 100.0)
SEX = Variable("sex", "category", values=("F", "M"))
DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_gets_one_line_and_nothing_else(case: Case) -> None:
    found = outcome(case)
    assert not found.is_crash, found.err
    assert found.code == case.code, found.err
    assert found.err.startswith(f"cf-{case.command}: error: ") and found.err.count("\n") == 1
    assert case.reason in found.err and case.subject in found.err
    assert found.out == "" and found.changed == ()


def test_the_page_shows_what_happens() -> None:
    page = _script().page([(case, outcome(case)) for case in CASES])
    assert (DOCS / "bad-input.md").read_text(encoding="utf-8") == page, "python docs/bad_input.py makes it anew"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_bad_input", DOCS / "bad_input.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_image_is_taken_and_strictly_refused(name: str, tmp_path: Path) -> None:
    path = str(ACCEPTED[name](tmp_path).relative_to(tmp_path))
    words = ("--truth", path, "--before", path, path, "--metric", "psnr", "--json", "facts.json")
    code, out, err = run("score", words, tmp_path)
    assert code == 0 and "psnr_db" in out and (tmp_path / "facts.json").exists()
    assert err.count("warning: ") == err.count("\n") and (WARNINGS.get(name, "") in err)
    assert bool(err) == (name in WARNINGS)
    (tmp_path / "facts.json").unlink()
    code, _, err = run("score", (*words, "--strict"), tmp_path)
    if name in WARNINGS:
        assert code == INPUT_REFUSED and err.count("\n") == 1 and WARNINGS[name] in err
    assert (tmp_path / "facts.json").exists() == (name not in WARNINGS)


@pytest.mark.parametrize("name", [b"plain", b"a scan (1)", "Schädel-脳-🧠".encode(), b"K\xf6ln", b"-o", b"'; rm"])
def test_any_name_of_a_file_will_do(name: bytes, tmp_path: Path) -> None:
    scan, picture = (os.fsdecode(name + ending) for ending in (b".nii", b".png"))
    (tmp_path / scan).write_bytes(nifti_bytes())
    code, out, err = run("view", ("--plane", "axial", "--dpi", "20", "--", scan), tmp_path)
    assert code == 0, err
    assert os.fsencode(out.rstrip("\n")) == os.fsencode(picture)
    assert (tmp_path / picture).exists()
    words = ("--truth", scan, "--before", scan, "--metric", "psnr", "--json", "facts.json", "--", scan)
    assert run("score", words, tmp_path)[0] == 0
    assert (tmp_path / "facts.json").exists()


@pytest.mark.parametrize("name", bad_tables.ACCEPTED)
def test_an_odd_table_is_read(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data, (age, sex), warns = bad_tables.ACCEPTED[name]
    scan = tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    (tmp_path / "participants.tsv").write_bytes(data)
    assert known_of(scan, {"age": AGE, "sex": SEX}) == Condition({"age": age, "sex": sex})
    said = [str(warning.message) for warning in recwarn if warning.category is CftoolsWarning]
    assert len(said) == warns and all(str(tmp_path) in text for text in said)
    assert [(one.subject, one.age, one.sex) for one in find_scans(tmp_path)] == [("sub-01", age, sex)]
