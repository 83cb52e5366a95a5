"""What can be trained: each objective with its network, its data and what its recipe may say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from cftools import weights
from cftools.condition import Variable
from cftools.errors import PresetError
from cftools.heads import HEAD_GRID
from cftools.heads import STRUCTURES as HEAD_STRUCTURES
from cftools.nets.regressor import RegressorArchitecture
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import STRUCTURES
from cftools.phantom.deform import TARGETS
from cftools.phantom.twins import HEALTH, Family
from cftools.prepare import GRID_2MM, Grid
from cftools.preset import Recipe
from cftools.train.loop import Objective
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
        real: scans as they are, (1, X, Y, Z) each, normalised on the grid; heads as from `brainmask.real_head`.
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
        real: whether it can also learn from scans as they are: from brains, brought to the models' grid, or from heads.
        architecture: of the recipe, for the conditions named.
        objective: of that architecture.
        context: variables its network is told whatever it learns.
        usual: the conditions that it learns unless it is told; None for all.
        grid, intensity: of its input.
    """

    conditions: tuple[str, ...]
    alone: bool
    losses: Mapping[str, float]
    data: Mapping[str, Any]
    real: Literal["", "brains", "heads"]
    architecture: Callable[[Recipe, Sequence[str]], Any]
    objective: Callable[[Job, Any], Objective]
    context: tuple[str, ...] = ()
    usual: tuple[str, ...] | None = None
    grid: Grid = GRID_2MM
    intensity: str = "brain-percentile"


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


def _segmenter_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.segmenter import SegmenterArchitecture  # MONAI takes seconds to import

    return _architecture(SegmenterArchitecture, recipe, structures=STRUCTURES)


def _segmenter_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.segmenter import Segmented, SegmenterObjective

    subjects = Segmented(job.family, job.seed, job.cohort)
    return SegmenterObjective(architecture, subjects, job.seed, job.record, job.losses["dice"], job.losses["volume"])


def _brainmask_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.segmenter import SegmenterArchitecture  # MONAI takes seconds to import

    return _architecture(SegmenterArchitecture, recipe, structures=HEAD_STRUCTURES)


def _brainmask_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.brainmask import Heads
    from cftools.train.segmenter import SegmenterObjective

    heads = Heads(job.family, job.real, job.seed, job.cohort, float(job.data["real"]))
    return SegmenterObjective(architecture, heads, job.seed, job.record)


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
    )


def _diffusion_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.unet import UNetArchitecture

    space = weights.facts_of(str(recipe.data.get("space", ""))).space
    if space is None:
        raise PresetError(f"data.space: {recipe.data.get('space')} are no weights of an autoencoder")
    if len(recipe.network.arguments.get("channels", ())) > 1 + math.log2(space.divisor):
        raise PresetError(f"network.channels: this space's latents can be halved {math.log2(space.divisor):.0f} times")
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
        partial(encoder.latents, scans, variables={name: VARIABLES[name] for name in job.conditions}),
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
        job.losses["twin"],
    )


#: Pairs or subjects before they repeat, 0 for never, and the share that grows from the MNI152 average.
_SUBJECTS = {"cohort": 0, "template": None}

OBJECTIVES = {
    "twin": Kind(
        CHANGEABLE,
        False,
        {"field": 0.0, "volume": 0.0, "smooth": 0.0},
        _SUBJECTS,
        "",
        _twin_architecture,
        _twin_objective,
        TOLD,
        ("age",),
    ),
    "reader": Kind(("age",), True, {}, _SUBJECTS, "", _reader_architecture, _reader_objective),
    "segmenter": Kind(
        (),
        False,
        {"dice": 1.0, "volume": 0.0},
        {**_SUBJECTS, "cohort": 200},
        "",
        _segmenter_architecture,
        _segmenter_objective,
    ),
    "brainmask": Kind(
        (),
        False,
        {},
        {**_SUBJECTS, "cohort": 80, "contrasts": ("T1w",), "real": 0.5},
        "heads",
        _brainmask_architecture,
        _brainmask_objective,
        grid=HEAD_GRID,
        intensity="head-percentile",
    ),
    "autoencoder": Kind(
        (),
        False,
        {"l1": 1.0, "kl": 1e-7, "adversarial": 0.0},
        {**_SUBJECTS, "cohort": 400, "contrasts": ("T1w",), "real": 0.25, "patch": 64, "patches": 2},
        "brains",
        _autoencoder_architecture,
        _autoencoder_objective,
    ),
    "diffusion": Kind(
        TOLD,
        False,
        {"twin": 0.0},
        {
            **_SUBJECTS,
            "cohort": 400,
            "space": "",
            "ages": 3,
            "latents": 8,
            "together": 1,
            "every": 1,
            "path": "scaled-linear",
            "prediction": "eps",
            "dropout": 0.1,
        },
        "",
        _diffusion_architecture,
        _diffusion_objective,
    ),
}


def _architecture(kind: type, recipe: Recipe, **given: Any) -> Any:
    arguments = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in recipe.network.arguments.items()}
    try:
        return kind(**arguments, **given)
    except (TypeError, ValueError) as error:
        reason = str(error).split("__init__() ")[-1]
        raise PresetError(f"network {recipe.network.architecture}: {reason}") from None
