"""Means of losses, summed where they are computed: reading a number off a GPU waits for all that it has to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cftools.train.processes import Processes


@dataclass
class Meter:
    """Losses since the last line of the log.

    Attributes:
        sums: of each loss over this process's items, float64 scalars on the device (float32 on Apple's, which have no
            other); "" is that of gradient norms.
        count: of items.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """One item's."""
        for name, value in losses.items():
            self._add(name, value)
        self.count += 1

    def add_norm(self, norm: Tensor) -> None:
        """A step's gradient norm: a loss may be finite and what it does to the network not."""
        self._add("", norm)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def share(self, processes: Processes) -> None:
        """Replace the sums by their means over the processes, as one would have them."""
        names = list(self.sums)
        if names:
            shared = processes.total(torch.stack([self.sums[name] for name in names])) / processes.place.world
            self.sums = dict(zip(names, shared.unbind(), strict=True))

    def means(self) -> dict[str, float]:
        """Of each loss over the items."""
        return {name: float(total) / self.count for name, total in self.sums.items() if name}

    def finite(self) -> bool:
        """Whether all of it was: losses that are minimised and gradients."""
        return all(math.isfinite(float(self.sums[name])) for name in ("loss", "") if name in self.sums)
