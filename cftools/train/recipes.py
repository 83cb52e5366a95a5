"""From a preset's recipe to something to train, and from what was trained to weights with their facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cftools import weights
from cftools.condition import Variable
from cftools.errors import PresetError, UsageError
from cftools.nets.regressor import RegressorArchitecture
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import TEMPLATE, Anatomy
from cftools.phantom.deform import TARGETS
from cftools.phantom.law import AgeingLaw
from cftools.phantom.twins import Family
from cftools.prepare import GRID_2MM, Grid
from cftools.preset import Recipe
from cftools.train.loop import Objective, Progress, Schedule, train
from cftools.train.reader import AgedBrains, ReaderObjective
from cftools.train.twin import AGES, TwinObjective, Twins

#: Everything the simulator can tell of a subject, and which of it it can change.
VARIABLES = {
    "age": Variable("age", "number", *AGES, unit="years"),
    "sex": Variable("sex", "category", values=("F", "M")),
}
CHANGEABLE = ("age",)


@dataclass(frozen=True)
class Kind:
    """What can be trained.

    Attributes:
        conditions: names it may learn; alone: only one of them.
        losses: keys of the recipe's table that it knows.
        architecture: of the recipe, for the conditions named.
        objective: of that architecture, on a family's subjects.
        variables: what its network is told or tells.
    """

    conditions: tuple[str, ...]
    alone: bool
    losses: tuple[str, ...]
    architecture: Callable[[Recipe, Sequence[str]], Any]
    objective: Callable[[Recipe, Any, Family, int, dict[str, Any]], Objective]
    variables: Mapping[str, Variable]


def _twin_architecture(recipe: Recipe, conditions: Sequence[str]) -> TwinArchitecture:
    """What the simulator knows and cannot change is told to the network as context."""
    order = list(VARIABLES)
    changes = tuple(order.index(name) for name in conditions)
    return _architecture(TwinArchitecture, recipe, variables=len(order), changes=changes)


def _twin_objective(
    recipe: Recipe, architecture: TwinArchitecture, family: Family, seed: int, data: dict[str, Any]
) -> Objective:
    losses = {"field": 0.0, "volume": 0.0, "smooth": 0.0, **recipe.losses}
    twins = Twins(family, seed, int(recipe.data.get("cohort", 0)))
    spread = tuple(family.law.log_sd(name) for name in TARGETS)
    return TwinObjective(architecture, twins, seed, losses["field"], losses["volume"], losses["smooth"], spread, data)


def _reader_architecture(recipe: Recipe, conditions: Sequence[str]) -> RegressorArchitecture:
    return _architecture(RegressorArchitecture, recipe)


def _reader_objective(
    recipe: Recipe, architecture: RegressorArchitecture, family: Family, seed: int, data: dict[str, Any]
) -> Objective:
    return ReaderObjective(architecture, AgedBrains(family, seed, int(recipe.data.get("cohort", 0))), seed, data)


OBJECTIVES = {
    "twin": Kind(CHANGEABLE, False, ("field", "volume", "smooth"), _twin_architecture, _twin_objective, VARIABLES),
    "reader": Kind(("age",), True, (), _reader_architecture, _reader_objective, {"age": VARIABLES["age"]}),
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
            raise UsageError(f"--condition {name}: the simulator can change {', '.join(kind.conditions)}")
    if len(set(conditions)) != len(conditions) or (kind.alone and len(conditions) != 1):
        raise UsageError(f"--condition {','.join(conditions)}: each once, and for a {recipe.objective} of one")
    _known(recipe.losses, kind.losses, "losses")
    _known(recipe.data, ("cohort", "template"), "data")
    cohort, share = recipe.data.get("cohort", 0), recipe.data.get("template", 0.0)
    if isinstance(cohort, bool) or not isinstance(cohort, int) or cohort < 0:
        raise PresetError(f"data.cohort: {cohort!r} is no number of subjects")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise PresetError(f"data.template: {share!r} is no share between 0 and 1")
    return kind.architecture(recipe, conditions)


def run(
    recipe: Recipe,
    conditions: Sequence[str],
    anatomies: list[Anatomy],
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
) -> Path:
    """Train a recipe and write `out/weights.safetensors`, or go on with a run that was stopped.

    Args:
        recipe: of a preset, with the flags in it.
        conditions: what the network learns to change or to read.
        anatomies: real brains to simulate subjects from.
        source: what they are, in words, with their licence; licence: of the weights, an SPDX name.
        command, date: for the record.
    Raises:
        PresetError: the recipe asks for something there is not. UsageError: as `train`.
    """
    architecture, kind = check(recipe, conditions), OBJECTIVES[recipe.objective]
    names = [f"{anatomy.name} {_digest(anatomy.tissues)}" for anatomy in anatomies]
    initial = weights.load(recipe.initial, expect=recipe.network.architecture) if recipe.initial else None
    data = {
        "initial": initial.sha256 if initial else "",
        "anatomies": names,
        "law": _law_digest(law),
        "conditions": list(conditions),
        **recipe.data,
    }
    share = recipe.data.get("template") if anatomies[0].name == TEMPLATE else None
    family = Family(anatomies, law, varied=True, first=share)
    objective = kind.objective(recipe, architecture, family, seed, data)
    training = recipe.training
    schedule = Schedule(
        steps=training.steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        ema=training.ema,
        workers=workers,
    )
    network, seconds = train(objective, schedule, out, progress, device, initial.tensors if initial else None)
    facts = weights.Facts(
        architecture=recipe.network.architecture,
        architecture_arguments=asdict(architecture),
        variables=kind.variables,
        grid=grid_facts(GRID_2MM),
        contrasts=("T1w",),
        intensity="brain-percentile",
        training=weights.TrainingFacts(command, source, seed, schedule.steps, round(seconds, 1), date),
        licence=licence,
    )
    path = out / "weights.safetensors"
    weights.save(path, network.state_dict(), facts, force=True)
    return path


def _known(given: Mapping[str, Any], known: tuple[str, ...], table: str) -> None:
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
