"""Losses on data that a training does not see: whether it learns, or learns its subjects by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cftools.train.meter import Meter

if TYPE_CHECKING:
    from cftools.train.loop import Objective

#: Of scans as they are, each so-manieth is held out.
ONE_IN = 10
#: Added to the seed of a training for the simulated subjects that it is validated on.
ANOTHER_SEED = 1_000_003
#: How many of those there are at most: to be simulated before the first validation.
SUBJECTS = 16
#: Items that a validation is the mean over, always the same; late ones, when everybody has joined.
ITEMS = range(1_000_000, 1_000_008)


def split(real: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Those to learn from, and those held out: every tenth person; of less than ten one, of one alone none."""
    who = [getattr(one, "subject", "") or number for number, one in enumerate(real)]
    people = list(dict.fromkeys(who))
    unseen = set(people[::ONE_IN]) if len(people) > 1 else set()
    pairs = list(zip(who, real, strict=True))
    return [one for person, one in pairs if person not in unseen], [one for person, one in pairs if person in unseen]


@dataclass
class Validation:
    """Mean losses of a network over items that no step is taken on.

    Attributes:
        objective: of the same losses, on other data.
        drawing: (item's number) -> where dropout and noise are that item's own.
        items: kept from the first time on.
    """

    objective: Objective
    drawing: Callable[[int], AbstractContextManager[None]]
    items: list[dict[str, Tensor]] = field(default_factory=list)

    def item(self, device: torch.device, place: int = 0) -> dict[str, Tensor]:
        """One of them."""
        if not self.items:
            data = self.objective.dataset()
            self.items = [data[number] for number in ITEMS]
        return {name: value.to(device) for name, value in self.items[place].items()}

    def losses(self, network: nn.Module) -> dict[str, float]:
        """Of the averaged network, as it would be used: without dropout."""
        device = next(network.parameters()).device
        meter = Meter()
        network.eval().requires_grad_(True)  # some losses are of gradients
        for place, number in enumerate(ITEMS):
            with torch.enable_grad(), self.drawing(number):
                found = self.objective.losses(network, self.item(device, place))
            meter.add({name: value.detach() for name, value in found.items()})
            del found
        network.train().requires_grad_(False)
        return meter.means()
