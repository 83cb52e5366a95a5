"""The training loop: one for every objective, exact to the bit across a kill."""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cftools.errors import CftoolsError, OutputError, UsageError
from cftools.facts import DiffusionFacts, SpaceFacts
from cftools.volume import write_atomic


@dataclass(frozen=True)
class Product:
    """What a training ends with.

    Attributes:
        network: what is kept; a critic, say, is not.
        space, diffusion: facts of it that only now are known.
    """

    network: nn.Module
    space: SpaceFacts | None = None
    diffusion: DiffusionFacts | None = None


class Objective(Protocol):
    """What is trained, on what, and how its error is measured; all randomness is keyed by the step."""

    def network(self) -> nn.Module:
        """A freshly initialised network; the same for the same seed. If it has a part `kept`, weights are of that."""

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        """Item i is what step i trains on."""

    def losses(self, network: nn.Module, item: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars; "loss" is minimised and the others are only logged."""

    def description(self) -> dict[str, Any]:
        """Plain values that decide the result; a run resumes only under the same ones."""

    def product(self, network: nn.Module) -> Product:
        """What is kept of the trained network, and what training fixed of it."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps; learning_rate: peak of AdamW, after a warm-up over the first 2 % and down a cosine.
        ema: decay of the averaged weights that are kept in the end.
        dtype: of convolutions and products: bfloat16, by autocast, or float32.
        workers: processes that make data; they change nothing but the speed.
        save_every: steps between states that a killed run can resume from.
        log_every: steps averaged into one line of the log.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.995
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    workers: int = 1
    save_every: int = 100
    log_every: int = 20

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        warmup = max(1, self.steps // 50)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


#: step, steps in all, losses
Progress = Callable[[int, int, dict[str, float]], None]


def train(
    objective: Objective,
    schedule: Schedule,
    out: Path,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    initial: dict[str, Tensor] | None = None,
) -> tuple[nn.Module, float]:
    """Train, or go on where a killed run stopped, and return the averaged network and the seconds it took.

    The folder `out` holds `state.safetensors` (network, average, optimiser) and `log.jsonl`. At equal threads, a
    run that was killed and resumed ends with the same tensors as one that was not.

    Args:
        initial: weights to start from instead of random ones.
    Raises:
        UsageError: `out` holds a run with other settings, or the initial weights are of another network.
        OutputError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder ({error.strerror})") from None
    network = objective.network().to(device)
    average = objective.network().to(device).requires_grad_(False)
    if initial is not None:
        try:
            for one in (network, average):
                getattr(one, "kept", one).load_state_dict(initial)
        except RuntimeError as error:
            raise UsageError(
                f"the initial weights do not fit the network ({str(error).splitlines()[-1].strip()})"
            ) from None
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    decisive = {name: value for name, value in asdict(schedule).items() if name != "workers"}
    settings = json.dumps({**decisive, **objective.description()}, sort_keys=True)
    state = out / "state.safetensors"
    start, seconds = _restore(state, settings, network, average, optimiser) if state.exists() else (0, 0.0)
    log = out / "log.jsonl"
    _cut_log(log, start)

    items = _items(objective.dataset(), start, schedule)
    began, sums, count = time.monotonic() - seconds, dict[str, float](), 0
    with log.open("a", encoding="utf-8") as lines:
        for step in range(start, schedule.steps):
            item = {name: value.to(device) for name, value in next(items).items()}
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=schedule.dtype == "bfloat16")
            with torch.random.fork_rng(devices=[]), half:
                torch.manual_seed(step)  # dropout, the same after a resume
                losses = objective.losses(network, item)
            if not torch.isfinite(losses["loss"]):
                raise CftoolsError(f"{out}: the loss is not finite at step {step}: lower training.learning_rate")
            optimiser.zero_grad(set_to_none=True)
            losses["loss"].backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            decay = min(schedule.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                    kept.lerp_(new, 1 - decay)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            count += 1
            done = step + 1
            if done % schedule.log_every == 0 or done == schedule.steps:
                means = {name: total / count for name, total in sums.items()}
                line = {"step": done, "seconds": round(time.monotonic() - began, 1), **means}
                lines.write(json.dumps(line) + "\n")
                lines.flush()
                if progress:
                    progress(done, schedule.steps, means)
                sums, count = {}, 0
            if done % schedule.save_every == 0 or done == schedule.steps:
                _save(state, settings, done, time.monotonic() - began, network, average, optimiser)
    return average, time.monotonic() - began


def _items(dataset: Dataset[dict[str, Tensor]], start: int, schedule: Schedule) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, schedule.steps),
        num_workers=schedule.workers,
        prefetch_factor=8 if schedule.workers else None,
        worker_init_fn=_settle,
    )
    return iter(loader)


#: glibc's mallopt: the size from which a block is mapped on its own and given back when it is freed.
_M_MMAP_THRESHOLD, _MAPPED_FROM = -3, 400_000


def _settle(_worker: int) -> None:
    """One thread a process, and memory that does not grow between the images that a cohort keeps.

    Left alone, glibc raises that size to the largest block freed so far; what is kept then lies scattered between
    what was freed, and a cohort takes several times its size.
    """
    torch.set_num_threads(1)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def _tensors(network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, slots in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in slots.items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _save(state: Path, settings: str, step: int, seconds: float, *parts: Any) -> None:
    metadata = {"settings": settings, "step": str(step), "seconds": str(seconds)}
    write_atomic(state, save(_tensors(*parts), metadata), force=True)


def _restore(
    state: Path, settings: str, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, float]:
    try:
        with safe_open(state, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{state}: cannot be read ({error}); remove it to start the training over") from None
    if metadata.get("settings") != settings:
        raise UsageError(f"{state.parent}: holds a run with other settings; name another folder or remove it")
    network.load_state_dict(_prefixed(tensors, "network."))
    average.load_state_dict(_prefixed(tensors, "average."))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _prefixed(tensors, "optimiser.").items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": slots})
    for parameter, kept in optimiser.state.items():
        for slot, value in kept.items():
            if value.shape == parameter.shape:  # in the parameter's memory order, or rounding differs
                kept[slot] = torch.empty_like(parameter).copy_(value)
    return int(metadata["step"]), float(metadata["seconds"])


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _cut_log(log: Path, step: int) -> None:
    """Drop what a killed run logged after its last saved state: it is done again."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the line that the kill cut short
    write_atomic(log, "".join(kept).encode(), force=True)
