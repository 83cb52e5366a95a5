"""What a kind of training says of itself, and what its recipes' tables may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cftools.prepare import GRID_2MM, Grid
from cftools.recipe import Recipe
from cftools.train.loop import Objective

if TYPE_CHECKING:
    from cftools.train.kinds import Job


@dataclass(frozen=True)
class Kind:
    """What can be trained.

    Attributes:
        conditions: names it may learn; alone: only one of them.
        losses, data: keys of the recipe's tables that it knows, and what holds without them.
        real: whether it can also learn from scans as they are: from brains, brought to the models' grid; from people,
            whose age and sex are known, and then from nobody else; or from heads.
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
    real: Literal["", "brains", "people", "heads"]
    architecture: Callable[[Recipe, Sequence[str]], Any]
    objective: Callable[[Job, Any], Objective]
    context: tuple[str, ...] = ()
    usual: tuple[str, ...] | None = None
    grid: Grid = GRID_2MM
    intensity: str = "brain-percentile"


#: Pairs or subjects before they repeat, 0 for never, and the share that grows from the MNI152 average.
SUBJECTS = {"cohort": 0, "template": None}
#: The same of images, the grid that they are on, and whether simulated people are `varied`, as no registration and no
#: scanner leaves them, so that a network takes any scan, or `registered`, as scans are, which a generator is to make.
IMAGES = {**SUBJECTS, "cohort": 400, "grid": GRID_2MM.name, "people": "varied"}
#: The same of latents, and how they are noised and denoised.
LATENTS = {
    **IMAGES,
    "space": "",
    "ages": 3,
    "latents": 8,
    "together": 1,
    "every": 1,
    "path": "scaled-linear",
    "prediction": "eps",
    "dropout": 0.1,
}
#: How a latent goes to another condition and back, as `cycle.Cycle` has it.
CYCLE = {"start": "noised", "noise": "same", "steps": 1, "gradient": "through", "terms": "own"}
#: The same of images by subjects: ages made of each, subjects and ages of each in a step, steps until another joins.
BATCHES = {**IMAGES, "contrasts": ("T1w",), "ages": 4, "subjects": 8, "together": 2, "every": 4}
#: The same of what is trained against a critic: its widths, and the share of items whose condition is withheld.
RIVALS = {**BATCHES, "every": 2, "critic": (32, 64, 96, 128), "dropout": 0.1}
