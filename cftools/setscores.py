"""Scores of sets of images: each image is looked at once, then the sets are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cftools.condition import Condition, Value
from cftools.errors import InputError
from cftools.imagesets import Member, pairs_of
from cftools.score.adherence import METRICS, Looked, adherence
from cftools.score.counterfactual import OVERALL
from cftools.score.distribution import Estimate, fid, kid
from cftools.score.diversity import all_pairs, mean_of_pairs
from cftools.score.image import Pyramid, intensity_scale, mean_absolute, ms_ssim_weights, psnr, ssim
from cftools.score.table import REFERENCE, Score, averaged
from cftools.score.table import Value as Number
from cftools.volume import Volume

if TYPE_CHECKING:
    import torch

    from cftools.methods import ScalarReader
    from cftools.score.looking import Features, Shown

#: By what they need: features of both sets, the images of one, pairs of both, and what readers say.
DISTANCES, ALL_PAIRS, PAIRED, READ = ("fid", "kid"), ("ms-ssim",), ("psnr", "mae", "ssim"), ("age", "sex")
SET_METRICS = (*DISTANCES, *ALL_PAIRS, *PAIRED, *READ)
#: Images that a set needs for them.
LEAST = {"fid": 2, "kid": 4, "ms-ssim": 2}


@dataclass(frozen=True, eq=False)
class Seen:
    """What there is to know of one image; the image itself is not kept.

    Attributes:
        largest: intensity; shape, affine: of its grid.
        features: (D,), or None where nobody asked.
        read: age and sex as it looks, where asked.
    """

    member: Member
    largest: float
    shape: tuple[int, ...]
    affine: np.ndarray
    features: np.ndarray | None = None
    read: Mapping[str, Value] = field(default_factory=dict)


class Onlooker:
    """Looks at images with the networks that some metrics need; they are loaded once.

    Args:
        metrics: of SET_METRICS.
        features: weights or "medicalnet:PATH". readers: weights by variable.
        device: says which device to use.
    Raises:
        WeightsError: there are no such weights, or they are for something else.
    """

    def __init__(
        self, metrics: Sequence[str], features: str, readers: Mapping[str, str], device: Callable[[], torch.device]
    ) -> None:
        self.features: Features | None = None
        self.readers: dict[str, tuple[ScalarReader, str]] = {}
        self._shown: dict[str, Shown] = {}
        asked = {name: readers[name] for name in READ if name in metrics}
        if not asked and not set(DISTANCES) & set(metrics):
            return
        from cftools.score.looking import Shown, open_features, open_readers

        grids = []
        if set(DISTANCES) & set(metrics):
            self.features = open_features(features, device())
            grids.append(self.features.grid)
        for name, (reader, grid) in open_readers(asked, device()).items():
            self.readers[name] = (reader, grid.name)
            grids.append(grid)
        self._shown = {grid.name: Shown(grid, device) for grid in grids}

    def read(self, member: Member) -> tuple[Volume, dict[str, np.ndarray]]:
        """An image, and as networks take it, by their grid; errors as `Volume.load` and `Shown`."""
        volume = Volume.load(member.path)
        return volume, {name: shown(volume) for name, shown in self._shown.items()}

    def look(self, member: Member, ready: tuple[Volume, dict[str, np.ndarray]]) -> Iterator[Seen]:
        """The one thing that is seen of an image."""
        from cftools.score.looking import read

        volume, images = ready
        found = self.features(images[self.features.grid.name]) if self.features else None
        said = {name: read(reader, images[grid]) for name, (reader, grid) in self.readers.items()}
        yield Seen(member, float(volume.array.max()), volume.array.shape, volume.affine, found, said)


@dataclass(frozen=True, eq=False)
class Compared:
    """The scores of one set and what they were taken with.

    Attributes:
        rows: the scores.
        looked: its images as they look, for plots and records.
        facts: settings of its scores, for the record: MS-SSIM's range and exponents, targets left out, notes.
    """

    rows: list[Score]
    looked: list[Looked]
    facts: dict[str, Any]


def compare(
    method: str,
    seen: Sequence[Seen],
    reference: Sequence[Seen],
    metrics: Sequence[str],
    seed: int = 0,
    is_reference: bool = False,
    report: Callable[..., None] | None = None,
    threads: int = 1,
) -> Compared:
    """The scores of one set.

    Args:
        method: its name; seen: its images.
        reference: the scans to compare with; empty where there are none, or where the set is those.
        metrics: of SET_METRICS; those that need a reference are left out without one.
        is_reference: the set is the scans themselves.
        threads: pairs of images that are compared at a time.
    Raises:
        InputError: too few images, several grids for MS-SSIM, no pairs, or nothing says what images should show.
    """
    setting = REFERENCE if is_reference else OVERALL
    rows: list[Score] = []
    facts: dict[str, Any] = {}
    if reference:
        rows += _distances(method, setting, seen, reference, metrics, seed)
    if "ms-ssim" in metrics:
        found, facts["ms_ssim"] = _similarity(seen, seed, report, threads)
        rows.append(Score.of(method, setting, "ms_ssim", found, _people(seen)))
    if reference and (asked := [name for name in PAIRED if name in metrics]):
        rows += averaged(method, list(_paired(seen, reference, asked)), seed)
    looked = _looked(seen, reference)
    if asked := [METRICS[name] for name in READ if name in metrics]:
        kept = [one for one in looked if one.is_target]
        facts["targets_left_out"] = len(looked) - len(kept)
        found_rows = averaged(method, [value for one in kept for value in adherence(one, setting)], seed)
        if missing := [name for name in asked if name not in {row.metric for row in found_rows}]:
            raise InputError(
                f"{method}: {' and '.join(missing)} need what each image should show: a JSON beside it, "
                "participants.tsv, or a name such as desc-age79"
            )
        rows += found_rows
    return Compared(rows, looked, facts)


def too_few(metrics: Sequence[str], images: int, reference: int) -> list[str]:
    """Those of the metrics that a set of so many images is too small for, or what it is compared with is."""
    return [
        metric
        for metric in metrics
        if (min(images, reference) if metric in DISTANCES else images) < LEAST.get(metric, 1)
    ]


def grid_problem(seen: Sequence[Seen]) -> str:
    """Why MS-SSIM cannot compare the images of a set, or nothing."""
    first = seen[0]
    for one in seen[1:]:
        if one.shape != first.shape or not np.allclose(one.affine, first.affine, atol=1e-3):
            return (
                f"{one.member.path}: is not on the grid of {first.member.path}, and MS-SSIM compares voxel with voxel: "
                "bring all images onto one grid first (cf-prep)"
            )
    return ""


def _people(seen: Sequence[Seen]) -> int:
    return len({one.member.subject for one in seen})


def _distances(
    method: str, setting: str, seen: Sequence[Seen], reference: Sequence[Seen], metrics: Sequence[str], seed: int
) -> Iterator[Score]:
    """FID and KID, where asked."""
    if not set(DISTANCES) & set(metrics):
        return
    real, made = (_features(each) for each in (reference, seen))
    owners = [[one.member.subject for one in each] for each in (reference, seen)]
    if "fid" in metrics:
        yield Score.of(method, setting, "fid", fid(real, made, owners, seed), _people(seen))
    if "kid" in metrics:
        yield Score.of(method, setting, "kid", kid(real, made, seed), _people(seen))


def _features(seen: Sequence[Seen]) -> np.ndarray:
    return np.stack([one.features for one in seen if one.features is not None])


def _similarity(
    seen: Sequence[Seen], seed: int, report: Callable[..., None] | None, threads: int
) -> tuple[Estimate, dict[str, Any]]:
    """MS-SSIM over all pairs, and what it was taken with."""
    if problem := grid_problem(seen):
        raise InputError(problem)
    largest = max(one.largest for one in seen)
    weights = ms_ssim_weights(seen[0].shape)
    paths = [one.member.path for one in seen]
    table = all_pairs(
        lambda index: Volume.load(paths[index]).array, len(paths), largest, report=report, threads=threads
    )
    found = mean_of_pairs(table, [one.member.subject for one in seen], seed)
    return found, {"data_range": largest, "betas": list(weights)}


def _paired(seen: Sequence[Seen], reference: Sequence[Seen], metrics: Sequence[str]) -> Iterator[Number]:
    """PSNR, mean absolute error and SSIM of each image against the scan of its name."""
    for member, source in pairs_of([one.member for one in seen], [one.member for one in reference]):
        image, scan = Volume.load(member.path), Volume.load(source.path)
        scan.check_same_grid(image)
        scale = intensity_scale(scan.array)
        setting = member.setting or OVERALL
        if "psnr" in metrics:
            yield Number(member.subject, setting, "psnr_db", psnr(image.array, scan.array, scale))
        if "mae" in metrics:
            yield Number(member.subject, setting, "mae", mean_absolute(image.array, scan.array) / scale)
        if "ssim" in metrics:
            both = Pyramid.of(image.array), Pyramid.of(scan.array)
            yield Number(member.subject, setting, "ssim", ssim(*both, float(scan.array.max())))


def _looked(seen: Sequence[Seen], reference: Sequence[Seen]) -> list[Looked]:
    """How images look, and how the scans looked that were edited."""
    before = {(one.member.subject, one.member.session): Condition(one.read) for one in reference}
    none = Condition()
    return [
        Looked(
            one.member.subject,
            one.member.setting,
            one.member.told,
            Condition(one.read),
            before.get((one.member.subject, one.member.session), none) if one.member.setting else none,
        )
        for one in seen
    ]
