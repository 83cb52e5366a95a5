"""cf-score: how good a set of images is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cftools.cli import options
from cftools.cli.app import Command
from cftools.cli.score_axioms import Tried, score_axioms
from cftools.cli.score_outputs import Outputs
from cftools.cli.score_sets import Asked, score_sets
from cftools.cli.score_truth import SCORES, score_truth
from cftools.errors import UsageError

#: Of sets; "age" and "sex" by networks that read them.
SET_METRICS = ("fid", "kid", "ms-ssim", "psnr", "mae", "ssim", "age", "sex")
#: Weights that read each variable.
READERS = {"age": "score-age-2mm", "sex": "score-sex-2mm"}


def score(
    sets: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...",
            help="Folders of images, BIDS or flat, each a set; with --truth the edits, a folder or one image; with "
            "--axioms the scans to edit.",
        ),
    ],
    ref: Annotated[
        str | None, typer.Option(metavar="DIR", help="The real scans to compare with; without it a set stands alone.")
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Cohort of cf-phantom --twin, with the true counterfactuals; or one image."),
    ] = None,
    before: Annotated[
        str | None, typer.Option(metavar="FILE", help="The scan that was edited, when --truth is one image.")
    ] = None,
    axioms: Annotated[
        bool, typer.Option("--axioms", help="Let --preset edit the scans there and back, and measure what comes back.")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of sets: fid, kid, ms-ssim, psnr, mae, ssim, age, sex; by default fid, kid and ms-ssim, without "
            "--ref ms-ssim. With --truth: truth_ratio, psnr, ms-ssim, mae, ssim; by default the first three.",
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Weights whose features fid and kid compare; medicalnet:FILE for a file of MedicalNet's.",
        ),
    ] = "features-2mm",
    reader: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHTS",
            help="Weights that read age or sex, instead of score-age-2mm and score-sex-2mm; age= asks for none.",
        ),
    ] = None,
    contrast: Annotated[str, typer.Option(metavar="SUFFIX", help="Which images of a folder.")] = "T1w",
    preset: Annotated[str, typer.Option(metavar="NAME|FILE", help="With --axioms: the method.")] = "twin",
    weights: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="With --axioms: weights instead of the preset's own.")
    ] = None,
    age: Annotated[
        list[str] | None,
        typer.Option(metavar="YEARS", help="With --axioms: the changes; by default -60,-30,-10,+10,+30,+60."),
    ] = None,
    cycles: Annotated[int, typer.Option(metavar="N", min=1, help="With --axioms: rounds of editing.")] = 10,
    count: Annotated[
        int | None, typer.Option("-n", metavar="N", min=1, help="With --axioms: scans at most, spread over ages.")
    ] = None,
    participant_label: options.ParticipantLabel = None,
    session_label: options.SessionLabel = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", rich_help_panel="Output", help="Draw what there is to draw.")
    ] = None,
    summary: options.Summary = None,
    json: options.Json = None,
    tsv: Annotated[
        str | None,
        typer.Option(metavar="FILE", rich_help_panel="Output", help="Write the table as tab-separated text."),
    ] = None,
    force: options.Force = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    strict: options.Strict = False,
) -> int:
    """Measure sets of images, edits against the truth, or a method against the axioms of counterfactuals.

    Sets. fid, kid: distances to the real scans in the features of a network, which is named in every output; kid is
    unbiased where there are few images. ms_ssim: 3D, the mean over all pairs of a set; less is more diverse. psnr_db,
    mae, ssim: against the scan of the same subject and session. age_mae, sex_accuracy: what networks read off each
    image against what it was meant to show, by change; targets outside of 0 to 100 years are left out.

    --truth. truth_ratio: mean absolute error against the truth inside the brain, over that of doing nothing: 0 is
    perfect, 1 no better than the scan as it was. inside_error, outside_error: in the brain (nonzero in the scan or
    the truth), and outside of it, where nothing truly changes; parts of the scan's brightness, the 99.5th percentile
    of its nonzero voxels. psnr_db: over the whole grid, its peak that brightness. ms_ssim: its data range is the
    largest value of all images.

    --axioms. composition: left after editing to the scan's own condition, once and N times. reversibility: after a
    change and back. effectiveness: as age_mae, of the edits. minimality: how far an edit is from its own scan, over
    how far from other people's.

    low, high: 95 % interval, over people.

    Example:
        cf-score --ref real/ fake/ --metric fid,ms-ssim,age --json scores.json
        cf-score fake/ --metric ms-ssim
        cf-score --ref bids/ ldm/ cdm/ --metric fid,kid --features medicalnet:resnet_10_23dataset.pth --plots plots/
        cf-score --truth twins/ edited/
        cf-score --truth true.nii.gz --before scan.nii.gz edited.nii.gz
        cf-score --axioms --preset twin --age -30,+30 -n 50 bids/
    """
    if sum((truth is not None, ref is not None, axioms)) > 1:
        raise UsageError("--truth, --ref and --axioms are three kinds of score: choose one")
    if before is not None and truth is None:
        raise UsageError("--before goes with --truth")
    outputs = Outputs(json, tsv, summary, plots, force)
    subjects, sessions = options.labels(participant_label), options.labels(session_label)
    usable = threads or 1
    if truth is not None:
        if len(sets) != 1:
            raise UsageError("--truth: name one folder of edits, or one image")
        if plots is not None:
            raise UsageError("--plots goes with sets and --axioms; edits beside the truth are drawn by cf-view")
        metrics = _metrics(metric or [], tuple(SCORES))
        return score_truth(sets[0], truth, before, metrics, subjects, sessions, outputs, seed, usable)
    if sessions:
        raise UsageError("--session-label goes with --truth")
    readers, chosen = _readers(reader or []), partial(options.choose_device, device)
    if axioms:
        if metric:
            raise UsageError("--metric goes with sets and --truth; --axioms measures all of its own")
        ages = tuple(age or ())
        tried = Tried(
            preset,
            weights,
            ages,
            readers,
            cycles,
            count,
            contrast,
            subjects,
            seed,
            usable,
            lambda: options.choose_device(device),
        )
        return score_axioms(sets, tried, outputs)
    metrics = _metrics(metric or [], SET_METRICS)
    asked = Asked(metrics, features, readers, contrast, subjects, seed, usable, chosen)
    return score_sets(sets, ref, asked, outputs)


def _metrics(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The metrics asked for, in the order of the table."""
    asked = [name.strip().replace("_", "-") for text in names for name in text.split(",")]
    for name in asked:
        if name not in known:
            raise UsageError(f"--metric {name}: choose from {', '.join(known).replace('truth-ratio', 'truth_ratio')}")
    return tuple(name for name in known if name in asked)


def _readers(texts: Sequence[str]) -> dict[str, str]:
    """Weights by variable: the bundled ones with those that were named."""
    readers = dict(READERS)
    for text in texts:
        name, equals, weights = text.partition("=")
        if not equals or name not in READERS:
            raise UsageError(f"--reader {text}: write age=WEIGHTS or sex=WEIGHTS")
        readers[name] = weights
    return {name: weights for name, weights in readers.items() if weights}


main = Command("cf-score", score)
