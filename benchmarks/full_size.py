"""What the published sizes cost: parameters, operations and memory of every full recipe, counted on shapes alone.

    python benchmarks/full_size.py                           # counts, in a minute, without the memory they speak of
    python benchmarks/full_size.py --forward                 # and a forward of each network, timed, on the CPU
    python benchmarks/full_size.py --train --device cuda     # and a training step, with and without checkpoints

Operations are twice the multiply-adds of convolutions and products, one item a step, as the recipes have it.
activation_gb is the most that lives at once beside parameters, their gradients and the optimiser, under bfloat16
autocast, whose halved copies of the weights are among it: of a forward that keeps nothing for a backward, and of a
training step of the recipe's own objective.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cftools.diffusion.path import make_path
from cftools.facts import SpaceFacts
from cftools.nets.autoencoder import AutoencoderArchitecture
from cftools.nets.unet import UNetArchitecture
from cftools.preset import list_presets, load_preset
from cftools.recipe import Recipe
from cftools.train.autoencoder import AutoencoderObjective
from cftools.train.cycle import CycleObjective
from cftools.train.diffusion import DiffusionObjective
from cftools.train.kinds import OBJECTIVES, TOLD, VARIABLES, grid_of
from cftools.train.loop import Objective

GB = 1e9
#: Parts of MONAI's networks that a checkpoint keeps the input of, and computes anew on the way back.
BLOCKS = ("ResBlock", "DiffusionUNetResnetBlock", "AEKLResBlock", "SpatialTransformer", "SpatialAttentionBlock")


@dataclass(frozen=True)
class Built:
    """A recipe's network at its full size.

    Attributes:
        objective: what trains it; item: the shapes of what a step trains on.
        forward: of the network that is kept, on such an item.
    """

    objective: Objective
    item: dict[str, tuple[int, ...]]
    forward: Callable[[nn.Module, dict[str, Tensor]], Any]


class Living(TorchDispatchMode):
    """Bytes of the tensors made under it that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}  # by storage; 0 for what is left out

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs or {})):
            if isinstance(tensor, nn.Parameter):
                self._sizes.setdefault(id(tensor.untyped_storage()), 0)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._born(tensor.untyped_storage())
        return made

    def leave_out(self, parameter: Tensor) -> None:
        """Count the gradient that a parameter has got no longer."""
        if parameter.grad is not None:
            key = id(parameter.grad.untyped_storage())
            self.now -= self._sizes.get(key, 0)
            self._sizes[key] = 0

    def _born(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def arguments(recipe: Recipe) -> dict[str, Any]:
    """Of the network, as its dataclass takes them."""
    given = recipe.network.arguments.items()
    return {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in given}


def autoencoder(recipe: Recipe) -> Built:
    """On whole images of the recipe's grid."""
    losses = {**OBJECTIVES[recipe.objective].losses, **recipe.losses}
    shape = tuple(grid_of(recipe).shape)
    none: Any = None
    objective = AutoencoderObjective(AutoencoderArchitecture(**arguments(recipe)), none, none, shape, 0, losses, {})

    def forward(network: Any, item: dict[str, Tensor]) -> Tensor:
        reconstruction: Tensor = network.kept.decode(network.kept.encode(item["image"])[0])
        return reconstruction

    return Built(objective, {"image": (1, 1, *shape)}, forward)


def latents(recipe: Recipe) -> SpaceFacts:
    """Of the full-size autoencoder on the recipe's grid."""
    made = next(one for one in full_recipes() if one[1].objective == "autoencoder")[1]
    architecture = AutoencoderArchitecture(**arguments(made))
    shape = tuple(grid_of(recipe).shape)
    return SpaceFacts("vae", shape, architecture.latent_channels, architecture.factor, 4)


def denoiser(recipe: Recipe, cycle: bool = False) -> Built:
    """On one latent; of a cycle, there and back."""
    kind, space = OBJECTIVES[recipe.objective], latents(recipe)
    losses, data = {**kind.losses, **recipe.losses}, {**kind.data, **recipe.data}
    told: dict[str, Any] = {"inputs": space.channels, "outputs": space.channels, "variables": len(TOLD)}
    if recipe.network.arguments.get("centred"):
        told["sides"] = space.latent_shape[1:]
    architecture = UNetArchitecture(**arguments(recipe), **told)
    none: Any = None
    plain = DiffusionObjective(
        architecture, none, make_path(data["path"]), data["prediction"], 0.0, 0, {}, space, "", losses["twin"]
    )
    objective = (
        CycleObjective.of(plain, losses, data, [VARIABLES[name] for name in TOLD], ((-1.0, 1.0),) * len(TOLD))
        if cycle
        else plain
    )

    def forward(network: nn.Module, item: dict[str, Tensor]) -> Tensor:
        x = item["latent"][0]
        said: Tensor = network(x, torch.zeros(1, device=x.device), item["context"][0])
        return said

    item = {"latent": (1, 1, *space.latent_shape), "context": (1, 1, len(TOLD))}
    return Built(objective, item, forward)


#: How to build what an objective trains.
BUILDERS: dict[str, Callable[[Recipe], Built]] = {
    "autoencoder": autoencoder,
    "diffusion": denoiser,
    "cycle": partial(denoiser, cycle=True),
}


def full_recipes() -> Iterator[tuple[str, Recipe]]:
    """Every preset's recipes of full size."""
    for name in list_presets():
        yield from ((name, recipe) for recipe in load_preset(name).recipe if recipe.size == "full")


def half(device: str) -> Any:
    """What networks are trained and run in."""
    return torch.autocast(device, torch.bfloat16)


def checkpointed(network: nn.Module) -> None:
    """Keep only the inputs of the blocks for the backward."""
    apply_activation_checkpointing(network, check_fn=lambda module: type(module).__name__ in BLOCKS)


def counted(built: Built) -> Iterator[tuple[str, str, float]]:
    """Rows of (setting, metric, value), on tensors that have shapes and no values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = built.objective.network()
        kept = getattr(network, "kept", network)
        yield "network", "parameters_m", sum(one.numel() for one in kept.parameters()) / 1e6
        item = {name: torch.randn(shape) for name, shape in built.item.items()}
        with torch.no_grad(), FlopCounterMode(display=False) as flops, Living() as living, half("cpu"):
            built.forward(network, item)
        yield "forward", "tflop", flops.get_total_flops() / 1e12
        yield "forward", "activation_gb", living.most / GB
        for setting in ("training step", "training step, checkpointed"):
            if setting.endswith("checkpointed"):
                checkpointed(network)
            living = Living()
            hooks = [one.register_post_accumulate_grad_hook(living.leave_out) for one in network.parameters()]
            with FlopCounterMode(display=False) as flops, living:
                with half("cpu"):
                    loss = built.objective.losses(network, item)["loss"]
                loss.backward()
            for hook in hooks:
                hook.remove()
            network.zero_grad(set_to_none=True)
            yield setting, "tflop", flops.get_total_flops() / 1e12
            yield setting, "activation_gb", living.most / GB


def timed(built: Built, device: str, train: bool) -> Iterator[tuple[str, str, float]]:
    """Rows of (setting, metric, value) of a real forward and, if asked, of training steps."""
    network = built.objective.network().to(device)
    item = {name: torch.randn(shape, device=device) for name, shape in built.item.items()}

    def forward() -> None:
        with torch.inference_mode(), half(device):
            built.forward(network, item)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with half(device):
            loss = built.objective.losses(network, item)["loss"]
        loss.backward()
        optimiser.step()

    yield from clocked(f"forward on {machine(device)}", forward, device)
    for way in ("", ", checkpointed") if train else ():
        if way:
            checkpointed(network)
        optimiser = torch.optim.AdamW(network.parameters())
        yield from clocked(f"training step on {machine(device)}{way}", step, device)


def clocked(setting: str, work: Callable[[], None], device: str) -> Iterator[tuple[str, str, float]]:
    """Seconds and peak memory, parameters and all; on a GPU after a first run, which chooses its kernels."""
    cuda = device.startswith("cuda")
    try:
        if cuda:
            work()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        work()
        if cuda:
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        print(f"{setting}: out of memory", flush=True)
        torch.cuda.empty_cache()
        return
    yield setting, "seconds", time.monotonic() - began
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield setting, "peak_gb", peak / GB


def machine(device: str) -> str:
    """What it ran on."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} thread(s) of {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward", action="store_true", help="also run a forward of each")
    parser.add_argument("--train", action="store_true", help="also run training steps of each; for a GPU")
    parser.add_argument("--only", nargs="+", help="presets, else all that have a full size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for name, recipe in full_recipes():
        if options.only and name not in options.only:
            continue
        if recipe.objective not in BUILDERS:
            print(f"{name}: a {recipe.objective} cannot be counted yet", flush=True)
            continue
        built = BUILDERS[recipe.objective](recipe)
        found = list(counted(built))
        if options.forward or options.train:
            found += timed(built, options.device, options.train)
        for setting, metric, value in found:
            row = {"table": "full size", "method": name, "setting": setting, "metric": metric, "ours": round(value, 4)}
            rows.append({**row, "low": None, "high": None, "paper": None})
            print(f"{name:12} {setting:45} {metric:14} {value:10.3f}", flush=True)
    if options.json:
        write(options.json, rows, options.device)


def write(path: Path, rows: Sequence[dict[str, Any]], device: str) -> None:
    """As the reproductions' files are; no cohort, as none is met."""
    command = " ".join(["python", *sys.argv])
    date = datetime.now(UTC).date().isoformat()
    facts = {
        "command": command,
        "date": date,
        "machine": machine(device),
        "cohort": {"seed": 0, "n": 0},
        "rows": list(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
