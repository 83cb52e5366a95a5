"""BIDS folders: who is in them, what is said of a scan, and how its derivatives are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cftools.cohort import contrast_of, described, find_scans, known_of, read_age, read_participants, read_sex
from cftools.condition import Condition, Variable
from cftools.errors import CftoolsWarning, InputError, UsageError

VARIABLES = {
    "age": Variable("age", "number", 5.0, 100.0),
    "sex": Variable("sex", "category", values=("F", "M")),
    "load": Variable("load", "number", 0.0, 10.0),
    "diagnosis": Variable("diagnosis", "category", values=("CN", "AD")),
}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz in an empty BIDS folder."""
    path = tmp_path / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii.gz"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def _table(scan: Path, *lines: str, name: str = "participants.tsv", encoding: str = "utf-8") -> Path:
    path = scan.parents[3] / name
    path.write_bytes("".join(line + "\n" for line in lines).encode(encoding))
    return path


def test_what_is_nearer_to_the_scan_counts_more(scan: Path) -> None:
    assert known_of(scan, VARIABLES) == dict.fromkeys(VARIABLES)
    _table(scan, "participant_id\tage\tsex\tload\tdiagnosis", "sub-01\t49\tmale\t2.5\tad")
    assert known_of(scan, VARIABLES) == Condition({"age": 49, "sex": "M", "load": 2.5, "diagnosis": "AD"})
    _table(scan, "session_id\tage\tload", "ses-1\t49\t1", "ses-2\t52\tn/a", name="sub-01/sub-01_sessions.tsv")
    assert (known_of(scan, VARIABLES)["age"], known_of(scan, VARIABLES)["load"]) == (52, 2.5)
    sidecar = scan.with_name("sub-01_ses-2_T1w.json")
    sidecar.write_text('{"PatientAge": "053Y", "PatientSex": "F"}')
    assert (known_of(scan, VARIABLES)["age"], known_of(scan, VARIABLES)["sex"]) == (53, "F")
    sidecar.write_text('{"Age": 53, "cftools": {"condition": {"target": {"age": 80, "sex": null, "load": 9}}}}')
    assert known_of(scan, VARIABLES) == Condition({"age": 80, "sex": "M", "load": 9, "diagnosis": "AD"})


@pytest.mark.parametrize("said", ["89+", "4,5", "nan", "inf", "-3", "old"])
def test_what_cannot_be_understood_is_unknown(scan: Path, said: str) -> None:
    _table(scan, "participant_id\tage\tsex\tload\tdiagnosis", f"sub-01\t{said}\tx\t1e3\tflu")
    with pytest.warns(CftoolsWarning) as warnings:
        assert known_of(scan, VARIABLES) == dict.fromkeys(VARIABLES)
    assert [str(one.message).split(": ")[1].split()[1] for one in warnings] == list(VARIABLES)
    assert repr(said) in str(warnings[0].message) and str(scan) in str(warnings[0].message)


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("49", 49),
        ("49.5", 49.5),
        ("049Y", 49),
        ("588m", 49),
        ("n/a", None),
        ("Y", None),
        (None, None),
        ("200", None),
    ],
)
def test_ages(text: object, age: float | None) -> None:
    assert read_age(text) == age


def test_sexes() -> None:
    assert [read_sex(text) for text in ("F", "female", " m ", "Male", "1", None)] == [
        "F",
        "F",
        "M",
        "M",
        None,
        None,
    ]


def test_months_of_a_table_are_years(scan: Path) -> None:
    _table(scan, "participant_id\tage", "sub-01\t588")
    _table(scan, '{"age": {"Units": "months"}}', name="participants.json")
    assert known_of(scan, VARIABLES)["age"] == 49
    assert find_scans(scan.parents[3])[0].age == 49


@pytest.mark.parametrize(
    ("lines", "encoding", "reason"),
    [
        (("participant_id,age", "sub-01,49"), "utf-8", "separated by tabs, not commas"),
        (("participant_id;age", "sub-01;49,5"), "utf-8", "separated by tabs, not semicolons"),
        (("participant_id age", "sub-01 49"), "utf-8", "separated by tabs, not spaces"),
        (("participant_id\tage", "\t49"), "utf-8", "line 2 has no participant_id"),
        (("participant_id\tage\tAge", "sub-01\t49\t50"), "utf-8", "stands in its first line twice"),
        (("subject\tage", "sub-01\t49"), "utf-8", "participant_id column"),
        (("participant_id\tage", "sub-01\t49\tF"), "utf-8", "line 2 has 3 columns, not 2"),
        (("participant_id\tage", "sub-01\t49", "sub-01\t50"), "utf-8", "sub-01 stands in it twice"),
        (("participant_id\tage", "sub-01\t49", "sub-02\té"), "latin-1", "UTF-8"),
    ],
)
def test_bad_tables_are_refused(scan: Path, lines: tuple[str, ...], encoding: str, reason: str) -> None:
    path = _table(scan, *lines, encoding=encoding)
    with pytest.raises(InputError, match=reason):
        read_participants(path)
    with pytest.raises(InputError, match=reason):
        find_scans(scan.parents[3])


