"""Counterfactuals against the truth that a simulated cohort knows.

Errors are parts of the scan's own brightness (`intensity_scale`), so that every subject weighs the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cftools.errors import InputError, UsageError
from cftools.score.image import Pyramid, intensity_scale, mean_absolute, ms_ssim, psnr, ssim
from cftools.volume import Volume

OVERALL = "overall"
RESAMPLES = 2000
#: Percentiles between which the interval lies.
INTERVAL = (2.5, 97.5)

_ENDINGS = (".nii.gz", ".nii")
# Suffixes of label images, which also carry a desc entity.
_LABELS = ("dseg", "probseg", "mask")


#: Before, truth and edited.
Images = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Counterfactual:
    """The three images that belong together.

    Attributes:
        subject: "sub-0001"; setting: what was changed, as the desc entity says it: "agePlus30".
        before: the scan; truth: the scan under the change; edited: what was made of the scan.
    """

    subject: str
    setting: str
    before: Path
    truth: Path
    edited: Path

    def __str__(self) -> str:
        return f"{self.subject} {self.setting}"

    def load(self) -> Images:
        """Before, truth and edited, each (X, Y, Z) float32 on one grid.

        Raises:
            VolumeError: one cannot be read, or they are not on one grid.
        """
        before = Volume.load(self.before)
        others = [Volume.load(path) for path in (self.truth, self.edited)]
        for other in others:
            before.check_same_grid(other)
        return before.array, others[0].array, others[1].array


@dataclass(frozen=True)
class Measured:
    """One edited image's scores, by metric, and those of the scan left as it is."""

    subject: str
    setting: str
    scores: Mapping[str, float]
    nothing: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One score of one change over subjects.

    Attributes:
        ours: the score; low, high: its 95 % bootstrap interval over subjects, nan where there is none.
        nothing: the same score of doing nothing.
        n: number of subjects.
    """

    setting: str
    metric: str
    ours: float
    low: float
    high: float
    nothing: float
    n: int


def find_counterfactuals(
    folder: Path, edited: Path, subjects: Sequence[str] = (), sessions: Sequence[str] = ()
) -> tuple[list[Counterfactual], list[str]]:
    """Every true counterfactual with its scan and its edited image, matched by file name.

    Args:
        folder: BIDS, with derivatives/truth/sub-*/[ses-*/]anat/sub-*_desc-*_T1w.nii.gz, as of cf-phantom.
        edited: has the same names, in the same folders or all in one.
        subjects, sessions: labels to keep, with or without their sub- and ses-; all when empty.
    Returns:
        those that were edited, and the others as "sub-0001 agePlus30"; both in order of subject and change.
    Raises:
        UsageError: edited is the truth itself, or a label is not there. InputError: there is no truth, or no edited
            image of it.
    """
    if not edited.is_dir():
        raise UsageError(f"{edited}: is no folder: give the folder of the edited images")
    root = folder / "derivatives" / "truth"
    found, missing, example = [], [], ""
    for truth in _wanted(sorted(_images(root)), root, subjects, sessions):
        place = truth.relative_to(root)
        subject, setting = _entity(truth, "sub"), _entity(truth, "desc")
        before = folder / place.with_name(truth.name.replace(f"_desc-{setting}", ""))
        image = _present(edited / place) or _present(edited / truth.name)
        if image is None:
            missing.append(f"sub-{subject} {setting}")
            example = example or truth.name
            continue
        if image.samefile(truth):
            raise UsageError(f"{edited}: is the truth itself: give the folder of the edited images")
        found.append(Counterfactual(f"sub-{subject}", setting, _present(before) or before, truth, image))
    if not found and not missing:
        raise InputError(f"{folder}: no derivatives/truth/sub-*/ in it: give a folder of cf-phantom --twin")
    if not found:
        count = f"the {len(missing)} true counterfactuals in {folder}"
        raise InputError(f"{edited}: no edited image of {count}, such as {example}")
    return found, missing


def single_counterfactual(before: Path, truth: Path, edited: Path) -> Counterfactual:
    """One counterfactual from three files; subject and change as their names say them, if they do."""
    subject = _entity(before, "sub") or _entity(truth, "sub") or _entity(edited, "sub")
    setting = _entity(truth, "desc") or _entity(edited, "desc") or "edited"
    return Counterfactual(f"sub-{subject}" if subject else "scan", setting, before, truth, edited)


def truth_errors(before: np.ndarray, truth: np.ndarray, edited: np.ndarray) -> Measured:
    """How far an edit is from the truth, and how far doing nothing is.

    inside_error = mean |edited - truth| over the brain, the voxels that are nonzero in before or truth;
    outside_error = mean |edited - before| elsewhere, where nothing truly changes;
    truth_ratio = inside_error / that of doing nothing: 0 is perfect, 1 no better than the scan as it is.
    Errors are parts of the scan's `intensity_scale`. A ratio to nothing, and a mean over nothing, are nan.

    Args:
        before, truth, edited: (X, Y, Z), one grid.
    Raises:
        InputError: before is empty.
    """
    scale = intensity_scale(before)
    brain = (before != 0) | (truth != 0)
    inside = _mean_absolute(edited - truth, brain) / scale
    nothing = _mean_absolute(before - truth, brain) / scale
    scores = {
        "truth_ratio": inside / nothing if nothing > 0 else float("nan"),
        "inside_error": inside,
        "outside_error": _mean_absolute(edited - before, ~brain) / scale,
    }
    return Measured("", "", scores, {"truth_ratio": 1.0, "inside_error": nothing, "outside_error": 0.0})


def measure(
    pair: Counterfactual, metrics: Sequence[str], data_range: float = 0.0, images: Images | None = None
) -> Measured:
    """Score one edited image.

    Args:
        pair: whose images they are.
        metrics: of "truth-ratio", and against the truth over the whole grid "psnr" (its peak the scan's
            `intensity_scale`), "mae" (in parts of that), "ms-ssim" and "ssim".
        data_range: for MS-SSIM and SSIM; the largest value in the whole set, from `largest_value`.
        images: of `pair.load()`, where they were read already.
    Raises:
        VolumeError: an image cannot be read, or is on another grid.
        InputError: the scan is empty, or too small for MS-SSIM.
    """
    before, truth, edited = images or pair.load()
    scores: dict[str, float] = {}
    nothing: dict[str, float] = {}
    try:
        if "truth-ratio" in metrics:
            errors = truth_errors(before, truth, edited)
            scores |= errors.scores
            nothing |= errors.nothing
        if "psnr" in metrics:
            peak = intensity_scale(before)
            scores["psnr_db"], nothing["psnr_db"] = psnr(edited, truth, peak), psnr(before, truth, peak)
        if "mae" in metrics:
            peak = intensity_scale(before)
            scores["mae"], nothing["mae"] = (mean_absolute(each, truth) / peak for each in (edited, before))
        if {"ms-ssim", "ssim"} & set(metrics):
            reference, made, unchanged = (Pyramid.of(each) for each in (truth, edited, before))
            for name, similarity in (("ms-ssim", ms_ssim), ("ssim", ssim)):
                if name in metrics:
                    key = name.replace("-", "_")
                    scores[key] = similarity(made, reference, data_range)
                    nothing[key] = similarity(unchanged, reference, data_range)
    except InputError as error:
        raise InputError(f"{pair.before}: {error}") from None
    return Measured(pair.subject, pair.setting, scores, nothing)


def largest_value(images: Images) -> tuple[float, tuple[int, ...]]:
    """The largest intensity in the three images, and their shape."""
    return max(float(image.max()) for image in images), images[0].shape


def summarise(measured: Sequence[Measured], seed: int = 0) -> list[Row]:
    """Scores of each change, and of all together where there are several, over subjects.

    truth_ratio is the ratio of two means over subjects, the error's and doing nothing's; truth_ratio_mean and
    truth_ratio_worst are the mean and the largest of the single images' ratios; all else are means. Intervals
    are the 2.5th and 97.5th percentile of `RESAMPLES` draws of as many subjects, with replacement; a subject
    brings all of its images along. What is nan for an image is left out there.

    Args:
        measured: in any order; the same metrics in each.
        seed: of the draws.
    """
    settings = list(dict.fromkeys(one.setting for one in sorted(measured, key=_order)))
    rows = []
    for setting in settings + [OVERALL] * (len(settings) > 1):
        group = [one for one in sorted(measured, key=_order) if setting in (one.setting, OVERALL)]
        rows += [row for metric in group[0].scores for row in _rows(setting, metric, group, seed)]
    return rows


def _rows(setting: str, metric: str, group: Sequence[Measured], seed: int) -> Iterator[Row]:
    """The rows of one metric of one change."""
    subjects = [one.subject for one in group]
    scores = np.array([one.scores[metric] for one in group])
    nothing = np.array([one.nothing[metric] for one in group])
    n = len(set(subjects))
    name = metric
    if metric == "truth_ratio":
        errors = np.array([one.scores["inside_error"] for one in group])
        unchanged = np.array([one.nothing["inside_error"] for one in group])
        yield Row(setting, metric, *bootstrap_ratio(subjects, errors, unchanged, seed), 1.0, n)
        name = "truth_ratio_mean"
    known = ~np.isnan(scores)
    interval = bootstrap_ratio(subjects, np.where(known, scores, 0), known.astype(float), seed)
    mean_of_nothing = float(nothing[known].mean()) if known.any() else float("nan")
    yield Row(setting, name, *interval, mean_of_nothing, n)
    if metric == "truth_ratio":
        worst = float(scores[known].max()) if known.any() else float("nan")
        yield Row(setting, "truth_ratio_worst", worst, float("nan"), float("nan"), 1.0, n)


def bootstrap_ratio(
    subjects: Sequence[str], above: np.ndarray, below: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """sum(above) / sum(below) with its bootstrap interval over subjects.

    Args:
        subjects: whose each value is, (N,); above, below: the values, (N,).
        seed: of the draws, which depend on nothing else but the number of subjects.
    Returns:
        ratio, low, high; nan where it is not defined, as the interval of a single subject.
    """
    names, places = np.unique(np.asarray(subjects), return_inverse=True)
    count = len(names)
    totals = np.stack([np.bincount(places, each, count) for each in (above, below)])  # (2, subjects)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.divide(above.sum(), below.sum()))
        if count < 2:
            return ratio, float("nan"), float("nan")
        drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
        numerator, denominator = totals[:, drawn].sum(axis=2)  # (resamples,) each
        low, high = np.percentile(numerator / denominator, INTERVAL)
    return ratio, float(low), float(high)


def mean_absolute_inside(image: np.ndarray, other: np.ndarray, mask: np.ndarray, scan: np.ndarray) -> float:
    """Mean absolute difference of two images inside a mask, in parts of a scan's brightness; all (X, Y, Z)."""
    return _mean_absolute(image - other, mask) / intensity_scale(scan)


