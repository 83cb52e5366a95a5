"""Sets of images: which a folder holds, what each was meant to show, and which belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cftools.cohort import IMAGE_ENDINGS, contrast_of, known_of, told_beside
from cftools.condition import Condition, Value, Variable
from cftools.errors import InputError

#: What is looked for of every image.
VARIABLES = {
    "age": Variable("age", "number", 0.0, 130.0, unit="years"),
    "sex": Variable("sex", "category", values=("F", "M")),
}
# Suffixes of label images.
_LABELS = ("dseg", "probseg", "mask")
_AGE = re.compile(r"age(Plus|Minus)?([0-9]+(?:p[0-9]+)?)(?=[A-Z]|$)")
_SEX = re.compile(r"[sS]ex([FM])(?=[A-Z]|$)")


@dataclass(frozen=True)
class Member:
    """One image of a set.

    Attributes:
        subject: "sub-0001", else the file's name; session: "ses-1" or empty.
        setting: what was changed, as the desc entity says it: "agePlus30"; empty for a scan as it is.
        told: age and sex that it was meant to show, None where nothing says them.
    """

    path: Path
    subject: str
    session: str
    setting: str
    told: Condition

    def __str__(self) -> str:
        return str(self.path)


def find_members(folder: Path, contrast: str = "T1w", labels: Sequence[str] = ()) -> list[Member]:
    """The images of a folder in one contrast, in order of their names.

    Of a BIDS folder those in sub-*/, else those that lie in the folder itself. If some have a desc entity and others
    not, the others are left out: they are scans beside their edits.

    Args:
        labels: subjects to keep, with or without "sub-"; all when empty.
    Raises:
        InputError: no folder, or no such image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder: give one with the images of a set")
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in labels}
    images = sorted(path for path in [*folder.glob("sub-*/**/*"), *folder.glob("*")] if _is_image(path, contrast))
    if wanted:
        images = [path for path in images if _entity(path, "sub") in wanted]
    if not images:
        raise InputError(f"{folder}: no {contrast} image in it{' of ' + ', '.join(sorted(wanted)) if wanted else ''}")
    return [_member(path) for path in images]


def scored(members: Sequence[Member]) -> list[Member]:
    """The edits of a folder; all of it where nothing is said to be one."""
    return [one for one in members if one.setting] or list(members)


def real(members: Sequence[Member]) -> list[Member]:
    """The scans of a folder as they are; all of it where every one is an edit."""
    return [one for one in members if not one.setting] or list(members)


def with_targets(members: Iterable[Member], sources: Iterable[Member]) -> list[Member]:
    """Members told of their sources what nothing says of themselves: agePlus30 is from the source's own age.

    Args:
        sources: scans that were edited, by subject and session.
    """
    before = {(one.subject, one.session): one.told for one in sources}
    found = []
    for one in members:
        source = before.get((one.subject, one.session), Condition())
        said = _named(one.setting, source.get("age"))
        told = {
            name: value if value is not None else said.get(name, source.get(name)) for name, value in one.told.items()
        }
        found.append(Member(one.path, one.subject, one.session, one.setting, Condition(told)))
    return found


def pairs_of(members: Sequence[Member], sources: Sequence[Member]) -> list[tuple[Member, Member]]:
    """Each member with the one source of its subject and session; members without are left out.

    Raises:
        InputError: none has any.
    """
    before: dict[tuple[str, str], list[Member]] = {}
    for one in sources:
        before.setdefault((one.subject, one.session), []).append(one)
    pairs = [(one, found[0]) for one in members if len(found := before.get((one.subject, one.session), [])) == 1]
    if not pairs:
        raise InputError("no image has a counterpart of its name (sub-, ses-) in --ref: psnr, ssim and mae need pairs")
    return pairs


def spread_over_ages(members: Sequence[Member], count: int) -> list[Member]:
    """As many as asked, spread over the ages that there are: every n-th in order of age; of unknown age none."""
    known = sorted((one for one in members if _age(one) is not None), key=lambda one: (_age(one) or 0.0, str(one.path)))
    if len(known) <= count:
        return known
    places = [round(index * (len(known) - 1) / max(count - 1, 1)) for index in range(count)]
    return [known[place] for place in places]


def _age(member: Member) -> float | None:
    age = member.told.get("age")
    return age if isinstance(age, float) else None


def _member(path: Path) -> Member:
    subject = _entity(path, "sub") or path.name.split(".")[0]
    setting = _entity(path, "desc").removeprefix("desc-")
    told, beside = known_of(path, VARIABLES), told_beside(path)
    # A table tells of who was edited, and only a JSON of the edit itself.
    said = {name: value for name, value in _named(setting, told.get("age")).items() if name not in beside}
    return Member(path, subject, _entity(path, "ses"), setting, told.do(**said))


def _named(setting: str, age: Value) -> Mapping[str, Value]:
    """Age and sex that a desc entity names: age79SexM, agePlus2p5."""
    found: dict[str, Value] = {}
    if match := _AGE.search(setting):
        number = float(match.group(2).replace("p", "."))
        if match.group(1) is None:
            found["age"] = number
        elif isinstance(age, float):
            found["age"] = age + (number if match.group(1) == "Plus" else -number)
    if match := _SEX.search(setting):
        found["sex"] = match.group(1)
    return found


def _is_image(path: Path, contrast: str) -> bool:
    stem = next((path.name.removesuffix(end) for end in IMAGE_ENDINGS if path.name.endswith(end)), "")
    if not stem or not path.is_file() or stem.rpartition("_")[2] in _LABELS:
        return False
    return contrast_of(path) == contrast


def _entity(path: Path, name: str) -> str:
    match = re.search(rf"(?:^|_)({name}-[A-Za-z0-9]+)(?=_|\.)", path.name)
    return match.group(1) if match else ""
