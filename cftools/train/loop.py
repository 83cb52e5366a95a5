"""The training loop: one for every objective, exact to the bit across a kill."""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cftools.errors import CftoolsError, OutputError, Stopped, UsageError
from cftools.facts import DiffusionFacts, SpaceFacts, TokenFacts
from cftools.train.checkpointing import checkpointed
from cftools.train.meter import Meter
from cftools.train.processes import Place, Processes, processes_on
from cftools.train.state import Log, State
from cftools.train.stopping import signals_held_back, stop_requests
from cftools.train.validation import Validation


@dataclass(frozen=True)
class Product:
    """What a training ends with.

    Attributes:
        network: what is kept; a critic, say, is not.
        space, diffusion, tokens: facts of it that only now are known.
    """

    network: nn.Module
    space: SpaceFacts | None = None
    diffusion: DiffusionFacts | None = None
    tokens: TokenFacts | None = None


class Objective(Protocol):
    """What is trained, on what, and how its error is measured; all randomness is keyed by the item.

    It may also have a method `preview(network, item)` that returns images to look at, (rows, columns, X, Y, Z) in
    0..1.5, such as inputs with what the network makes of them, or None. And a method `groups(network)` that returns
    the optimiser's parameter groups, where a part learns in its own way: "factor" multiplies the rate of one, and each
    is clipped on its own. And a method `settle(network)` that puts into the network what can be said of the data before
    the first step, unless initial weights say it. And a method `prepare(device)` for what is better done there, before
    all else and once, than by workers.
    """

    def network(self) -> nn.Module:
        """A freshly initialised network; the same for the same seed. If it has a part `kept`, weights are of that."""

    def dataset(self) -> Dataset[dict[str, Tensor]]:
        """Step s trains on item s; with a batch of B, on the items from s B to s B + B - 1."""

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
        save_every: steps between states that a killed run can resume from; a multiple where writing takes long.
        log_every: steps averaged into one line of the log, and then checked: reading a number waits for a GPU.
        batch: items of a step, whose gradients are averaged: in turn, or shared among processes.
        checkpointing: blocks compute their activations again in the backward pass instead of keeping them.
        preview_every, validate_every: steps between pictures, and between losses on data held out; 0 for none.
    """

    steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.995
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    workers: int = 1
    save_every: int = 100
    log_every: int = 20
    batch: int = 1
    checkpointing: bool = False
    preview_every: int = 0
    validate_every: int = 0

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        warmup = max(1, self.steps // 50)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


#: Of a schedule: what may change between a run and its resumption, as it decides no number but by rounding.
INDIFFERENT = ("workers", "checkpointing", "preview_every", "validate_every")

#: How many times as long as writing a state took to train before the next, where it took more than a second.
BETWEEN_STATES = 19

#: step, steps in all, losses
Progress = Callable[[int, int, dict[str, float]], None]
#: step, images (rows, columns, X, Y, Z) in 0..1.5
Preview = Callable[[int, Tensor], None]


def train(
    objective: Objective,
    schedule: Schedule,
    out: Path,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    initial: dict[str, Tensor] | None = None,
    preview: Preview | None = None,
    held_out: Objective | None = None,
) -> tuple[nn.Module, float]:
    """Train, or go on where a stopped run was, and return the averaged network and the seconds it took.

    The folder `out` holds `state.safetensors` (network, average, optimiser) and `log.jsonl`. At equal threads, a
    run that was killed and resumed ends with the same tensors as one that was not. Started by torchrun or srun, the
    processes share each step's items; the first alone writes, reports and shows.

    Args:
        initial: weights to start from instead of random ones.
        preview: given what the objective has to show every `preview_every` steps: of what is held out, if anything is.
        held_out: the objective on data that are not trained on, whose losses every `validate_every` steps go to
            `validation.jsonl`.
    Raises:
        UsageError: `out` holds a run with other settings, the initial weights are of another network, or the batch
            cannot be shared evenly.
        OutputError: `out` cannot be written.
        Stopped: a signal asked for it; the state is saved.
        CftoolsError: a loss or a gradient is not finite; the state from before is left.
    """
    processes = processes_on(device)
    place, device = processes.place, processes.device
    if schedule.batch % place.world:
        raise UsageError(f"training.batch={schedule.batch}: {place.world} processes need a multiple of their number")
    _make(out)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    path = out / "state.safetensors"
    for one in (objective, held_out):
        if prepare := getattr(one, "prepare", None):
            prepare(device)
    state = _begin(objective, schedule, device, initial, fresh=not path.exists())
    if path.exists():
        state.restore(path, device)
    losses = processes.wrapped(_Losses(objective, state.network))
    log = Log(out / "log.jsonl", state.step) if place.first else None
    validation = Validation(held_out, lambda number: _drawing(number, device, schedule)) if held_out else None
    validation_log = Log(out / "validation.jsonl", state.step) if place.first and validation else None
    items = _items(objective.dataset(), state.step, schedule, place, pinned=device.type == "cuda")
    began = time.monotonic() - state.seconds
    next_save = 0.0
    with stop_requests() as request:
        while state.step < schedule.steps:
            item = _step(schedule, state, losses, items, processes)
            done = state.step
            logs = _due(done, schedule.log_every, schedule.steps)
            stops = processes.any(bool(request)) and done < schedule.steps
            saves = _due(done, schedule.save_every, schedule.steps) or stops
            if logs or saves:
                state.meter.share(processes)
                if not state.meter.finite():
                    raise CftoolsError(
                        f"{out}: the loss or its gradient is not finite at step {done} or in the "
                        f"{schedule.log_every} before: lower training.learning_rate"
                    )
            state.seconds = time.monotonic() - began
            if logs:
                means, state.meter = state.meter.means(), Meter()
                if log:
                    log.write({"step": done, "seconds": round(state.seconds, 1), **means})
                    if progress:
                        progress(done, schedule.steps, means)
            if place.first and preview and schedule.preview_every and done % schedule.preview_every == 0:
                shown = validation.item(device) if validation else item
                _show(objective, state.average, shown, preview, done, schedule)
            if validation_log and validation and _due(done, schedule.validate_every, schedule.steps):
                means = validation.losses(state.average)
                validation_log.write({"step": done, **means})
                if progress:
                    progress(done, schedule.steps, {f"validation/{name}": value for name, value in means.items()})
            if saves and place.first and (stops or done == schedule.steps or time.monotonic() >= next_save):
                taken = _timed(partial(state.save, path))
                next_save = time.monotonic() + BETWEEN_STATES * taken if taken > 1 else 0.0
            if stops:
                # Nobody leaves before it is written: who starts processes ends all with the first that does.
                processes.any(False)
                raise Stopped(
                    f"stopped by {request.name or 'a signal'} after step {done} of {schedule.steps}; "
                    f"{out} holds its state: the same command goes on from there"
                )
    return state.average, state.seconds


def _timed(work: Callable[[], None]) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _due(done: int, every: int, steps: int) -> bool:
    """Whether something that is done every so many steps, and after the last, is due; never, for 0."""
    return bool(every) and (done % every == 0 or done == steps)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the folder ({error.strerror})") from None


def _begin(
    objective: Objective, schedule: Schedule, device: torch.device, initial: dict[str, Tensor] | None, fresh: bool
) -> State:
    """The state before the first step; what other weights or states were settled on stays."""
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
    settle = getattr(objective, "settle", None)
    if settle and fresh and initial is None:
        settle(network)
        average.load_state_dict(network.state_dict())
    groups = getattr(objective, "groups", None)
    optimiser = torch.optim.AdamW(
        groups(network) if groups else network.parameters(),
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        fused=device.type == "cuda",
    )
    decisive = {name: value for name, value in asdict(schedule).items() if name not in INDIFFERENT}
    settings = json.dumps({**decisive, **objective.description()}, sort_keys=True)
    return State(checkpointed(network) if schedule.checkpointing else network, average, optimiser, settings)


class _Losses(nn.Module):
    """An objective's losses as a forward pass, which DDP can wrap whatever parts of the network the objective calls."""

    def __init__(self, objective: Objective, network: nn.Module) -> None:
        super().__init__()
        self.objective, self.network = objective, network

    def forward(self, item: dict[str, Tensor]) -> dict[str, Tensor]:
        losses = self.objective.losses(self.network, item)
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


