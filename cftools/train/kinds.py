"""What can be trained: each objective with its network, its data and what its recipe may say."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from cftools import weights
from cftools.condition import Variable
from cftools.diffusion.denoiser import Prediction
from cftools.errors import PresetError
from cftools.heads import HEAD_GRID
from cftools.heads import STRUCTURES as HEAD_STRUCTURES
from cftools.nets.regressor import RegressorArchitecture
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import STRUCTURES
from cftools.phantom.deform import TARGETS
from cftools.phantom.twins import HEALTH, Family
from cftools.prepare import Grid
from cftools.recipe import Recipe
from cftools.train.building import GRIDS, architecture_of, simulated_on
from cftools.train.kind import BATCHES, CYCLE, IMAGES, LATENTS, RIVALS, SUBJECTS, Kind
from cftools.train.loop import Objective
from cftools.train.people import Cohort, Simulated
from cftools.train.reader import AgedBrains, ReaderObjective
from cftools.train.regressor import (
    CategoryObjective,
    FeaturesObjective,
    NumberObjective,
    features_architecture,
    reader_architecture,
)
from cftools.train.store import Store
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
        real: scans as they are, (1, X, Y, Z) each, normalised on the grid; people's, with what is known of them; heads
            as from `brainmask.real_head`.
        record: what decides the data, for the run's settings.
        cache: folder in which what is made stays for other workers and trainings; None for memory.
    """

    recipe: Recipe
    conditions: tuple[str, ...]
    family: Family
    seed: int
    losses: Mapping[str, float]
    data: Mapping[str, Any]
    real: Sequence[Any]
    record: dict[str, Any]
    cache: Path | None = None

    @property
    def cohort(self) -> int:
        """Number of different subjects before they repeat."""
        return int(self.data["cohort"])

    def store(self, name: str, **decisive: Any) -> Store:
        """Where something is kept that depends on the family, the seed and what else is named."""
        if self.cache is None:
            return Store()
        family = [self.record["anatomies"], self.record["law"], self.family.shares, self.seed]
        decisive |= {"people": "registered"} if self.family.registered and not self.real else {}
        text = json.dumps([name, family, decisive], sort_keys=True, default=str)
        return Store(self.cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")

    def people(self, ages: int = 1, contrasts: Sequence[str] = ("T1w",)) -> Simulated | Cohort:
        """Whom to train on: those of the cohort that was given as it is, else simulated subjects.

        Args:
            ages: of each simulated subject; contrasts: each is scanned in one of these.
        """
        variables = {name: VARIABLES[name] for name in self.conditions}
        if self.real:
            return Cohort(self.real, variables)
        pooled = round(float(self.grid.affine[0, 0] / simulated_on(self.grid).affine[0, 0]))
        contrasts = tuple(contrasts)
        paired = {"paired": True} if self.paired else {}  # else the folder has the name that it had before
        store = self.store("people", grid=self.grid.name, ages=ages, contrasts=contrasts, **paired)
        return Simulated(self.family, self.seed, ages, self.cohort, contrasts, variables, pooled, self.paired, store)

    @property
    def paired(self) -> bool:
        """Whether subjects are made in both sexes; those of a cohort are as they are."""
        return bool(self.data.get("paired", False)) and not self.real

    @property
    def grid(self) -> Grid:
        """Of the images."""
        return grid_of(self.recipe)


def _twin_architecture(recipe: Recipe, conditions: Sequence[str]) -> TwinArchitecture:
    """Age and sex are told to the network also where they do not change."""
    order = list(variables_of(conditions))
    changes = tuple(order.index(name) for name in conditions)
    return architecture_of(TwinArchitecture, recipe, variables=len(order), changes=changes)


def _twin_objective(job: Job, architecture: TwinArchitecture) -> Objective:
    return TwinObjective(
        architecture,
        Twins(
            job.family,
            job.seed,
            job.cohort,
            variables_of(job.conditions),
            job.conditions,
            job.store("twins", conditions=job.conditions),
        ),
        job.seed,
        field_weight=job.losses["field"],
        volume_weight=job.losses["volume"],
        smooth_weight=job.losses["smooth"],
        spread=tuple(job.family.law.log_sd(name) for name in TARGETS),
        data=job.record,
    )


def _reader_architecture(recipe: Recipe, conditions: Sequence[str]) -> RegressorArchitecture:
    return architecture_of(RegressorArchitecture, recipe)


def _reader_objective(job: Job, architecture: RegressorArchitecture) -> Objective:
    brains = AgedBrains(job.family, job.seed, job.cohort, job.store("aged"))
    return ReaderObjective(architecture, brains, job.seed, job.record)


def _segmenter_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.segmenter import SegmenterArchitecture  # MONAI takes seconds to import

    return architecture_of(SegmenterArchitecture, recipe, structures=STRUCTURES)


def _segmenter_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.segmenter import Segmented, SegmenterObjective

    subjects = Segmented(job.family, job.seed, job.cohort, job.store("segmented"))
    return SegmenterObjective(architecture, subjects, job.seed, job.record, job.losses["dice"], job.losses["volume"])


def _brainmask_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.segmenter import SegmenterArchitecture  # MONAI takes seconds to import

    return architecture_of(SegmenterArchitecture, recipe, structures=HEAD_STRUCTURES)


def _brainmask_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.brainmask import Heads
    from cftools.train.segmenter import SegmenterObjective

    heads = Heads(job.family, job.real, job.seed, job.cohort, float(job.data["real"]), job.store("heads"))
    return SegmenterObjective(architecture, heads, job.seed, job.record)


def _autoencoder_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.autoencoder import AutoencoderArchitecture  # MONAI takes seconds to import

    return architecture_of(AutoencoderArchitecture, recipe)


def _autoencoder_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.autoencoder import AutoencoderObjective, Patches
    from cftools.train.images import Mixed

    simulated = replace(job, real=()).people(contrasts=job.data["contrasts"])
    assert isinstance(simulated, Simulated)
    images = Mixed(simulated, job.real, float(job.data["real"]))
    store = job.store("images", contrasts=job.data["contrasts"], real=job.record["real"], share=job.data["real"])
    patches = Patches(images.image, job.seed, job.cohort, int(job.data["patch"]), int(job.data["patches"]), store)
    return AutoencoderObjective(
        architecture,
        patches,
        images.image,
        job.grid.shape,
        job.seed,
        dict(job.losses),
        job.record,
    )


def _diffusion_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.nets.unet import UNetArchitecture

    known = weights.facts_of(str(recipe.data.get("space", "")))
    if (space := known.space) is None:
        raise PresetError(f"data.space: {recipe.data.get('space')} are no weights of an autoencoder")
    if known.grid.name != (grid := grid_of(recipe).name):
        raise PresetError(f"data.space: {recipe.data.get('space')} encode images on {known.grid.name}, not on {grid}")
    templates = recipe.network.arguments.get("templates", 0)
    if templates and not known.architecture_arguments.get("shortcut"):
        raise PresetError("network.templates: only in a space with a shortcut, where a latent is blocks of an image")
    table = {**OBJECTIVES[recipe.objective].data, **recipe.data}
    if table["latents"] % table["together"] or table["together"] > table["ages"]:
        raise PresetError("data.latents must be a multiple of data.together, which is at most data.ages")
    if table["prediction"] not in get_args(Prediction):
        raise PresetError(f"data.prediction: {table['prediction']}: one of {', '.join(get_args(Prediction))}")
    made = architecture_of(
        UNetArchitecture,
        recipe,
        inputs=space.channels,
        outputs=space.channels,
        variables=len(conditions),
        sides=space.latent_shape[1:] if any(map(recipe.network.arguments.get, ("atlas", "centred"))) else (),
        **({"path": table["path"], "prediction": table["prediction"]} if templates else {}),
    )
    for name in ("channels", "looks"):
        if len(getattr(made, name)) > 1 + (times := round(math.log2(space.divisor))):
            raise PresetError(f"network.{name}: this space's latents can be halved {times} times")
    return made


def _diffusion_objective(job: Job, architecture: Any) -> Any:
    from cftools.diffusion.path import make_path
    from cftools.train.diffusion import DiffusionObjective, Latents
    from cftools.train.images import Encoder

    encoder = Encoder.of(str(job.data["space"]))
    people = job.people(ages=int(job.data["ages"]))
    decisive = {"ages": job.data["ages"], "conditions": job.conditions, "real": job.record["real"]}
    store = job.store("latents", space=encoder.sha256, **decisive)
    batch, together, every = (int(job.data[name]) for name in ("latents", "together", "every"))
    latents = Latents(partial(encoder.latents, people), people, job.seed, batch, together, every, store)
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
        encoder.decode,
        latents.typical,
        lambda count: encoder.encoded(people.unlike(count))[0],
        (lambda device: latents.fill(partial(encoder.on(device).latents, people))) if job.real else None,
    )


