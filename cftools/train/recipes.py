"""From a preset's recipe to something to train, and from what was trained to weights with their facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cftools import weights
from cftools.condition import Variable
from cftools.errors import PresetError, UsageError
from cftools.nets.regressor import RegressorArchitecture
from cftools.nets.twin import TwinArchitecture
from cftools.phantom.anatomy import Anatomy
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


def twin_objective(
    recipe: Recipe, family: Family, conditions: Sequence[str], seed: int, data: Mapping[str, Any]
) -> tuple[Objective, dict[str, Variable]]:
    """The twin flow for the conditions named; what else the simulator knows is told to the network as context."""
    for name in conditions:
        if name not in CHANGEABLE:
            raise UsageError(f"--condition {name}: the simulator can change {', '.join(CHANGEABLE)}")
    order = list(VARIABLES)
    architecture = _architecture(
        TwinArchitecture,
        recipe,
        variables=len(order),
        changes=tuple(order.index(name) for name in conditions),
    )
    losses = {"field": 0.0, "smooth": 0.0, **recipe.losses}
    _known(recipe.losses, ("field", "smooth"), "losses")
    _known(recipe.data, ("cohort",), "data")
    cohort = int(recipe.data.get("cohort", 0))
    objective = TwinObjective(
        architecture, Twins(family, seed, cohort), seed, losses["field"], losses["smooth"], dict(data)
    )
    return objective, VARIABLES


def reader_objective(
    recipe: Recipe, family: Family, conditions: Sequence[str], seed: int, data: Mapping[str, Any]
) -> tuple[Objective, dict[str, Variable]]:
    """A network that reads one variable."""
    if list(conditions) != ["age"]:
        raise UsageError("--condition: a reader reads one variable, and the simulator has one to read, age")
    _known(recipe.losses, (), "losses")
    _known(recipe.data, (), "data")
    architecture = _architecture(RegressorArchitecture, recipe)
    return ReaderObjective(architecture, AgedBrains(family, seed), seed, dict(data)), {"age": VARIABLES["age"]}


Builder = Callable[[Recipe, Family, Sequence[str], int, Mapping[str, Any]], tuple[Objective, dict[str, Variable]]]
OBJECTIVES: dict[str, Builder] = {"twin": twin_objective, "reader": reader_objective}


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
    if recipe.objective not in OBJECTIVES:
        raise PresetError(f"objective {recipe.objective}: there are {', '.join(OBJECTIVES)}")
    if recipe.training.epochs or recipe.training.batch != 1:
        raise PresetError("training: a step is one simulated pair; give steps, and neither epochs nor batch")
    names = [f"{anatomy.name} {_digest(anatomy.tissues)}" for anatomy in anatomies]
    initial = weights.load(recipe.initial, expect=recipe.network.architecture) if recipe.initial else None
    data = {
        "initial": initial.sha256 if initial else "",
        "anatomies": names,
        "law": law.name,
        "conditions": list(conditions),
        **recipe.data,
    }
    family = Family(anatomies, law, varied=True)
    objective, variables = OBJECTIVES[recipe.objective](recipe, family, conditions, seed, data)
    training = recipe.training
    schedule = Schedule(
        steps=training.steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        ema=training.ema,
        workers=workers,
    )
    network, seconds = train(objective, schedule, out, progress, device, initial.tensors if initial else None)
    architecture: Any = network.architecture
    facts = weights.Facts(
        architecture=recipe.network.architecture,
        architecture_arguments=asdict(architecture),
        variables=variables,
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
    except TypeError as error:
        reason = str(error).split("__init__() ")[-1]
        raise PresetError(f"network {recipe.network.architecture}: {reason}") from None