def _step(
    schedule: Schedule,
    state: State,
    losses: nn.Module,
    items: Iterator[tuple[int, dict[str, Tensor]]],
    processes: Processes,
) -> dict[str, Tensor]:
    """One step of the optimiser, from the gradients' mean over its items; the last of them is returned."""
    mine = schedule.batch // processes.place.world
    for group in state.optimiser.param_groups:
        group["lr"] = schedule.rate(state.step) * group.get("factor", 1.0)
    state.optimiser.zero_grad(set_to_none=True)
    for micro in range(mine):
        number, item = next(items)
        item = {name: value.to(processes.device, non_blocking=True) for name, value in item.items()}
        with processes.apart(losses, micro < mine - 1):
            with _drawing(number, processes.device, schedule):
                found = losses(item)
            processes.backward(found["loss"] / mine)
        state.meter.add(found)
    norms = [nn.utils.clip_grad_norm_(group["params"], 1.0) for group in state.optimiser.param_groups]
    state.meter.add_norm(torch.stack(norms).max())
    state.optimiser.step()
    decay = min(schedule.ema, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - decay)
        for kept, new in zip(state.average.buffers(), state.network.buffers(), strict=True):
            kept.copy_(new)
    state.step += 1
    return item


@contextmanager
def _drawing(number: int, device: torch.device, schedule: Schedule) -> Iterator[None]:
    """Where dropout and noise are an item's own: the same after a resume, and in whichever process it is."""
    half = torch.autocast(device.type, torch.bfloat16, enabled=schedule.dtype == "bfloat16")
    with torch.random.fork_rng(devices=[]), half:
        torch.manual_seed(number)
        yield


def _show(
    objective: Objective, network: nn.Module, item: dict[str, Tensor], preview: Preview, step: int, schedule: Schedule
) -> None:
    """What the averaged network makes of an item, where its objective has something to show."""
    shown = getattr(objective, "preview", None)
    if shown is None:
        return
    device = next(network.parameters()).device
    network.eval()
    with torch.no_grad(), _drawing(step, device, schedule):
        images = shown(network, item)
    network.train()
    if images is not None:
        preview(step, images.float().cpu())


def _items(
    dataset: Dataset[dict[str, Tensor]], start: int, schedule: Schedule, place: Place, pinned: bool
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """This process's items, each with its number: of a step's batch every so many as there are processes."""
    numbers = range(start * schedule.batch + place.rank, schedule.steps * schedule.batch, place.world)
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=schedule.workers,
        prefetch_factor=8 if schedule.workers else None,
        worker_init_fn=_settle,
        pin_memory=pinned,
    )
    with signals_held_back():
        return zip(numbers, iter(loader), strict=True)


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
