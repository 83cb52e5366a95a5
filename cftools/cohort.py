"""BIDS folders: which scans they hold, who is in them, and how files in them are named."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cftools.condition import SPELLINGS, Condition, Value, Variable
from cftools.errors import CftoolsWarning, ConditionError, InputError, UsageError

IMAGE_ENDINGS = (".nii.gz", ".nii")
READABLE_ENDINGS = (*IMAGE_ENDINGS, ".mgz", ".mgh", ".hdr", ".img")
#: Suffixes known as contrasts also in names that do not begin with sub-.
CONTRASTS = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "T1ce")
#: Units of age by their first letter, as parts of a year: of Units in participants.json, and of DICOM's 049Y.
PARTS_OF_YEAR = {"y": 1.0, "m": 12.0, "w": 52.18, "d": 365.25}

#: What stands in tables where tabs should.
_SEPARATORS = {",": "commas", ";": "semicolons", " ": "spaces"}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", re.ASCII)


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort.

    Attributes:
        path: the image; subject: with its prefix, "sub-01"; session: "ses-1" or None.
        age: years, sex: "F" or "M"; None where neither the tables nor the sidecar say.
        brain: a brain mask or segmentation of it under derivatives/, None where there is none.
    """

    path: Path
    subject: str
    session: str | None
    age: float | None
    sex: str | None
    brain: Path | None


@dataclass(frozen=True)
class Wanted:
    """Which scans of a BIDS folder to take: all of a contrast, or those of some participants and sessions."""

    contrast: str = "T1w"
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()


def find_scans(
    folder: Path, contrast: str = "T1w", labels: Sequence[str] = (), sessions: Sequence[str] = ()
) -> list[Scan]:
    """The raw scans of a BIDS folder in one contrast, in order of their names.

    Args:
        folder: holds sub-*/[ses-*/]anat/.
        contrast: a BIDS suffix, or T1ce for T1w with a ce- entity; scans with desc- were made of others and are left
            out.
        labels: subjects to keep, with or without "sub-"; all when empty. sessions: likewise, with or without "ses-".
    Raises:
        UsageError: a label is not there. InputError: there is no such scan at all, or a table is bad.
    Warns:
        CftoolsWarning: all subjects are taken, and some in participants.tsv have no scan.
    """
    people = read_participants(folder / "participants.tsv")
    wanted = {_labelled(label, "sub") for label in labels}
    visits = {_labelled(label, "ses") for label in sessions}
    found = sorted(
        path
        for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*")
        for path in folder.glob(pattern)
        if _suffix(_stem(path)) is not None
        and contrast_of(path) == contrast
        and "_desc-" not in path.name
        and path.name.endswith(IMAGE_ENDINGS)
    )
    there = {part for path in found for part in (_part(path, "sub"), _part(path, "ses"))}
    if missing := (wanted | visits) - there:
        raise UsageError(f"{folder}: no {contrast} scan of {', '.join(sorted(missing))}")
    if not wanted and found and (absent := sorted(people.keys() - there)):
        names = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        text = f"{folder / 'participants.tsv'}: {len(absent)} in it without a {contrast} scan in the folder: {names}"
        warnings.warn(text, CftoolsWarning, stacklevel=2)
    scans = []
    for path in found:
        subject = _part(path, "sub")
        if subject is None or (wanted and subject not in wanted) or (visits and _part(path, "ses") not in visits):
            continue
        person = _person(path, folder, people)
        age, sex = read_age(person.get("age")), read_sex(person.get("sex"))
        scans.append(Scan(path, subject, _part(path, "ses"), age, sex, _brain_of(folder, subject, _part(path, "ses"))))
    if not scans:
        raise InputError(f"{folder}: no {contrast} scan in sub-*/anat: is it a BIDS folder?")
    return scans


def known_of(path: Path, variables: Mapping[str, Variable]) -> Condition:
    """What is known of a scan: from its sidecar, else its session's or participant's row of the tables.

    Args:
        path: the image; the tables are looked for in the folders above it.
        variables: what to look for, by the name of its column; None where nothing is said.
    Raises:
        InputError: a table is bad.
    Warns:
        CftoolsWarning: what is said cannot be understood, such as the age 89+; it counts as unknown.
    """
    folder = next((up for up in path.absolute().parents if (up / "participants.tsv").exists()), None)
    people = read_participants(folder / "participants.tsv") if folder else {}
    person = _person(path, folder, people)
    return Condition({name: _value(path, person.get(name), variable) for name, variable in variables.items()})


def contrast_of(path: Path) -> str:
    """The contrast a file's name says: its BIDS suffix, T1ce for ce-..._T1w; T1w when it says none."""
    stem = _stem(path)
    suffix = _suffix(stem) or "T1w"
    return "T1ce" if suffix == "T1w" and re.search(r"(^|_)ce-", stem) else suffix


