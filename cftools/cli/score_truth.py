"""cf-score --truth: edits against the truth, which simulated twins know."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli import terminal
from cftools.cli.batch import Batch, Record, Stages
from cftools.cli.score_outputs import Outputs
from cftools.cli.summary import summarised
from cftools.errors import UsageError

if TYPE_CHECKING:
    from cftools.score.counterfactual import Counterfactual, Images, Measured, Row

#: What each metric tells of one image; the first three unless told.
SCORES = {
    "truth-ratio": ("truth_ratio", "inside_error", "outside_error"),
    "psnr": ("psnr_db",),
    "ms-ssim": ("ms_ssim",),
    "mae": ("mae",),
    "ssim": ("ssim",),
}
USUAL = ("truth-ratio", "psnr", "ms-ssim")
COLUMNS = ("change", "metric", "score", "low", "high", "doing nothing", "subjects")
# The same columns where programs read them.
FIELDS = ("setting", "metric", "ours", "low", "high", "nothing", "n")


def score_truth(
    edited: str,
    truth: str,
    before: str | None,
    metrics: tuple[str, ...],
    subjects: tuple[str, ...],
    sessions: tuple[str, ...],
    outputs: Outputs,
    seed: int,
    threads: int,
) -> int:
    """The scores of edits against the truth, printed and written; the exit code.

    Args:
        edited, truth: folders, or with `before`, the scan, one image each.
        metrics: of SCORES; empty for the usual.
        subjects, sessions: labels to keep; all when empty.
    """
    if before is not None and Path(truth).is_dir():
        raise UsageError(f"--before goes with one image, and --truth {truth} is a folder: leave it out")
    if before is not None and (subjects or sessions):
        raise UsageError("--participant-label and --session-label go with folders")
    if before is None and not Path(truth).is_dir():
        what = "is one image: name the scan with --before" if Path(truth).exists() else "does not exist"
        raise UsageError(f"--truth {truth}: {what}")
    outputs.check([edited, truth, before])

    from cftools.score.counterfactual import find_counterfactuals, single_counterfactual, summarise

    missing: list[str] = []
    if before is not None:
        pairs = [single_counterfactual(Path(before), Path(truth), Path(edited))]
    else:
        pairs, missing = find_counterfactuals(Path(truth), Path(edited), subjects, sessions)
    if missing:
        _warn_of(missing, len(pairs) + len(missing))
    metrics = metrics or USUAL
    columns = [name for metric in metrics for name in SCORES[metric]]
    with summarised(outputs.summary, columns, pairs, [], outputs.force, False) as batch:
        measured, similarity, code = _measure(pairs, metrics, batch, threads)
    if not measured:
        return code
    rows = summarise(measured, seed)
    outputs.table(COLUMNS, FIELDS, [_cells(row) for row in rows], [_cells(row, digits=9) for row in rows])
    if similarity:
        terminal.say(f"MS-SSIM: data range {similarity['data_range']:g}, the largest value of all images")
        for size, betas in similarity["betas"].items():
            exponents = " ".join(f"{beta:.4f}" for beta in betas)
            terminal.say(f"MS-SSIM: {len(betas)} scales for {size} voxels, exponents {exponents}")
    done = {(one.subject, one.setting) for one in measured}
    cohort = {
        "n": len({one.subject for one in measured}),
        "truths": len(pairs) + len(missing),
        "scored": len(measured),
        "missing": missing,
        "failed": [str(pair) for pair in pairs if (pair.subject, pair.setting) not in done],
    }
    outputs.facts(_facts(cohort, similarity, rows, measured, seed))
    return code


def _warn_of(missing: Sequence[str], total: int) -> None:
    import warnings

    from cftools.errors import CftoolsWarning

    names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    text = f"{len(missing)} of {total} true counterfactuals have no edited image: {names}"
    warnings.warn(text, CftoolsWarning, stacklevel=2)


def _measure(
    pairs: Sequence[Counterfactual], metrics: tuple[str, ...], batch: Batch[Counterfactual], threads: int
) -> tuple[list[Measured], dict[str, Any], int]:
    """The scores, MS-SSIM's settings (empty without it) and the exit code; what fails is left out."""
    from cftools.score.counterfactual import Counterfactual, largest_value, measure
    from cftools.score.image import ms_ssim_weights

    measured: list[Measured] = []
    largest: dict[Counterfactual, float] = {}
    betas: dict[str, tuple[float, ...]] = {}
    data_range = 0.0

    def survey(pair: Counterfactual, images: Images) -> Iterator[float]:
        value, shape = largest_value(images)
        if "ms-ssim" in metrics:
            betas["x".join(map(str, shape))] = ms_ssim_weights(shape)
        largest[pair] = value
        yield value

    def score_one(pair: Counterfactual, images: Images) -> Iterator[Measured]:
        yield measure(pair, metrics, data_range, images)

    def keep(record: Record[Counterfactual], made: Measured) -> None:
        measured.append(made)
        record.quality |= {name: f"{value:.6g}" for name, value in made.scores.items() if math.isfinite(value)}

    with terminal.progress("scoring") as report:
        refused = 0
        if {"ms-ssim", "ssim"} & set(metrics):
            # Its data range is known only once every image was seen, and a cohort need not fit into memory.
            seen: Batch[Counterfactual] = Batch()
            refused = seen.work_through(
                pairs, Stages(Counterfactual.load, survey, lambda record, made: None), threads=threads
            )
            batch.take_failures(seen)
            pairs = list(largest)
            data_range = max(largest.values(), default=0.0)
        scoring = Stages(Counterfactual.load, score_one, keep)
        code = batch.work_through(pairs, scoring, threads=threads, report=report, total=len(pairs)) or refused
    similarity = {"data_range": data_range, "betas": betas} if betas else {}
    return measured, similarity, code


def _facts(
    cohort: dict[str, Any],
    similarity: dict[str, Any],
    rows: Sequence[Row],
    measured: Sequence[Measured],
    seed: int,
) -> dict[str, Any]:
    """What --json writes: the table's rows and each image's own scores; null where there is no number."""
    from dataclasses import asdict

    from cftools.provenance import command_line
    from cftools.score.counterfactual import INTERVAL, RESAMPLES

    def known(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    images = [
        {"subject": one.subject, "setting": one.setting} | {"scores": known(one.scores), "nothing": known(one.nothing)}
        for one in measured
    ]
    return {
        "command": command_line(["cf-score", *sys.argv[1:]]),
        "cohort": cohort,
        "bootstrap": {"resamples": RESAMPLES, "percentiles": INTERVAL, "seed": seed},
        "ms_ssim": similarity or None,
        "rows": [known(asdict(row)) for row in rows],
        "images": images,
    }


def _cells(row: Row, digits: int = 4) -> list[str]:
    """A row as text, n/a where there is no number."""
    numbers = (row.ours, row.low, row.high, row.nothing)
    texts = ["n/a" if math.isnan(number) else f"{number:.{digits}g}" for number in numbers]
    return [row.setting, row.metric, *texts, str(row.n)]
