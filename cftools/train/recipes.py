"""From a preset's recipe to something to train, and from what was trained to weights with their facts."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cftools import weights
from cftools.errors import PresetError, UsageError
from cftools.phantom.anatomy import TEMPLATE, Anatomy
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.law import AgeingLaw
from cftools.phantom.twins import Family
from cftools.prepare import Grid
from cftools.recipe import Recipe
from cftools.schema import FrozenMapping
from cftools.train.kinds import OBJECTIVES, VARIABLES, Job, grid_of, variables_of
from cftools.train.loop import Objective, Preview, Progress, Schedule, train
from cftools.train.people import Portrait
from cftools.train.processes import place_of
from cftools.train.validation import ANOTHER_SEED, SUBJECTS, split


def check(recipe: Recipe, conditions: Sequence[str]) -> Any:
    """Refuse before any work what cannot be trained.

    Returns:
        The network's architecture.
    Raises:
        PresetError: the recipe asks for something there is not. UsageError: a condition that cannot be learned.
    """
    kind = OBJECTIVES.get(recipe.objective)
    if kind is None:
        raise PresetError(f"objective {recipe.objective}: there are {', '.join(OBJECTIVES)}")
    if recipe.training.epochs:
        raise PresetError("training: simulated data have no end; give steps, not epochs")
    for name in conditions:
        if name not in kind.conditions:
            able = ", ".join(kind.conditions) or "none"
            raise UsageError(f"--condition {name}: a {recipe.objective} can learn {able}")
    if len(set(conditions)) != len(conditions) or (kind.alone and len(conditions) != 1):
        raise UsageError(f"--condition {','.join(conditions)}: each once, and for a {recipe.objective} of one")
    _known(recipe.losses, kind.losses, "losses")
    _known(recipe.data, kind.data, "data")
    for name, usual in kind.data.items():
        if isinstance(usual, bool):
            if not isinstance(value := recipe.data.get(name, usual), bool):
                raise PresetError(f"data.{name}: {value!r} is neither true nor false")
        elif isinstance(usual, int):
            value = recipe.data.get(name, usual)
            if isinstance(value, bool) or not isinstance(value, int) or value < min(usual, 1):
                raise PresetError(f"data.{name}: {value!r} is no number")
    for name in ("template", "real", "dropout"):
        share = recipe.data.get(name, 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise PresetError(f"data.{name}: {share!r} is no share between 0 and 1")
    if recipe.data.get("people", "varied") not in ("varied", "registered"):
        raise PresetError(f"data.people: {recipe.data['people']!r}: there are varied and registered")
    for name in contrasts_of(recipe):
        if name not in CONTRASTS:
            raise PresetError(f"data.contrasts: {name!r}: the simulator has {', '.join(CONTRASTS)}")
    grid_of(recipe)
    return kind.architecture(recipe, conditions)


def usual(recipe: Recipe) -> tuple[str, ...]:
    """The conditions that a recipe's objective learns unless it is told."""
    kind = OBJECTIVES.get(recipe.objective)
    if kind is None:
        return ()
    return kind.conditions if kind.usual is None else kind.usual


def takes_real(recipe: Recipe) -> Literal["", "brains", "people", "heads"]:
    """Whether, and as what, it can also learn from scans as they are."""
    kind = OBJECTIVES.get(recipe.objective)
    return "" if kind is None else kind.real


