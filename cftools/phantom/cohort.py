"""Simulated cohorts on disk: BIDS, with the true counterfactuals under derivatives/truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from cftools.condition import Change, Condition
from cftools.errors import OutputError, UsageError
from cftools.phantom.anatomy import STRUCTURES
from cftools.phantom.twins import Aged, Family
from cftools.prepare import Grid
from cftools.provenance import Provenance, dataset_description, write_sidecar
from cftools.volume import Volume, write_atomic

#: Ages the simulator knows, years.
AGES = (5.0, 100.0)
Report = Callable[[int, int, str], None]


def write_cohort(
    out: Path,
    family: Family,
    grid: Grid,
    count: int,
    seed: int,
    twins: Sequence[Change] = (),
    ages: tuple[float, float] = AGES,
    force: bool = False,
    command: str = "",
    report: Report | None = None,
) -> None:
    """Write subjects and their twins.

    OUT/sub-0001/anat/sub-0001_T1w.nii.gz, labels and true counterfactuals under OUT/derivatives/truth, volumes in ml
    of every image in OUT/derivatives/truth/volumes.tsv.

    Args:
        out: a new or empty folder, unless forced.
        family: where subjects come from.
        grid: of the images; the anatomies' own.
        count: number of subjects.
        seed: of every draw; subject i is the same whatever the count.
        twins: changes of age under which each subject is rendered again.
        ages: range of the subjects' ages; narrowed so that every twin stays within 5-100 years.
    Raises:
        OutputError: the folder holds something already; if forced, subjects that would stay as they are.
        UsageError: no age is left that suits every twin.
    """
    ages = _age_range(ages, twins)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise OutputError(f"{out}: exists and is not empty; name another folder or use --force")
    _check_left(out, {_name(index) for index in range(count)}, {twin.entity for twin in twins})
    truth = out / "derivatives" / "truth"
    try:
        truth.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder ({error.strerror})") from None
    dataset_description(out, "Simulated brains with known counterfactuals", raw=True)
    dataset_description(truth, "True counterfactuals, labels and volumes of the simulated brains")
    lookup = [["index", "name"], *([str(i), name] for i, name in enumerate(STRUCTURES, start=1))]
    _write_table(truth / "desc-structures_dseg.tsv", lookup)

    people = [["participant_id", "age", "sex"]]
    volumes = [["participant_id", "desc", "age", "sex", "brain", *STRUCTURES]]
    for index, name, images in simulate(family, count, seed, ages, twins):
        age, sex = images[0][1].age, images[0][1].subject.sex
        people.append([name, f"{age:.1f}", sex])
        for desc, aged in images:
            folder = (truth if desc else out) / name / "anat"
            folder.mkdir(parents=True, exist_ok=True)
            entity = f"_desc-{desc}" if desc else ""
            path = folder / f"{name}{entity}_T1w.nii.gz"
            scan = _volume(aged.image()[0, 0].numpy() * aged.strip()[0, 0].numpy(), grid)
            known = Condition({"age": round(aged.age, 1), "sex": sex})
            made = {"subject": index, "anatomy": aged.subject.anatomy.name, "law": family.law.name}
            provenance = Provenance(command, (), True, target=known, seed=seed, details=made)
            write_sidecar(path, provenance, force=force)
            scan.save(path, force=force)
            labels = truth / name / "anat" / f"{name}_desc-{desc}structures_dseg.nii.gz"
            labels.parent.mkdir(parents=True, exist_ok=True)
            _volume(aged.labels().numpy(), grid).save(labels, force=force)
            ml = aged.volumes()
            brain = sum(ml[k] for k in ("cortex", "white_matter", "deep_grey", "hippocampus"))
            numbers = [f"{value:.3f}" for value in (brain, *(ml[k] for k in STRUCTURES))]
            volumes.append([name, desc or "n/a", f"{aged.age:.1f}", sex, *numbers])
        if report:
            report(index + 1, count, name)
    _write_table(truth / "volumes.tsv", volumes)
    _write_table(out / "participants.tsv", people)
    meaning = {"age": {"Units": "year"}, "sex": {"Levels": {"F": "female", "M": "male"}}}
    write_atomic(out / "participants.json", json.dumps(meaning, indent=1).encode(), force=True)


def simulate(
    family: Family, count: int, seed: int, ages: tuple[float, float], twins: Sequence[Change]
) -> Iterator[tuple[int, str, list[tuple[str, Aged]]]]:
    """Number, name, and the images of each subject: the factual one first, under an empty description.

    Arguments and errors as for `write_cohort`.
    """
    ages = _age_range(ages, twins)
    for index in range(count):
        # Ages are drawn at a tenth of a year, as participants.tsv gives them.
        age = round(float(np.random.default_rng([seed, 2, index]).uniform(*ages)), 1)
        subject = family.draw(seed, index)
        with torch.inference_mode():
            changed = [(twin.entity, subject.at(_target(twin, age))) for twin in twins]
            yield index, _name(index), [("", subject.at(age)), *changed]


def _check_left(out: Path, subjects: set[str], entities: set[str]) -> None:
    """Refuse a folder in which something of an older cohort would stay, as if it belonged to the new one."""
    for path in sorted([*out.glob("sub-*"), *out.glob("derivatives/truth/sub-*/anat/*_desc-*_T1w.nii.gz")]):
        entity = path.name.partition("_desc-")[2].partition("_")[0]
        if (entity and entity not in entities) or path.name.partition("_")[0] not in subjects:
            raise OutputError(f"{path}: is there and would not be made anew; name another folder or remove it")


def _name(index: int) -> str:
    return f"sub-{index + 1:04d}"


def _target(twin: Change, age: float) -> float:
    value = twin.target(Condition({"age": age}))
    if twin.name != "age" or not isinstance(value, float):
        raise UsageError(f"--twin {twin.name}={twin.value}: the simulator can change age, by or to a number")
    return value


def _age_range(ages: tuple[float, float], twins: Sequence[Change]) -> tuple[float, float]:
    """Ages whose every twin stays within the law's range."""
    low, high = max(ages[0], AGES[0]), min(ages[1], AGES[1])
    for twin in twins:
        if twin.relative:
            shift = _target(twin, 0.0)
            low, high = max(low, AGES[0] - shift), min(high, AGES[1] - shift)
        elif not AGES[0] <= _target(twin, 0.0) <= AGES[1]:
            low, high = 1.0, 0.0
    if low > high:
        raise UsageError(f"no age lets every twin stay within {AGES[0]:g}-{AGES[1]:g} years")
    return low, high


def _volume(array: np.ndarray, grid: Grid) -> Volume:
    return Volume.from_array(array.astype(np.float32), grid.affine, code=4)


def _write_table(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    write_atomic(path, text.getvalue().encode(), force=True)
