"""From a preset's recipe to something to train, and from what was trained to weights with their facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cftools import weights
from cftools.condition import Variable
from cftools.errors import PresetError, UsageError
from cftools.nets.regressor import RegressorArchitecture
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import TEMPLATE, Anatomy
from cftools.phantom.contrast import CONTRASTS
from cftools.phantom.deform import TARGETS
from cftools.phantom.law import AgeingLaw
from cftools.phantom.twins import HEALTH, Family
from cftools.prepare import GRID_2MM, Grid
from cftools.preset import Recipe
from cftools.train.loop import Objective, Progress, Schedule, train
from cftools.train.reader import AgedBrains, ReaderObjective
from cftools.train.twin import AGED, AGES, TwinObjective, Twins

#: Everything the simulator can tell of a subject, and which of it a flow can change.
VARIABLES = {
    **AGED,
    "diagnosis": Variable("diagnosis", "category", values=HEALTH["diagnosis"]),
}
CHANGEABLE = ("age", "diagnosis")
#: Told to every network that is told anything.
TOLD = tuple(AGED)
#: The ages at which a diagnosis is learned: below, there is none to learn.
DIAGNOSED = Variable("age", "number", 40.0, AGES[1], unit="years")


def variables_of(conditions: Sequence[str]) -> dict[str, Variable]:
    """What a network that changes or is told these is told, in order."""
    known = {name: one for name, one in VARIABLES.items() if name in (*TOLD, *conditions)}
    return known | {"age": DIAGNOSED} if "diagnosis" in conditions else known


@dataclass(frozen=True)
class Job:
    """One training: a recipe, for conditions, on a family's subjects.

    Attributes:
        losses, data: the recipe's tables with what holds unless they say otherwise.
        real: scans as they are, (1, X, Y, Z) each, normalised on the grid.
        record: what decides the data, for the run's settings.
    """

    recipe: Recipe
    conditions: tuple[str, ...]
    family: Family
    seed: int
    losses: Mapping[str, float]
    data: Mapping[str, Any]
    real: Sequence[torch.Tensor]
    record: dict[str, Any]

    @property
    def cohort(self) -> int:
        """Number of different subjects before they repeat."""
        return int(self.data["cohort"])


@dataclass(frozen=True)
class Kind:
    """What can be trained.

    Attributes:
        conditions: names it may learn; alone: only one of them.
        losses, data: keys of the recipe's tables that it knows, and what holds without them.
        real: whether it can also learn from scans as they are.
        architecture: of the recipe, for the conditions named.
        objective: of that architecture.
        context: variables its network is told whatever it learns.
    """

    conditions: tuple[str, ...]
    alone: bool
    losses: Mapping[str, float]
    data: Mapping[str, Any]
    real: bool
    architecture: Callable[[Recipe, Sequence[str]], Any]
    objective: Callable[[Job, Any], Objective]
    context: tuple[str, ...] = ()


def _twin_architecture(recipe: Recipe, conditions: Sequence[str]) -> TwinArchitecture:
    """Age and sex are told to the network also where they do not change."""
    order = list(variables_of(conditions))
    changes = tuple(order.index(name) for name in conditions)
    return _architecture(TwinArchitecture, recipe, variables=len(order), changes=changes)


def _twin_objective(job: Job, architecture: TwinArchitecture) -> Objective:
    return TwinObjective(
        architecture,
        Twins(job.family, job.seed, job.cohort, variables_of(job.conditions), job.conditions),
        job.seed,
        field_weight=job.losses["field"],
        volume_weight=job.losses["volume"],
        smooth_weight=job.losses["smooth"],
        spread=tuple(job.family.law.log_sd(name) for name in TARGETS),
        data=job.record,
    )


def _reader_architecture(recipe: Recipe, conditions: Sequence[str]) -> RegressorArchitecture:
    return _architecture(RegressorArchitecture, recipe)


def _reader_objective(job: Job, architecture: RegressorArchitecture) -> Objective:
    return ReaderObjective(architecture, AgedBrains(job.family, job.seed, job.cohort), job.seed, job.record)


def _autoencoder_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.autoencoder import AutoencoderArchitecture  # MONAI takes seconds to import

    return _architecture(AutoencoderArchitecture, recipe)


def _autoencoder_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.autoencoder import AutoencoderObjective, Patches
    from cftools.train.images import Mixed, Scans

    scans = Scans(job.family, job.seed, contrasts=tuple(job.data["contrasts"]))
    images = Mixed(scans, job.real, float(job.data["real"]))
    patches = Patches(images.image, job.seed, job.cohort, int(job.data["patch"]), int(job.data["patches"]))
    return AutoencoderObjective(
        architecture,
        patches,
        images.image,
        GRID_2MM.shape,
        job.seed,
        dict(job.losses),
        job.record,
        margin=int(job.data["margin"]),
    )


def _diffusion_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.unet import UNetArchitecture

    space = weights.facts_of(str(recipe.data.get("space", ""))).space
    if space is None:
        raise PresetError(f"data.space: {recipe.data.get('space')} are no weights of an autoencoder")
    table = {**OBJECTIVES["diffusion"].data, **recipe.data}
    if table["latents"] % table["together"] or table["together"] > table["ages"]:
        raise PresetError("data.latents must be a multiple of data.together, which is at most data.ages")
    return _architecture(
        UNetArchitecture,
        recipe,
        inputs=space.channels,
        outputs=space.channels,
        variables=len(conditions),
        sides=space.latent_shape[1:] if recipe.network.arguments.get("atlas") else (),
    )


def _diffusion_objective(job: Job, architecture: Any) -> Objective:
    from cftools.diffusion.path import make_path
    from cftools.train.diffusion import DiffusionObjective, Latents
    from cftools.train.images import Encoder, Scans

    encoder = Encoder.of(str(job.data["space"]))
    scans = Scans(job.family, job.seed, ages=int(job.data["ages"]))
    latents = Latents(
        lambda number: encoder.latents(scans, number, {name: VARIABLES[name] for name in job.conditions}),
        job.seed,
        job.cohort,
        int(job.data["latents"]),
        int(job.data["together"]),
        int(job.data["every"]),
    )
    return DiffusionObjective(
        architecture,
        latents,
        make_path(str(job.data["path"])),
        job.data["prediction"],
        float(job.data["dropout"]),
        job.seed,
        job.record,
        encoder.facts,
        encoder.sha256,
    )


#: Pairs or subjects before they repeat, 0 for never, and the share that grows from the MNI152 average.
_SUBJECTS = {"cohort": 0, "template": None}

OBJECTIVES = {
    "twin": Kind(
        CHANGEABLE,
        False,
        {"field": 0.0, "volume": 0.0, "smooth": 0.0},
        _SUBJECTS,
        False,
        _twin_architecture,
        _twin_objective,
        TOLD,
    ),
    "reader": Kind(("age",), True, {}, _SUBJECTS, False, _reader_architecture, _reader_objective),
    "autoencoder": Kind(
        (),
        False,
        {"l1": 1.0, "kl": 1e-7, "adversarial": 0.0},
        {**_SUBJECTS, "contrasts": ("T1w",), "real": 0.25, "patch": 64, "margin": 0, "patches": 2},
        True,
        _autoencoder_architecture,
        _autoencoder_objective,
    ),
    "diffusion": Kind(
        TOLD,
        False,
        {},
        {
            **_SUBJECTS,
            "space": "",
            "ages": 3,
            "latents": 8,
            "together": 1,
            "every": 1,
            "path": "scaled-linear",
            "prediction": "eps",
            "dropout": 0.1,
        },
        False,
        _diffusion_architecture,
        _diffusion_objective,
    ),
}


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
    if recipe.training.epochs or recipe.training.batch != 1:
        raise PresetError("training: the objective fixes what a step holds; give steps, and neither epochs nor batch")
    for name in conditions:
        if name not in kind.conditions:
            able = ", ".join(kind.conditions) or "none"
            raise UsageError(f"--condition {name}: a {recipe.objective} can learn {able}")
    if len(set(conditions)) != len(conditions) or (kind.alone and len(conditions) != 1):
        raise UsageError(f"--condition {','.join(conditions)}: each once, and for a {recipe.objective} of one")
    _known(recipe.losses, kind.losses, "losses")
    _known(recipe.data, kind.data, "data")
    for name, usual in kind.data.items():
        if isinstance(usual, int):
            value = recipe.data.get(name, usual)
            if isinstance(value, bool) or not isinstance(value, int) or value < min(usual, 1):
                raise PresetError(f"data.{name}: {value!r} is no number")
    for name in ("template", "real", "dropout"):
        share = recipe.data.get(name, 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise PresetError(f"data.{name}: {share!r} is no share between 0 and 1")
    for name in contrasts_of(recipe):
        if name not in CONTRASTS:
            raise PresetError(f"data.contrasts: {name!r}: the simulator has {', '.join(CONTRASTS)}")
    return kind.architecture(recipe, conditions)


def usual(recipe: Recipe) -> tuple[str, ...]:
    """The conditions that a recipe's objective learns unless it is told."""
    kind = OBJECTIVES.get(recipe.objective)
    return kind.conditions if kind else ()


