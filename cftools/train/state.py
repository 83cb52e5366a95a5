"""What a training keeps on disk: a state that a killed run goes on from, to the bit, and its log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cftools.errors import UsageError
from cftools.train.meter import Meter
from cftools.volume import write_atomic


@dataclass
class State:
    """All that decides how a training goes on.

    Attributes:
        settings: under which alone it may; step: steps done; seconds: they took.
    """

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    settings: str
    step: int = 0
    seconds: float = 0.0
    meter: Meter = field(default_factory=Meter)

    def save(self, path: Path) -> None:
        """Raises OutputError where it cannot be written; what was there is then left."""
        metadata = {
            "settings": self.settings,
            "step": str(self.step),
            "seconds": str(self.seconds),
            "count": str(self.meter.count),
        }
        write_atomic(path, save(self._tensors(), metadata), force=True)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": value for name, value in slots.items()}
        tensors |= {f"meter.{name}": value for name, value in self.meter.sums.items()}
        return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def restore(self, path: Path, device: torch.device) -> None:
        """Go back to a saved state.

        Raises:
            UsageError: it cannot be read, or is of a run with other settings.
        """
        metadata, tensors = _read(path)
        if metadata.get("settings") != self.settings:
            raise UsageError(f"{path.parent}: holds a run with other settings; name another folder or remove it")
        self.network.load_state_dict(_prefixed(tensors, "network."))
        self.average.load_state_dict(_prefixed(tensors, "average."))
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _prefixed(tensors, "optimiser.").items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": slots})
        for parameter, kept in self.optimiser.state.items():
            for slot, value in kept.items():
                if value.shape == parameter.shape:  # in the parameter's memory order, or rounding differs
                    kept[slot] = torch.empty_like(parameter).copy_(value)
        sums = {name: value.to(device) for name, value in _prefixed(tensors, "meter.").items()}
        self.meter = Meter(sums, int(metadata["count"]))
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); remove it to start the training over") from None


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class Log:
    """log.jsonl: a line of JSON every so many steps.

    Opening it drops what a killed run logged after its last saved state: that is done again.
    """

    def __init__(self, path: Path, step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _logged_by(line, step)]
            write_atomic(path, "".join(f"{line}\n" for line in kept).encode(), force=True)
        self._path = path

    def write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def _logged_by(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (json.JSONDecodeError, KeyError):
        return False  # the line that the kill cut short