def _cycle_architecture(recipe: Recipe, conditions: Sequence[str]) -> Any:
    from cftools.train.cycle import Cycle

    Cycle.of(recipe.data)
    return _diffusion_architecture(recipe, conditions)


def _cycle_objective(job: Job, architecture: Any) -> Objective:
    from cftools.train.cycle import CycleObjective

    denoising, told = _diffusion_objective(job, architecture), [VARIABLES[name] for name in job.conditions]
    return CycleObjective.of(denoising, job.losses, job.data, told, denoising.latents.people.spans)


def _apart(module: str, name: str) -> tuple[Callable[[Recipe, Sequence[str]], Any], Callable[[Job, Any], Objective]]:
    """How an objective makes its network and itself; its module is imported when asked: MONAI takes seconds."""

    def objective() -> Any:
        return getattr(importlib.import_module(f"cftools.train.{module}"), name)

    return (
        lambda recipe, conditions: objective().architecture_for(recipe, conditions, grid_of(recipe)),
        lambda job, architecture: objective().of(job, architecture),
    )


OBJECTIVES = {
    "twin": Kind(
        CHANGEABLE,
        False,
        {"field": 0.0, "volume": 0.0, "smooth": 0.0},
        SUBJECTS,
        "",
        _twin_architecture,
        _twin_objective,
        TOLD,
        ("age",),
    ),
    "reader": Kind(("age",), True, {}, SUBJECTS, "", _reader_architecture, _reader_objective),
    "age-regressor": Kind(("age",), True, {}, BATCHES, "people", reader_architecture, NumberObjective.of),
    "sex-classifier": Kind(
        ("sex",), True, {}, {**BATCHES, "paired": False}, "people", reader_architecture, CategoryObjective.of
    ),
    "features": Kind(TOLD, False, {}, BATCHES, "people", features_architecture, FeaturesObjective.of),
    "segmenter": Kind(
        (),
        False,
        {"dice": 1.0, "volume": 0.0},
        {**SUBJECTS, "cohort": 200},
        "",
        _segmenter_architecture,
        _segmenter_objective,
    ),
    "brainmask": Kind(
        (),
        False,
        {},
        {**SUBJECTS, "cohort": 80, "contrasts": ("T1w",), "real": 0.5},
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
        {**IMAGES, "contrasts": ("T1w",), "real": 0.25, "patch": 64, "patches": 2},
        "brains",
        _autoencoder_architecture,
        _autoencoder_objective,
    ),
    "diffusion": Kind(TOLD, False, {"twin": 0.0}, LATENTS, "people", _diffusion_architecture, _diffusion_objective),
    "cycle": Kind(
        TOLD,
        False,
        {"twin": 0.0, "cycle": 1.0, "counterfactual": 0.0},
        {**LATENTS, **{f"cycle_{name}": value for name, value in CYCLE.items()}},
        "people",
        _cycle_architecture,
        _cycle_objective,
    ),
    "vae-gan": Kind(
        TOLD,
        False,
        {"l1": 1.0, "features": 0.02, "kl": 5e-5, "adversarial": 0.5},
        RIVALS,
        "people",
        *_apart("adversarial", "VaeGanObjective"),
    ),
    "alpha-gan": Kind(
        TOLD,
        False,
        {"l1": 1.0, "adversarial": 0.5, "code": 1.0, "gradient_penalty": 10.0},
        RIVALS,
        "people",
        *_apart("adversarial", "AlphaGanObjective"),
    ),
    "vqvae": Kind(
        (),
        False,
        {"l1": 1.0, "spectral": 1.0, "adversarial": 0.2},
        BATCHES,
        "people",
        *_apart("tokens", "VqObjective"),
    ),
    "tokens": Kind(
        TOLD,
        False,
        {},
        {**IMAGES, "space": "", "ages": 4, "sequences": 8, "every": 4, "dropout": 0.1},
        "people",
        *_apart("tokens", "TransformerObjective"),
    ),
}


def grid_of(recipe: Recipe) -> Grid:
    """Of a recipe's images.

    Raises:
        PresetError: there is no such grid.
    """
    kind = OBJECTIVES[recipe.objective]
    name = recipe.data.get("grid", kind.grid.name)
    if name != kind.grid.name and name not in GRIDS:
        raise PresetError(f"data.grid: {name!r}: there are {', '.join(GRIDS)}")
    return GRIDS.get(str(name), kind.grid)