def takes_real(recipe: Recipe) -> bool:
    """Whether it can also learn from scans as they are."""
    kind = OBJECTIVES.get(recipe.objective)
    return kind is not None and kind.real


def contrasts_of(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe trains for."""
    return tuple(recipe.data.get("contrasts", ("T1w",)))


def run(
    recipe: Recipe,
    conditions: Sequence[str],
    anatomies: list[Anatomy],
    real: Sequence[torch.Tensor],
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
) -> Path:
    """Train a recipe and write `out/weights.safetensors`, or go on with a run that was stopped.

    Args:
        recipe: of a preset, with the flags in it.
        conditions: what the network learns to change or to read.
        anatomies: real brains to simulate subjects from.
        real: scans to learn from as they are, (1, X, Y, Z) each, normalised on the 2 mm grid.
        source: what they are, in words, with their licence; licence: of the weights, an SPDX name.
        command, date: for the record.
        workers, dtype: as in `Schedule`.
    Raises:
        PresetError: the recipe asks for something there is not. UsageError: as `train`.
    """
    architecture, kind = check(recipe, conditions), OBJECTIVES[recipe.objective]
    names = [f"{anatomy.name} {_digest(anatomy.tissues)}" for anatomy in anatomies]
    initial = weights.load(recipe.initial, expect=recipe.network.architecture) if recipe.initial else None
    record = {
        "initial": initial.sha256 if initial else "",
        "anatomies": names,
        "real": [_digest(image) for image in real],
        "law": _law_digest(law),
        "conditions": list(conditions),
        **recipe.data,
    }
    share = recipe.data.get("template") if anatomies[0].name == TEMPLATE else None
    family = Family(anatomies, law, varied=True, first=share)
    losses, data = {**kind.losses, **recipe.losses}, {**kind.data, **recipe.data}
    job = Job(recipe, tuple(name for name in VARIABLES if name in conditions), family, seed, losses, data, real, record)
    objective = kind.objective(job, architecture)
    training = recipe.training
    schedule = Schedule(
        steps=training.steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        ema=training.ema,
        dtype=dtype,
        workers=workers,
    )
    trained, seconds = train(objective, schedule, out, progress, device, initial.tensors if initial else None)
    product = objective.product(trained)
    facts = weights.Facts(
        architecture=recipe.network.architecture,
        architecture_arguments=asdict(architecture),
        variables={k: v for k, v in variables_of(conditions).items() if k in (*kind.context, *conditions)},
        grid=grid_facts(GRID_2MM),
        contrasts=contrasts_of(recipe),
        intensity="brain-percentile",
        training=weights.TrainingFacts(command, source, seed, schedule.steps, round(seconds, 1), date),
        licence=licence,
        space=product.space,
        diffusion=product.diffusion,
    )
    path = out / "weights.safetensors"
    weights.save(path, product.network.state_dict(), facts, force=True)
    return path


def _known(given: Mapping[str, Any], known: Collection[str], table: str) -> None:
    for name in given:
        if name not in known:
            raise PresetError(f"{table}.{name}: this objective knows {', '.join(known) or 'nothing there'}")


def _law_digest(law: AgeingLaw) -> str:
    """Name and content: a file of the same name may have been edited."""
    return f"{law.name} {hashlib.sha256(repr(law).encode()).hexdigest()[:16]}"


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def grid_facts(grid: Grid) -> weights.GridFacts:
    """A grid as weights record it."""
    rows = tuple(tuple(float(value) for value in row) for row in np.asarray(grid.affine))
    return weights.GridFacts(grid.name, tuple(grid.shape), rows)  # type: ignore[arg-type]


def _architecture(kind: type, recipe: Recipe, **given: Any) -> Any:
    arguments = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in recipe.network.arguments.items()}
    try:
        return kind(**arguments, **given)
    except (TypeError, ValueError) as error:
        reason = str(error).split("__init__() ")[-1]
        raise PresetError(f"network {recipe.network.architecture}: {reason}") from None