def described(path: Path, description: str) -> str:
    """A file name with a desc- entity before the suffix: sub-01_T1w.nii -> sub-01_desc-age79_T1w.nii.

    A desc- that is there already stays, and the new one is joined to it. What is no .nii becomes .nii.gz.
    """
    stem = _stem(path)
    suffix = _suffix(stem)
    words = stem.split("_")
    entities, tail = (words[:-1], words[-1:]) if suffix else (words, [])
    before = next((word for word in entities if re.fullmatch("desc-[A-Za-z0-9]+", word)), None)
    if before is None:
        entities = [*entities, f"desc-{description}"]
    else:
        entities[entities.index(before)] = before + description[:1].upper() + description[1:]
    return "_".join(entities + tail) + (".nii" if path.name.lower().endswith(".nii") else ".nii.gz")


def latent_name(path: Path, description: str) -> str:
    """The name of a scan's latent: sub-01_T1w.nii -> sub-01_desc-ldm_T1w.safetensors."""
    word = re.sub("[^A-Za-z0-9]", "", description)
    return _stem(Path(described(path, word))) + ".safetensors"


def read_participants(path: Path, key: str = "participant_id") -> dict[str, dict[str, str]]:
    """participants.tsv as {participant_id: {column: value}}; empty when there is no such file.

    UTF-8 or, as Excel's "Unicode text" is, UTF-16; with or without a byte order mark; any ends of lines. Ages get the
    first letter of their unit, and sexes their words, where the .json beside the table gives them.

    Args:
        key: the column that names the rows; session_id of a sub-01_sessions.tsv.
    Raises:
        InputError: not tab-separated text with the key's column, ragged, a row without a name, or a name twice.
    Warns:
        CftoolsWarning: once for a table: in UTF-16; a name without its sub- or ses-, or one that no file can have.
    """
    try:
        status = path.stat()
    except OSError:
        return {}
    # A table is read once for all its scans; the copies are the caller's own.
    people = {name: dict(person) for name, person in _table(path, key, status.st_mtime_ns, status.st_size).items()}
    meanings = _json(path.with_suffix(".json"))
    unit, levels = _unit_of_age(meanings), _levels_of_sex(meanings)
    for person in people.values():
        if unit != "y" and _NUMBER.fullmatch(person.get("age", "").strip()):
            person["age"] = person["age"].strip() + unit
        if levels and (word := person.get("sex", "").strip()) in levels:
            person["sex"] = levels[word]
    return people


