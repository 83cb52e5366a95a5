"""How the weights of a preset come about: network, training, losses and data, as its TOML file has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cftools.schema import FrozenMapping, rest

Size = Literal["bundled", "full"]


@dataclass(frozen=True)
class Network:
    """An architecture by name, and all its other keys as arguments (scalars, or lists of them)."""

    architecture: str
    arguments: Mapping[str, Any] = rest()


@dataclass(frozen=True)
class Training:
    """How long and how fast; one of steps and epochs is 0.

    Attributes:
        batch: items of a step; ema: decay of the averaged weights, 0 for none.
        checkpointing: less memory for activations, for one more forward pass.
    """

    learning_rate: float
    steps: int = 0
    epochs: int = 0
    batch: int = 1
    weight_decay: float = 0.0
    ema: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        require((self.steps > 0) != (self.epochs > 0), "give steps or epochs, one of them")
        require(self.batch >= 1, "batch must be 1 or more")
        require(self.learning_rate > 0 and self.weight_decay >= 0, "learning_rate or weight_decay is too small")
        require(0 <= self.ema < 1, "ema must be 0 or more and below 1")


@dataclass(frozen=True)
class Recipe:
    """How the weights of one role come about, at the bundled or the paper's full size; in the file's order.

    Attributes:
        objective: what is trained, as `cf-train` knows it.
        initial: weights to start from; empty for none.
        losses: weight of each term of the objective.
        data: the objective's own settings for what it is trained on.
    """

    role: str
    size: Size
    objective: str
    network: Network
    training: Training
    initial: str = ""
    losses: Mapping[str, float] = FrozenMapping()
    data: Mapping[str, Any] = FrozenMapping()


def require(holds: bool, otherwise: str) -> None:
    """Raise a ValueError unless it holds: the schema says where."""
    if not holds:
        raise ValueError(otherwise)