def _mean_absolute(difference: np.ndarray, where: np.ndarray) -> float:
    values = difference[where]
    return float(np.abs(values).mean(dtype=np.float64)) if values.size else float("nan")


def _wanted(truths: Sequence[Path], root: Path, subjects: Sequence[str], sessions: Sequence[str]) -> Sequence[Path]:
    """Those of some subjects and sessions."""
    for entity, labels in (("sub", subjects), ("ses", sessions)):
        asked = {label.removeprefix(f"{entity}-") for label in labels}
        if missing := asked - {_entity(path, entity) for path in truths}:
            names = ", ".join(f"{entity}-{label}" for label in sorted(missing))
            raise UsageError(f"{root}: no true counterfactual of {names}")
        truths = [path for path in truths if not asked or _entity(path, entity) in asked]
    return truths


def _images(root: Path) -> Iterator[Path]:
    """The images under the folder that show a change."""
    for path in root.glob("sub-*/**/*_desc-*_*"):
        stem = next((path.name.removesuffix(end) for end in _ENDINGS if path.name.endswith(end)), "")
        if stem and stem.rpartition("_")[2] not in _LABELS and _entity(path, "desc"):
            yield path


def _present(path: Path) -> Path | None:
    """The image of this name, packed or not; None where there is neither."""
    stem = next(path.name.removesuffix(end) for end in _ENDINGS if path.name.endswith(end))
    return next((other for end in _ENDINGS if (other := path.with_name(stem + end)).is_file()), None)


def _entity(path: Path, name: str) -> str:
    match = re.search(rf"(?:^|_){name}-([A-Za-z0-9]+)(?=_)", path.name)
    return match.group(1) if match else ""


def _order(one: Measured) -> tuple[str, str]:
    return one.setting, one.subject
