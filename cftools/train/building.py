"""From a recipe to the network that it describes, and the grids that it may name."""

from __future__ import annotations

from typing import Any

from cftools.errors import PresetError
from cftools.prepare import GRID_1MM, GRID_2MM, GRID_4MM, Grid
from cftools.recipe import Recipe
from cftools.schema import read

#: What a recipe may name as its grid.
GRIDS = {grid.name: grid for grid in (GRID_1MM, GRID_2MM, GRID_4MM)}


def architecture_of(kind: type, recipe: Recipe, **given: Any) -> Any:
    """The architecture that a recipe describes, with what is not its to say.

    Args:
        kind: the dataclass; given: the other arguments.
    Raises:
        PresetError: the recipe's arguments are not of that network.
    """
    for name in recipe.network.arguments.keys() & given.keys():
        raise PresetError(f"network.{name}: follows from the preset and its data, and is not to be set")
    return read(kind, {**recipe.network.arguments, **given}, f"network {recipe.network.architecture}", PresetError)


def simulated_on(grid: Grid) -> Grid:
    """The grid of the anatomies behind images on a grid: never coarser than 2 mm, where structures keep their shape."""
    return GRID_1MM if grid == GRID_1MM else GRID_2MM
