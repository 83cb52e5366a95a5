"""cf-score of sets of images: how like real scans, how diverse, and whether they show what was asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli import terminal
from cftools.cli.batch import Record, Stages
from cftools.cli.score_outputs import Outputs
from cftools.cli.summary import summarised
from cftools.errors import InputError, UsageError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from cftools.imagesets import Member
    from cftools.setscores import Compared, Seen


@dataclass(frozen=True)
class Asked:
    """What to score sets with.

    Attributes:
        metrics: of `setscores.SET_METRICS`; empty for the usual.
        features: weights, or "medicalnet:PATH". readers: weights by variable.
        contrast, subjects: which images.
    """

    metrics: tuple[str, ...]
    features: str
    readers: Mapping[str, str]
    contrast: str
    subjects: tuple[str, ...]
    seed: int
    threads: int
    device: Callable[[], torch.device]


def score_sets(sets: Sequence[str], ref: str | None, asked: Asked, outputs: Outputs) -> int:
    """The scores of sets, printed and written; the exit code."""
    from cftools.imagesets import find_members, real, scored, with_targets
    from cftools.setscores import DISTANCES, PAIRED, Onlooker

    metrics = asked.metrics or (("fid", "kid", "ms-ssim") if ref else ("ms-ssim",))
    if not ref and (needy := [name for name in metrics if name in (*DISTANCES, *PAIRED)]):
        raise UsageError(f"--metric {','.join(needy)}: compares with real scans: name them with --ref")
    outputs.check([*sets, ref])
    names = _names([*sets, *([ref] if ref else [])])
    reference = real(find_members(Path(ref), asked.contrast, asked.subjects)) if ref else []
    members: dict[str, list[Member]] = {}
    for name, folder in zip(names, sets, strict=False):
        found = find_members(Path(folder), asked.contrast, asked.subjects)
        members[name] = with_targets(scored(found), reference or real(found))
    if ref:
        members[names[-1]] = reference
    onlooker = Onlooker(metrics, asked.features, asked.readers, asked.device)
    seen: dict[Path, Seen] = {}

    def keep(record: Record[Member], one: Seen) -> None:
        seen[record.subject.path] = one
        record.quality |= {name: str(value) for name, value in one.read.items()}

    jobs = list({one.path: one for each in members.values() for one in each}.values())
    with (
        terminal.progress("looking") as report,
        summarised(outputs.summary, tuple(onlooker.readers), jobs, [], outputs.force, False) as batch,
    ):
        stages = Stages(onlooker.read, onlooker.look, keep)
        code = batch.work_through(jobs, stages, threads=asked.threads, report=report, total=len(jobs))
    kept = {name: [_as(seen[one.path], one) for one in each if one.path in seen] for name, each in members.items()}
    for name in [name for name, each in kept.items() if not each]:
        terminal.warning(f"{name}: none of its images could be looked at: it has no scores")
        del kept[name]
    if not kept or (ref and (names[-1] not in kept or len(kept) == 1)):
        return code
    insisted = bool(asked.metrics) or not ref
    compared = _compared(kept, names[-1] if ref else None, metrics, insisted, asked.seed, asked.threads)
    rows = [row for one in compared.values() for row in one.rows]
    outputs.scores(rows)
    _say(compared, onlooker.features.name if onlooker.features else None)
    outputs.facts(_facts(compared, members, seen, onlooker, asked.seed))
    if outputs.plots is not None:
        outputs.pictures(_plots(compared, {name: [one.member for one in each] for name, each in kept.items()}))
    return code


def _names(folders: Sequence[str]) -> list[str]:
    """What each set is called: its folder's name, or as much of its path as tells it from the others."""
    paths = [Path(folder).absolute() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UsageError("the same folder twice: a set is compared with another")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _as(seen: Seen, member: Member) -> Seen:
    """What was seen of an image, as a member of a set: one folder may stand for two."""
    from dataclasses import replace

    return replace(seen, member=member)


def _compared(
    seen: Mapping[str, Sequence[Seen]],
    ref: str | None,
    metrics: Sequence[str],
    insisted: bool,
    seed: int,
    threads: int = 1,
) -> dict[str, Compared]:
    """The scores of every set, those of the real scans last.

    Args:
        insisted: the metrics were named; else one that cannot be had is left out, as it always is of the real scans.
    """
    from cftools.setscores import compare, grid_problem, too_few

    found = {}
    reference = seen[ref] if ref else []
    several = len(seen) > (2 if ref else 1)
    with terminal.progress("comparing") as report:
        for name, images in seen.items():
            mine = [metric for metric in metrics if name != ref or metric in ("ms-ssim", "age", "sex")]
            leaves_out = name == ref or several or not insisted
            problem = grid_problem(images) if "ms-ssim" in mine and leaves_out else ""
            if problem:
                terminal.warning(f"{name}: ms_ssim is left out: {problem}")
                mine.remove("ms-ssim")
            few = too_few(mine, len(images), len(reference))
            if few and (several or (not insisted and len(few) < len(mine))):
                mine = [metric for metric in mine if metric not in few]
                terminal.warning(f"{name}: {', '.join(few)}: left out, as there are too few images")
            try:
                found[name] = compare(
                    name, images, [] if name == ref else reference, mine, seed, name == ref, report, threads
                )
            except InputError as error:  # real scans of nobody known
                if name != ref:
                    raise
                terminal.warning(f"the real scans themselves are not scored: {error}")
    return found


def _say(compared: Mapping[str, Compared], features: str | None) -> None:
    """What a number cannot be read without."""
    if features:
        terminal.say(f"features: {features}; distances under other features cannot be compared with these")
    for name, one in compared.items():
        if similarity := one.facts.get("ms_ssim"):
            exponents = " ".join(f"{beta:.4f}" for beta in similarity["betas"])
            terminal.say(
                f"MS-SSIM of {name}: data range {similarity['data_range']:g}, its largest value; "
                f"{len(similarity['betas'])} scales, exponents {exponents}"
            )
        if left_out := one.facts.get("targets_left_out"):
            terminal.say(f"{name}: {left_out} images were asked for an age outside of 0 to 100, and are left out")


def _facts(
    compared: Mapping[str, Compared],
    members: Mapping[str, Sequence[Member]],
    seen: Mapping[Path, Seen],
    onlooker: Any,
    seed: int,
) -> dict[str, Any]:
    """What --json writes: the table's rows, what they were taken with, and how each image looks."""
    from dataclasses import asdict

    from cftools.provenance import command_line
    from cftools.schema import plain
    from cftools.score.distribution import HALVES, INTERVAL, RESAMPLES
    from cftools.score.table import known

    rows = [
        {name: known(value) for name, value in asdict(row).items()} for one in compared.values() for row in one.rows
    ]
    images = [
        {
            "set": name,
            "image": str(one),
            "setting": one.setting,
            "told": plain(one.told),
            "read": dict(seen[one.path].read),
        }
        for name, each in members.items()
        for one in each
        if one.path in seen
    ]
    return {
        "command": command_line(["cf-score", *sys.argv[1:]]),
        "features": onlooker.features.name if onlooker.features else None,
        "readers": {name: reader.weights for name, (reader, _) in onlooker.readers.items()},
        "bootstrap": {"fid_resamples": RESAMPLES, "kid_halves": HALVES, "percentiles": INTERVAL, "seed": seed},
        "sets": {
            name: {
                "images": len(each),
                "scored": sum(one.path in seen for one in each),
                "failed": [str(one) for one in each if one.path not in seen],
                **(compared[name].facts if name in compared else {}),
            }
            for name, each in members.items()
        },
        "rows": rows,
        "images": images,
    }


def _plots(compared: Mapping[str, Compared], members: Mapping[str, Sequence[Member]]) -> dict[str, Figure]:
    """Every plot that there is something for."""
    from cftools.charts import SAMPLES, ages, errors, samples
    from cftools.imagesets import spread_over_ages
    from cftools.volume import Volume

    rows = [row for one in compared.values() for row in one.rows]
    made = {
        "ages": ages({name: one.looked for name, one in compared.items()}),
        "age-errors": errors(rows, "age_mae", "error of the age read off the image, years"),
    }
    shown = {name: spread_over_ages(each, SAMPLES) or each[:SAMPLES] for name, each in members.items()}
    made["samples"] = samples({name: [Volume.load(one.path) for one in each] for name, each in shown.items()})
    return {name: figure for name, figure in made.items() if figure is not None}
