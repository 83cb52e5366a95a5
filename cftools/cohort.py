"""BIDS folders: which scans they hold, and who is in them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cftools.errors import InputError, UsageError

IMAGE_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Scan:
    """One scan of a cohort.

    Attributes:
        path: the image; subject: with its prefix, "sub-01"; session: "ses-1" or None.
        age: years, sex: "F" or "M"; None where neither participants.tsv nor the sidecar says.
        brain: a brain mask or segmentation of it under derivatives/, None where there is none.
    """

    path: Path
    subject: str
    session: str | None
    age: float | None
    sex: str | None
    brain: Path | None


def find_scans(folder: Path, suffix: str = "T1w", labels: Sequence[str] = ()) -> list[Scan]:
    """The raw scans of a BIDS folder with one suffix, in order of their names.

    Args:
        folder: holds sub-*/[ses-*/]anat/.
        suffix: "T1w" and so on; scans with a ce- entity are another contrast and left out.
        labels: subjects to keep, with or without "sub-"; all when empty.
    Raises:
        UsageError: a label is not there. InputError: there is no such scan at all, or participants.tsv is bad.
    """
    people = read_participants(folder / "participants.tsv")
    wanted = {label if label.startswith("sub-") else f"sub-{label}" for label in labels}
    found = sorted(
        path
        for pattern in ("sub-*/anat/*", "sub-*/ses-*/anat/*")
        for path in folder.glob(pattern)
        if _stem(path).endswith(f"_{suffix}") and "_ce-" not in path.name and _stem(path) != path.name
    )
    missing = wanted - {_part(path, "sub") for path in found}
    if missing:
        raise UsageError(f"{folder}: no {suffix} scan of {', '.join(sorted(missing))}")
    scans = []
    for path in found:
        subject = _part(path, "sub")
        if subject is None or (wanted and subject not in wanted):
            continue
        person = {**people.get(subject, {}), **_sidecar(path)}
        age, sex = read_age(person.get("age")), read_sex(person.get("sex"))
        scans.append(Scan(path, subject, _part(path, "ses"), age, sex, _brain_of(folder, subject)))
    if not scans:
        raise InputError(f"{folder}: no sub-*/anat/*_{suffix}.nii.gz in it: is it a BIDS folder?")
    return scans


def folder_of(path: Path) -> Path | None:
    """The BIDS folder a scan lies in: the nearest one above it that describes itself or its participants."""
    for parent in path.absolute().parents:
        if (parent / "participants.tsv").exists() or (parent / "dataset_description.json").exists():
            return parent
    return None


def person_of(path: Path) -> tuple[float | None, str | None]:
    """Age and sex of one scan, from its sidecar or its folder's participants.tsv."""
    folder, subject = folder_of(path), _part(path, "sub")
    people = read_participants(folder / "participants.tsv") if folder and subject else {}
    person = {**people.get(subject or "", {}), **_sidecar(path)}
    return read_age(person.get("age")), read_sex(person.get("sex"))


def read_participants(path: Path) -> dict[str, dict[str, str]]:
    """participants.tsv as {participant_id: {column: value}}; empty when there is no such file.

    Raises:
        InputError: not tab-separated UTF-8 with a participant_id column, ragged, or a subject twice.
    """
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error.__class__.__name__})") from None
    rows = list(csv.reader(io.StringIO(text), delimiter="\t"))
    if not rows or "participant_id" not in rows[0]:
        raise InputError(f"{path}: the first line needs a participant_id column, separated by tabs")
    people: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row or row == [""]:
            continue
        if len(row) != len(rows[0]):
            raise InputError(f"{path}: line {number} has {len(row)} columns, not {len(rows[0])}")
        person = dict(zip(rows[0], row, strict=True))
        name = person["participant_id"]
        if name in people:
            raise InputError(f"{path}: {name} stands in it twice")
        people[name] = person
    return people


def read_age(text: object) -> float | None:
    """Years, or None for n/a and anything that is not a plain number of years."""
    try:
        age = float(str(text).strip())
    except ValueError:
        return None
    return age if math.isfinite(age) and 0 <= age <= 130 else None


def read_sex(text: object) -> str | None:
    """ "F" or "M" from the ways BIDS spells them, else None."""
    word = str(text).strip().lower()
    return {"f": "F", "female": "F", "m": "M", "male": "M"}.get(word)


def _sidecar(path: Path) -> dict[str, object]:
    """Age and sex as a scan's own JSON gives them (dcm2niix names)."""
    sidecar = path.with_name(_stem(path) + ".json")
    try:
        facts = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    names = {"PatientSex": "sex", "Sex": "sex", "PatientAge": "age", "Age": "age"}
    return {name: facts[key] for key, name in names.items() if key in facts} if isinstance(facts, dict) else {}


def _brain_of(folder: Path, subject: str) -> Path | None:
    """The first mask or segmentation of the whole brain found under derivatives/."""
    for pattern in ("*_desc-brain_mask.nii*", "*_dseg.nii*"):
        for path in sorted(folder.glob(f"derivatives/*/{subject}/**/{pattern}")):
            return path
    return None


def _stem(path: Path) -> str:
    for ending in IMAGE_ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name


def _part(path: Path, entity: str) -> str | None:
    match = re.search(rf"(?:^|_)({entity}-[A-Za-z0-9]+)", path.name)
    return match.group(1) if match else None