def contrasts_of(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe trains for."""
    return tuple(recipe.data.get("contrasts", ("T1w",)))


@dataclass(frozen=True)
class Planned:
    """A training before its first step.

    Attributes:
        architecture: of its network; initial: weights that it starts from.
        held_out: the same objective on people who are not trained on; None where nobody asked.
    """

    objective: Objective
    schedule: Schedule
    architecture: Any
    initial: weights.Checkpoint | None
    held_out: Objective | None = None


def planned(
    recipe: Recipe,
    conditions: Sequence[str],
    anatomies: list[Anatomy],
    real: Sequence[Any],
    law: AgeingLaw,
    seed: int,
    workers: int = 1,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    preview_every: int = 0,
    cache: Path | None = None,
    validate_every: int = 0,
) -> Planned:
    """What `run` trains; arguments and errors as there."""
    architecture, kind = check(recipe, conditions), OBJECTIVES[recipe.objective]
    initial = weights.load(recipe.initial, expect=recipe.network.architecture) if recipe.initial else None
    seen, unseen = split(real) if validate_every else (real, [])
    job = job_of(recipe, conditions, anatomies, seen, law, seed, cache, initial)
    held_out = None
    if validate_every:
        subjects = min(SUBJECTS, job.cohort or SUBJECTS)
        few = replace(recipe, data=FrozenMapping({**recipe.data, "cohort": subjects}))
        others = job_of(few, conditions, anatomies, unseen, law, seed + ANOTHER_SEED, cache, initial)
        held_out = kind.objective(others, architecture)
    training = recipe.training
    schedule = Schedule(
        steps=training.steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        ema=training.ema,
        dtype=dtype,
        workers=workers,
        batch=training.batch,
        checkpointing=training.checkpointing,
        preview_every=preview_every,
        validate_every=validate_every,
    )
    return Planned(kind.objective(job, architecture), schedule, architecture, initial, held_out)


def run(
    recipe: Recipe,
    conditions: Sequence[str],
    anatomies: list[Anatomy],
    real: Sequence[Any],
    law: AgeingLaw,
    seed: int,
    out: Path,
    command: str,
    source: str,
    licence: str,
    date: str,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    workers: int = 1,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    preview: Preview | None = None,
    preview_every: int = 0,
    cache: Path | None = None,
    validate_every: int = 0,
) -> Path:
    """Train a recipe and write `out/weights.safetensors`, or go on with a run that was stopped.

    Args:
        recipe: of a preset, with the flags in it.
        conditions: what the network learns to change or to read.
        anatomies: real brains to simulate subjects from.
        real: scans to learn from as they are, (1, X, Y, Z) each, normalised on the recipe's grid; or `Portrait`s; or
            heads, as `brainmask.real_head` keeps them.
        source: what they are, in words, with their licence; licence: of the weights, an SPDX name.
        command, date: for the record.
        workers, dtype, preview_every, validate_every: as in `Schedule`; preview: as for `train`. For validation every
            tenth of `real` is held out, and else other subjects are simulated.
        cache: folder in which simulated subjects and latents stay for other workers and trainings.
    Raises:
        PresetError: the recipe asks for something there is not. UsageError, Stopped: as `train`.
    """
    plan = planned(recipe, conditions, anatomies, real, law, seed, workers, dtype, preview_every, cache, validate_every)
    kind, initial = OBJECTIVES[recipe.objective], plan.initial
    tensors = initial.tensors if initial else None
    trained, seconds = train(plan.objective, plan.schedule, out, progress, device, tensors, preview, plan.held_out)
    path = out / "weights.safetensors"
    if not place_of().first:
        return path
    product = plan.objective.product(trained)
    facts = weights.Facts(
        architecture=recipe.network.architecture,
        architecture_arguments=asdict(plan.architecture),
        variables={k: v for k, v in variables_of(conditions).items() if k in (*kind.context, *conditions)},
        grid=grid_facts(grid_of(recipe)),
        contrasts=contrasts_of(recipe),
        intensity=kind.intensity,
        training=weights.TrainingFacts(command, source, seed, plan.schedule.steps, round(seconds, 1), date),
        licence=licence,
        skull_stripped=kind.real != "heads",
        space=product.space,
        diffusion=product.diffusion,
        tokens=product.tokens,
    )
    weights.save(path, product.network.state_dict(), facts, force=True)
    return path


def job_of(
    recipe: Recipe,
    conditions: Sequence[str],
    anatomies: list[Anatomy],
    real: Sequence[Any],
    law: AgeingLaw,
    seed: int,
    cache: Path | None = None,
    initial: weights.Checkpoint | None = None,
) -> Job:
    """What a recipe is trained on; arguments as for `run`, and the weights it starts from."""
    kind = OBJECTIVES[recipe.objective]
    record = {
        "initial": initial.sha256 if initial else "",
        "anatomies": [f"{anatomy.name} {_digest(anatomy.tissues)}" for anatomy in anatomies],
        "real": [_digest_of(one) for one in real],
        "law": _law_digest(law),
        "conditions": list(conditions),
        **recipe.data,
    }
    share = recipe.data.get("template") if anatomies[0].name == TEMPLATE else None
    registered = recipe.data.get("people") == "registered"
    family = Family(anatomies, law, varied=not registered, first=share, registered=registered)
    names = tuple(name for name in VARIABLES if name in conditions)
    losses, data = {**kind.losses, **recipe.losses}, {**kind.data, **recipe.data}
    return Job(recipe, names, family, seed, losses, data, real, record, cache)


def _known(given: Mapping[str, Any], known: Collection[str], table: str) -> None:
    for name in given:
        if name not in known:
            raise PresetError(f"{table}.{name}: this objective knows {', '.join(known) or 'nothing there'}")


def _law_digest(law: AgeingLaw) -> str:
    """Name and content: a file of the same name may have been edited."""
    return f"{law.name} {hashlib.sha256(repr(law).encode()).hexdigest()[:16]}"


def _digest_of(real: torch.Tensor | Portrait) -> str:
    if isinstance(real, Portrait):
        return f"{_digest(real.image)} {dict(real.condition)}"
    return _digest(real)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def grid_facts(grid: Grid) -> weights.GridFacts:
    """A grid as weights record it."""
    rows = tuple(tuple(float(value) for value in row) for row in np.asarray(grid.affine))
    return weights.GridFacts(grid.name, tuple(grid.shape), rows)  # type: ignore[arg-type]
