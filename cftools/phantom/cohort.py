"""Simulated cohorts on disk: BIDS, with the true counterfactuals under derivatives/truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cftools.condition import Change, Condition, entity
from cftools.errors import OutputError, UsageError
from cftools.phantom.anatomy import STRUCTURES
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.head import grown, with_margin
from cftools.phantom.twins import HEALTH, WELL, Aged, Family, Health
from cftools.prepare import Grid
from cftools.provenance import Provenance, dataset_description, write_sidecar
from cftools.schema import FrozenMapping
from cftools.volume import Volume, write_atomic

#: Ages the simulator knows, years.
AGES = (5.0, 100.0)
#: What the values in participants.tsv mean.
LEVELS = {
    "CN": "cognitively normal",
    "MCI": "mild cognitive impairment",
    "AD": "Alzheimer's disease",
    "none": "none",
    "low": "few lesions of multiple sclerosis",
    "medium": "some lesions of multiple sclerosis",
    "high": "many lesions of multiple sclerosis",
    "stroke": "an old infarct",
    "tumour": "a glioblastoma",
}
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Design:
    """What a cohort is made of, and what is shown of it.

    Attributes:
        health: for some parts of Health, the values that the subjects' own are drawn from.
        contrasts: of CONTRASTS.
        skull: the whole head rather than the brain.
    """

    health: Mapping[str, tuple[str, ...]] = FrozenMapping()
    contrasts: tuple[str, ...] = ("T1w",)
    skull: bool = False


PLAIN = Design()
#: A change, or several made together.
Twin = Change | tuple[Change, ...]


def write_cohort(
    out: Path,
    family: Family,
    grid: Grid,
    count: int,
    seed: int,
    twins: Sequence[Twin] = (),
    ages: tuple[float, float] = AGES,
    force: bool = False,
    command: str = "",
    report: Report | None = None,
    design: Design = PLAIN,
) -> None:
    """Write subjects and their twins.

    OUT/sub-0001/anat/sub-0001_T1w.nii.gz; labels, lesion and brain masks and true counterfactuals under
    OUT/derivatives/truth; volumes in ml of every image in OUT/derivatives/truth/volumes.tsv.

    Args:
        out: a new or empty folder, unless forced.
        family: where subjects come from.
        grid: of the images; the anatomies' own.
        count: number of subjects.
        seed: of every draw; subject i is the same whatever the count.
        twins: changes under which each subject is rendered again.
        ages: range of the subjects' ages; narrowed so that every twin stays within 5-100 years. Where no age lets them,
            as with -60 and +60, subjects are of the whole range and have the twins that do.
        design: what else there is to it.
    Raises:
        OutputError: the folder holds something already; if forced, subjects that would stay as they are.
        UsageError: no age suits one of the twins, or a change is none that the simulator can make.
    """
    _age_range(ages, twins)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise OutputError(f"{out}: exists and is not empty; name another folder or use --force")
    _check_left(out, {file for i in range(count) for file in _files(_name(i), twins, design)})
    truth = out / "derivatives" / "truth"
    try:
        truth.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder ({error.strerror})") from None
    dataset_description(out, "Simulated brains with known counterfactuals", raw=True)
    dataset_description(truth, "True counterfactuals, labels and volumes of the simulated brains")
    changed = {change.name for twin in twins for change in _together(twin)}
    columns = [name for name in HEALTH if name in changed or name in design.health]
    lesions = {"load", "lesion"} & set(columns)
    names = [*STRUCTURES, *(["lesion"] if lesions else [])]
    lookup = [["index", "name"], *([str(i), name] for i, name in enumerate(names, start=1))]
    _write_table(truth / "desc-structures_dseg.tsv", lookup)

    people = [["participant_id", "age", "sex", *columns]]
    ml = ["lesion_ml"] if lesions else []
    volumes = [["participant_id", "desc", "age", "sex", *columns, "brain", *STRUCTURES, *ml]]
    for index, name, images in simulate(family, count, seed, ages, twins, design.health):
        sex, health = images[0][1].subject.sex, images[0][1].health
        people.append([name, f"{images[0][1].age:.1f}", sex, *(getattr(health, column) for column in columns)])
        writer = _Writer(out, name, grid, design, force)
        made = {"subject": index, "anatomy": images[0][1].subject.anatomy.name, "law": family.law.name}
        for desc, aged in images:
            facts = {column: getattr(aged.health, column) for column in columns}
            known = Condition({"age": round(aged.age, 1), "sex": sex, **facts})
            source = {"lesion_mask": aged.lesion.source} if aged.lesion and aged.lesion.source else {}
            details = made | source
            writer.write(
                desc, aged, Provenance(command, (), not design.skull, target=known, seed=seed, details=details)
            )
            size = aged.volumes()
            brain = sum(size[k] for k in ("cortex", "white_matter", "deep_grey", "hippocampus"))
            lesion = [aged.lesion_ml()] if lesions else []
            numbers = [f"{value:.3f}" for value in (brain, *(size[k] for k in STRUCTURES), *lesion)]
            volumes.append([name, desc or "n/a", f"{aged.age:.1f}", sex, *facts.values(), *numbers])
        if report:
            report(index + 1, count, name)
    _write_table(truth / "volumes.tsv", volumes)
    _write_table(out / "participants.tsv", people)
    meaning = {"age": {"Units": "year"}, "sex": {"Levels": {"F": "female", "M": "male"}}}
    meaning |= {column: {"Levels": {value: LEVELS[value] for value in HEALTH[column]}} for column in columns}
    write_atomic(out / "participants.json", json.dumps(meaning, indent=1).encode(), force=True)


@dataclass(frozen=True)
class _Writer:
    """Writes the images of one subject."""

    out: Path
    name: str
    grid: Grid
    design: Design
    force: bool

    def write(self, desc: str, aged: Aged, provenance: Provenance) -> None:
        """Images, labels and masks of a subject as it is (an empty desc) or would be."""
        for contrast in self.design.contrasts:
            folder = self.out / "derivatives" / "truth" if desc else self.out
            path = folder / self.name / "anat" / _image(self.name, contrast, desc)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_sidecar(path, provenance, force=self.force)
            self._save(path, self._head(aged, contrast) if self.design.skull else aged.image(contrast) * aged.strip())
        self._save(self._truth(_labels(self.name, desc)), aged.labels())
        if aged.health.has_lesions:
            self._save(self._truth(_lesion_mask(self.name, desc)), aged.lesion_mask())
        if self.design.skull:
            self._save(self._truth(_brain_mask(self.name, desc)), aged.brain())

    def _truth(self, file: str) -> Path:
        path = self.out / "derivatives" / "truth" / self.name / "anat" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _head(self, aged: Aged, contrast: str) -> Tensor:
        subject = aged.subject
        return subject.head.around(aged.image(contrast), subject.cranium, subject.scanned(contrast))

    def _save(self, path: Path, values: Tensor) -> None:
        grid = self.grid
        if self.design.skull:
            grid = with_margin(grid)
            values = values if tuple(values.shape[-3:]) == grid.shape else grown(values)
        array = values.reshape(grid.shape).numpy().astype(np.float32)
        Volume.from_array(array, grid.affine, code=4).save(path, force=self.force)


def simulate(
    family: Family,
    count: int,
    seed: int,
    ages: tuple[float, float],
    twins: Sequence[Twin],
    health: Mapping[str, tuple[str, ...]] = PLAIN.health,
) -> Iterator[tuple[int, str, list[tuple[str, Aged]]]]:
    """Number, name, and the images of each subject: the factual one first, under an empty description.

    Arguments and errors as for `write_cohort`.
    """
    ages = _age_range(ages, twins)
    for index in range(count):
        # Ages are drawn at a tenth of a year, as participants.tsv gives them.
        age = round(float(np.random.default_rng([seed, 2, index]).uniform(*ages)), 1)
        drawn = {
            name: str(np.random.default_rng([seed, 6, index, number]).choice(health[name]))
            for number, name in enumerate(HEALTH)
            if name in health
        }
        subject, own = family.draw(seed, index), Health(**drawn)
        with torch.inference_mode():
            targets = {_entity(twin): _target(twin, age, own) for twin in twins}
            changed = [(desc, subject.at(*target)) for desc, target in targets.items() if _is_known(target[0])]
            yield index, _name(index), [("", subject.at(age, own)), *changed]


def _image(name: str, contrast: str, desc: str) -> str:
    """File of an image, as BIDS names it: sub-0001_ce-gadolinium_desc-age80_T1w.nii.gz."""
    words = [name, CONTRASTS[contrast].entity, f"desc-{desc}" if desc else "", CONTRASTS[contrast].suffix]
    return "_".join(word for word in words if word) + ".nii.gz"


def _labels(name: str, desc: str) -> str:
    return f"{name}_desc-{desc}structures_dseg.nii.gz"


def _lesion_mask(name: str, desc: str) -> str:
    return f"{name}_label-lesion{'_desc-' + desc if desc else ''}_mask.nii.gz"


def _brain_mask(name: str, desc: str) -> str:
    return f"{name}_desc-{desc}{'Brain' if desc else 'brain'}_mask.nii.gz"


def _files(name: str, twins: Sequence[Twin], design: Design) -> set[str]:
    """Names of all images that can be written of a subject."""
    descs = ["", *map(_entity, twins)]
    files = {_image(name, contrast, desc) for contrast in design.contrasts for desc in descs}
    kinds = [_labels, _lesion_mask, *([_brain_mask] if design.skull else [])]
    return files | {kind(name, desc) for kind in kinds for desc in descs}


def _check_left(out: Path, files: set[str]) -> None:
    """Refuse a folder in which something of an older cohort would stay, as if it belonged to the new one."""
    for path in sorted([*out.glob("sub-*/anat/*.nii.gz"), *out.glob("derivatives/truth/sub-*/anat/*.nii.gz")]):
        if path.name not in files:
            raise OutputError(f"{path}: is there and would not be made anew; name another folder or remove it")


def _name(index: int) -> str:
    return f"sub-{index + 1:04d}"


def _together(twin: Twin) -> tuple[Change, ...]:
    return (twin,) if isinstance(twin, Change) else twin


def _entity(twin: Twin) -> str:
    return entity(_together(twin))


def _target(twin: Twin, age: float, health: Health) -> tuple[float, Health]:
    """The age and the health that a twin has."""
    for change in _together(twin):
        value = change.target(Condition({"age": age}))
        if change.name == "age" and isinstance(value, float):
            age = value
        elif value in HEALTH.get(change.name, ()):
            health = replace(health, **{change.name: value})
        else:
            known = "; ".join(f"{name} to {', '.join(values)}" for name, values in HEALTH.items())
            raise UsageError(
                f"--twin {change.name}={change.value}: the simulator can change age, by or to a number; {known}"
            )
    return age, health


def _age_range(ages: tuple[float, float], twins: Sequence[Twin]) -> tuple[float, float]:
    """Ages whose every twin stays within the law's range; all, if there are none but each twin has some."""
    whole = low, high = max(ages[0], AGES[0]), min(ages[1], AGES[1])
    for twin in twins:
        at_zero, at_one = (_target(twin, age, WELL)[0] for age in (0.0, 1.0))
        if at_one > at_zero:  # the twin's age follows the subject's
            least, most = AGES[0] - at_zero, AGES[1] - at_zero
        else:
            least, most = whole if _is_known(at_zero) else (1.0, 0.0)
        if max(whole[0], least) > min(whole[1], most):
            raise UsageError(f"--twin {_entity(twin)}: no age lets it stay within {AGES[0]:g}-{AGES[1]:g} years")
        low, high = max(low, least), min(high, most)
    return (low, high) if low <= high else whole


def _is_known(age: float) -> bool:
    return AGES[0] <= age <= AGES[1]


def _write_table(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    write_atomic(path, text.getvalue().encode(), force=True)