@lru_cache(maxsize=64)
def _table(path: Path, key: str, changed: int, size: int) -> dict[str, dict[str, str]]:
    """The rows of a table by their names; when it changed and its size tell one state of a file from another."""
    try:
        # Strict: a quote that is left open would swallow all people after it.
        rows = list(csv.reader(io.StringIO(_text(path), newline=""), delimiter="\t", strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: is not tab-separated throughout ({error}): is a quote left open?") from None
    columns = [_column(word) for word in rows[0]] if rows else []
    if key not in columns:
        first = rows[0][0] if rows and len(rows[0]) == 1 else ""
        seen = next((name for mark, name in _SEPARATORS.items() if mark in first), "")
        hint = f", not {seen}" if seen else ""
        raise InputError(f"{path}: the first line needs a {key} column, separated by tabs{hint}")
    if repeated := [name for name in columns if name and columns.count(name) > 1]:
        raise InputError(f"{path}: {repeated[0]} stands in its first line twice")
    prefix = {"participant_id": "sub", "session_id": "ses"}[key]
    people: dict[str, dict[str, str]] = {}
    odd: list[str] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(columns):
            raise InputError(f"{path}: line {number} has {len(row)} columns, not {len(columns)}")
        person = dict(zip(columns, row, strict=True))
        name = _labelled(person[key].strip(), prefix)
        if name == f"{prefix}-":
            raise InputError(f"{path}: line {number} has no {key}")
        if name in people:
            raise InputError(f"{path}: {name} stands in it twice")
        if name != person[key] or not re.fullmatch("[a-z]+-[A-Za-z0-9]+", name):
            odd.append(person[key])
        people[name] = person
    if odd:
        names = ", ".join(map(repr, odd[:3])) + (", ..." if len(odd) > 3 else "")
        text = f"{path}: a {key} is {prefix}- and then letters and digits alone, and it has {names}"
        warnings.warn(text, CftoolsWarning, stacklevel=4)
    return people


def _text(path: Path) -> str:
    """What a text file holds, as UTF-8 or as UTF-16 that says so."""
    if not path.is_file():  # a FIFO would block
        raise InputError(f"{path}: is not an ordinary file: put a table there, or nothing")
    try:
        data = path.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
            warnings.warn(f"{path}: is UTF-16, and BIDS wants UTF-8", CftoolsWarning, stacklevel=5)
            return text
        return data.decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None


def _column(word: str) -> str:
    """A column's name; those that are looked for also in capitals, as spreadsheets have them."""
    word = word.strip()
    return word.lower() if word.lower() in ("participant_id", "session_id", "age", "sex") else word


def _labelled(label: str, prefix: str) -> str:
    """01 and sub-01 -> sub-01."""
    return label if label.startswith(f"{prefix}-") else f"{prefix}-{label}"


def read_age(text: object) -> float | None:
    """Years, from 49, 49.5, DICOM's 049Y, or 588m; None for n/a and all else that is not a plain number."""
    word = str(text).strip().lower()
    number, unit = (word[:-1], word[-1]) if word[-1:] in PARTS_OF_YEAR else (word, "y")
    if not _NUMBER.fullmatch(number):
        return None
    age = float(number) / PARTS_OF_YEAR[unit]
    return age if 0 <= age <= 130 else None


def read_sex(text: object) -> str | None:
    """ "F" or "M" from the ways BIDS spells them, else None."""
    return SPELLINGS["sex"].get(str(text).strip().lower())


def _value(path: Path, said: object, variable: Variable) -> Value:
    """What a table or sidecar says of one variable, None for nothing or n/a."""
    word = str(said).strip()
    if said is None or word.lower() in ("", "n/a"):
        return None
    value: Value = None
    try:
        if variable.name == "age":
            value = read_age(word)
        elif variable.name == "sex":
            value = read_sex(word)
        elif variable.kind == "number":
            value = float(word) if _NUMBER.fullmatch(word) else None
        else:
            value = variable.check(word)
    except ConditionError:
        value = None
    if value is None:
        text = f"{path}: its {variable.name} is given as {word!r}, which is not understood: taken as unknown"
        warnings.warn(text, CftoolsWarning, stacklevel=3)
    return value


def _person(path: Path, folder: Path | None, people: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """All that is said of a scan, by name: participant, then session, then the scan's own sidecar."""
    subject, session = _part(path, "sub"), _part(path, "ses")
    person = dict(people.get(subject or "", {}))
    if folder and subject and session:
        sessions = read_participants(folder / subject / f"{subject}_sessions.tsv", "session_id")
        person |= {name: text for name, text in sessions.get(session, {}).items() if text.strip() != "n/a"}
    return {**person, **told_beside(path)}


def told_beside(path: Path) -> dict[str, object]:
    """What a scan's own JSON says (dcm2niix names), or of an edited scan, what it was made."""
    facts = _json(path.with_name(_stem(path) + ".json"))
    names = {"PatientSex": "sex", "Sex": "sex", "PatientAge": "age", "Age": "age"}
    said = {name: facts[key] for key, name in names.items() if key in facts}
    for key in ("cftools", "condition", "target"):
        inner = facts.get(key)
        facts = inner if isinstance(inner, dict) else {}
    return {name: value for name, value in {**said, **facts}.items() if value is not None}


def _unit_of_age(meanings: Mapping[str, object]) -> str:
    """The first letter of the unit that participants.json gives for age; y when it gives none."""
    age = meanings.get("age")
    unit = str(age.get("Units", "")).strip().lower()[:1] if isinstance(age, dict) else ""
    return unit if unit in PARTS_OF_YEAR else "y"


def _levels_of_sex(meanings: Mapping[str, object]) -> dict[str, str]:
    """What participants.json says the codes of sex mean: {"1": "male"}."""
    sex = meanings.get("sex")
    levels = sex.get("Levels") if isinstance(sex, dict) else None
    words = levels.items() if isinstance(levels, dict) else ()
    return {str(code): str(word) for code, word in words if read_sex(word)}


def _json(path: Path) -> dict[str, object]:
    try:
        # A FIFO would block.
        facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _brain_of(folder: Path, subject: str, session: str | None) -> Path | None:
    """A mask or segmentation of the scan's whole brain under derivatives/; simulated truth is no such thing."""
    for pattern in ("*_desc-brain_mask.nii*", "*_dseg.nii*"):
        for path in sorted(folder.glob(f"derivatives/*/{subject}/**/{pattern}")):
            if _part(path, "ses") == session and path.relative_to(folder).parts[1] != "truth":
                return path
    return None


def _stem(path: Path) -> str:
    """A file's name without the ending of an image."""
    lowered = path.name.lower()
    ending = next((known for known in READABLE_ENDINGS if lowered.endswith(known)), "")
    return path.name[: len(path.name) - len(ending)]


def _suffix(stem: str) -> str | None:
    """The BIDS suffix in a name: the last word of one that begins with sub-, or one known as a contrast."""
    last = stem.split("_")[-1]
    return last if last in CONTRASTS or (stem.startswith("sub-") and last.isalnum()) else None


def _part(path: Path, entity: str) -> str | None:
    match = re.search(rf"(?:^|_)({entity}-[A-Za-z0-9]+)", path.name)
    return match.group(1) if match else None