def test_byte_order_mark_and_windows_lines_are_fine(scan: Path) -> None:
    path = _table(scan, "participant_id\tage\r", "sub-01\t49\r", encoding="utf-8-sig")
    assert read_participants(path) == {"sub-01": {"participant_id": "sub-01", "age": "49"}}


def test_utf_16_is_read_with_a_warning(scan: Path) -> None:
    path = _table(scan, "participant_id\tage", "sub-01\t49", encoding="utf-16")
    with pytest.warns(CftoolsWarning, match="is UTF-16"):
        assert read_participants(path)["sub-01"]["age"] == "49"


def test_columns_and_ids_as_spreadsheets_have_them(scan: Path) -> None:
    path = _table(scan, "Participant_ID\tAge\tSex", "01\t49\tMale", "../x\t50\tF", "", "\t \t")
    with pytest.warns(CftoolsWarning, match=r"letters and digits alone, and it has '01', '../x'"):
        assert known_of(scan, VARIABLES)["age"] == 49
    assert known_of(scan, VARIABLES)["sex"] == "M"
    assert list(read_participants(path)) == ["sub-01", "sub-../x"]
    with pytest.warns(CftoolsWarning, match=r"1 in it without a T1w scan in the folder: sub-../x"):
        [found] = find_scans(scan.parents[3])
    assert found.age == 49


def test_codes_of_sex_mean_what_the_json_says(scan: Path) -> None:
    _table(scan, "participant_id\tage\tsex", "sub-01\t49\t1")
    with pytest.warns(CftoolsWarning, match="'1', which is not understood"):
        assert known_of(scan, VARIABLES)["sex"] is None
    _table(scan, '{"sex": {"Levels": {"1": "male", "2": "female"}}}', name="participants.json")
    assert known_of(scan, VARIABLES)["sex"] == "M"


def test_a_table_that_changed_is_read_anew(scan: Path) -> None:
    path = _table(scan, "participant_id\tage", "sub-01\t49")
    read_participants(path)["sub-01"]["age"] = "none of the cache's business"
    assert known_of(scan, VARIABLES)["age"] == 49
    _table(scan, "participant_id\tage", "sub-01\t50.5")
    assert known_of(scan, VARIABLES)["age"] == 50.5


def test_scans_of_a_folder(scan: Path) -> None:
    folder = scan.parents[3]
    for name in ("sub-02_T1w.nii", "sub-02_T2w.nii", "sub-02_ce-gadolinium_T1w.nii", "sub-02_T1w.json"):
        (folder / "sub-02" / "anat").mkdir(parents=True, exist_ok=True)
        (folder / "sub-02" / "anat" / name).touch()
    _table(scan, "participant_id\tage\tsex", "sub-02\t30\tf", "sub-03\t40\tM")
    with pytest.warns(CftoolsWarning, match="1 in it without a T1w scan in the folder: sub-03"):
        first, second = find_scans(folder)
    assert (first.subject, first.session, first.age) == ("sub-01", "ses-2", None)
    assert (second.path.name, second.session, second.age, second.sex) == ("sub-02_T1w.nii", None, 30, "F")
    with pytest.warns(CftoolsWarning, match="1 in it without a T2w scan"):
        assert [one.path.name for one in find_scans(folder, "T2w", sessions=[])] == ["sub-02_T2w.nii"]
    assert [one.session for one in find_scans(folder, labels=["01"], sessions=["2"])] == ["ses-2"]
    with pytest.raises(UsageError, match="ses-1"):
        find_scans(folder, sessions=["ses-1"])
    assert find_scans(folder, labels=["02"]) == find_scans(folder, labels=["sub-02"]) == [second]
    with pytest.raises(UsageError, match="sub-03"):
        find_scans(folder, labels=["01", "03"])
    with pytest.raises(InputError, match="is it a BIDS folder"):
        find_scans(folder / "sub-02")


@pytest.mark.parametrize(
    ("name", "contrast", "result"),
    [
        ("sub-01_T1w.nii.gz", "T1w", "sub-01_desc-age79_T1w.nii.gz"),
        ("sub-01_ses-1_run-2_T2w.nii", "T2w", "sub-01_ses-1_run-2_desc-age79_T2w.nii"),
        ("sub-01_ce-gadolinium_T1w.nii.gz", "T1ce", "sub-01_ce-gadolinium_desc-age79_T1w.nii.gz"),
        ("sub-01_desc-agePlus30_T1w.nii.gz", "T1w", "sub-01_desc-agePlus30Age79_T1w.nii.gz"),
        ("sub-01.nii.gz", "T1w", "sub-01_desc-age79.nii.gz"),
        ("template_T1w.nii.gz", "T1w", "template_desc-age79_T1w.nii.gz"),
        ("T1w.mgz", "T1w", "desc-age79_T1w.nii.gz"),
        ("my_scan.nii", "T1w", "my_scan_desc-age79.nii"),
        ("SCAN.NII.GZ", "T1w", "SCAN_desc-age79.nii.gz"),
        ("brain.2.hdr", "T1w", "brain.2_desc-age79.nii.gz"),
    ],
)
def test_names(name: str, contrast: str, result: str) -> None:
    assert contrast_of(Path(name)) == contrast
    assert described(Path(name), "age79") == result
