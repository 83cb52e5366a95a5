"""The diffusion job in pieces that pipe, over `Latent`: what cf-encode, cf-invert, cf-resample and cf-decode do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cftools.condition import Condition, apply, check, entity
from cftools.editing import Editor, Ready
from cftools.errors import LatentError, PresetError, UsageError
from cftools.facts import Target
from cftools.latent import Latent
from cftools.planning import Changes, Plan, check_changes, check_region, encoding_command, on_device, opened, plan
from cftools.preset import Preset, Task, from_table
from cftools.provenance import Provenance, source_name
from cftools.volume import Volume

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cftools.diffuse import DiffusionModel
    from cftools.weights import Checkpoint

#: Normalised intensity that what is synthesised has in the brain at least.
LEAST_BRAIN = 0.05
Device = Callable[[], "torch.device"]


def pipe_plan(
    preset: Preset, weights: str | None, told: Condition, clip: bool = False, task: Task = "edit", **sampling: Any
) -> Plan:
    """What to encode with, or to make new scans with; arguments as for `planning.plan`.

    Raises:
        PresetError: the preset has no latents to encode to. WeightsError: there are no such weights.
    """
    if task == "edit" and preset.method != "diffusion":
        raise PresetError(f"preset {preset.name}: works on no latents; cf-edit runs it whole")
    return plan(preset, [], told, weights, clip, task=task, **sampling)


def preset_of(latent: Latent) -> Preset:
    """What a latent was made with, flags and all.

    Raises:
        LatentError: it does not say.
    """
    try:
        return from_table(latent.facts.resolved, latent.name)
    except PresetError as error:
        raise LatentError(f"{error}: make it anew with cf-encode") from None


def plan_of(latent: Latent, weights: str | None, clip: bool = False, **sampling: Any) -> Plan:
    """What a latent was made with, to go on with."""
    return pipe_plan(preset_of(latent), weights, latent.source, clip, **sampling)


def encode(editor: Editor, ready: Ready, dataset: Path | None = None) -> Latent:
    """The latent of a scan that the editor has read.

    Args:
        dataset: the BIDS folder it belongs to, for the record.
    Raises:
        ConditionError: a value is out of range.
    """
    from cftools.diffuse import DiffusionModel
    from cftools.latent import scan_facts

    plan, prepared = editor.plan, ready.prepared
    method, _, guesses = editor.opened(ready)
    assert isinstance(method, DiffusionModel)
    source = check(ready.known.do(**guesses), plan.facts.variables, plan.clip)
    path = prepared.volume.path
    scan = scan_facts(
        prepared.volume,
        source_name(path or "stdin", dataset),
        plan.facts.contrasts[0],
        prepared.to_mni,
        prepared.offset,
        prepared.scale,
        prepared.similarity,
    )
    brain = None if ready.mask is None else ready.mask.path.name if ready.mask.path else "-"
    command = encoding_command(plan, source, path.name if path else "-", editor.seed, brain, editor.stripped)
    return method.encode(prepared.image, scan, source, tuple(guesses), editor.seed, command)


def model_of(plan: Plan, device: Device) -> DiffusionModel:
    """The network behind a plan."""
    from cftools.diffuse import DiffusionModel

    where = device()
    return DiffusionModel.of(on_device(plan, where).preset, plan.weights, where)[0]


def targets_of(plan: Plan, latent: Latent, sweep: Sequence[Changes]) -> list[Target]:
    """What a latent is to be made, change by change.

    Raises:
        ConditionError: out of the weights' range, or relative to what is unknown.
    """
    variables, source = plan.facts.variables, latent.source
    for changes in sweep:
        check_changes(plan.facts, changes, plan.clip)
    return [Target(check(apply(changes, source), variables, plan.clip), entity(changes)) for changes in sweep]


def decode(
    latent: Latent,
    device: Device,
    onto: Volume | None,
    carry: str | None,
    region: Volume | None = None,
    mask: Volume | None = None,
    stripped: bool = False,
) -> Iterator[tuple[Target, Volume]]:
    """The images of a latent's edits; without the scan on the model's grid, 0 outside the brain.

    Args:
        onto: the scan it was made from, whose grid the edits are brought to; None leaves them on the model's.
        carry: how; None, as the preset does. region: a mask on the scan's grid, for a carry by region.
        mask, stripped: where its brain is, as when it was encoded.
    Raises:
        LatentError: it holds no edits, or was made from another scan or with other weights. UsageError: the region and
            the carry do not go together. VolumeError: the region is no mask on the scan's grid.
    """
    import numpy as np

    from cftools.diffuse import brought_home, decoded, load_space
    from cftools.heads import Preparer
    from cftools.prepare import Grid
    from cftools.space import Space, make_space

    latent.check_kind("edited")
    if onto is None and (carry or region is not None or mask is not None):
        raise UsageError("--carry, --region and --mask say how an edit comes onto the scan: name that with --onto")
    preset, facts = preset_of(latent), latent.facts
    space: Space
    if "space" in facts.weights:
        space, loaded = load_space(preset.weights["space"][0], device())
        latent.check(loaded.sha256)
    else:
        space = make_space(facts.space)
    x, y, z = facts.grid.shape
    grid = Grid(facts.grid.name, (x, y, z), np.array(facts.grid.affine))
    if onto is None:
        for target, edited in zip(facts.targets, latent.edited, strict=True):
            yield target, Volume.from_array(brain_of(decoded(space, edited)), grid.affine)
        return
    latent.check_onto(onto)
    scan = facts.scan
    if scan is None:
        raise LatentError(f"{latent.name}: was made from no scan: decode it without --onto")
    check_region(preset.override(carry=carry), region is not None)
    where = onto.region(region) if region is not None else None
    prepared = replace(Preparer(grid, device, stripped)(onto, mask, np.array(scan.to_mni)), region=where)
    factual = latent.tensors.get("factual")
    for target, edited in zip(facts.targets, latent.edited, strict=True):
        yield target, onto.with_array(brought_home(space, prepared, edited, factual, carry or preset.carry))


def provenance(latent: Latent, target: Target, command: str, carry: str | None, onto: bool = True) -> Provenance:
    """How the image of one edit came about, for its sidecar: the pipe's commands as one line."""
    facts = latent.facts
    return Provenance(
        command=" | ".join((*facts.provenance, command)),
        sources=(facts.scan.name,) if facts.scan else (),
        skull_stripped=True,
        preset=preset_of(latent).override(carry=carry) if facts.scan else preset_of(latent),
        weights=facts.weights,
        source=latent.source,
        target=Condition(target.condition),
        seed=facts.seed,
        spatial_reference=None if onto else "MNI152NLin2009aSym",
        details={"guessed": list(facts.guessed)} if facts.guessed else {},
    )


def brain_of(image: np.ndarray) -> np.ndarray:
    """A decoded image without what lies around the brain, and not below 0."""
    import numpy as np

    from cftools.prepare import brain_mask

    image = np.clip(image, 0, None)
    mask, _ = brain_mask(np.where(image > LEAST_BRAIN, image, 0))
    return image * mask


class Sampling(Protocol):
    """What makes new scans; made by `of(preset, weights, device)`."""

    def sample(self, condition: Condition, seed: int, sample: int, command: str = "") -> np.ndarray:
        """A new scan on the model's grid, (X, Y, Z), from the noise of one sample number."""


@dataclass(frozen=True)
class Person:
    """Someone to be made: a participant's name, the sample whose noise it has, and the condition."""

    name: str
    sample: int
    target: Target


def people(plan: Plan, sweep: Sequence[Changes], count: int) -> list[Person]:
    """Every sample under every condition, each a participant of its own.

    Raises:
        ConditionError: relative, where there is no scan; out of the weights' range, or not known to them.
    """
    variables = plan.facts.variables
    unknown = Condition(dict.fromkeys(variables))
    targets = [
        Target(check(apply(changes, unknown), variables, plan.clip), entity(changes) if changes else "")
        for changes in sweep
    ]
    pairs = [(sample, target) for sample in range(count) for target in targets]
    return [Person(f"sub-{number:04d}", *pair) for number, pair in enumerate(pairs, start=1)]


@dataclass(frozen=True, eq=False)
class Synthesiser:
    """Makes new scans on the model's grid, one after the other; 0 outside the brain. The model is loaded once."""

    plan: Plan
    device: Device
    seed: int = 0
    command: str = ""

    @cached_property
    def _model(self) -> tuple[Sampling, dict[str, Checkpoint], Preset]:
        device = self.device()
        plan = on_device(self.plan, device)
        return *opened(plan, device), plan.preset

    def make(self, person: Person) -> tuple[Volume, Provenance]:
        """The scan of one person, whoever was made before."""
        import numpy as np

        model, loaded, preset = self._model
        image = brain_of(model.sample(Condition(person.target.condition), self.seed, person.sample, self.command))
        provenance = Provenance(
            command=self.command,
            sources=(),
            skull_stripped=self.plan.facts.skull_stripped,
            preset=preset,
            weights=loaded,
            source=Condition(dict.fromkeys(self.plan.facts.variables)),
            target=Condition(person.target.condition),
            seed=self.seed,
            spatial_reference="MNI152NLin2009aSym",
            details={"sample": person.sample},
        )
        return Volume.from_array(image, np.array(self.plan.facts.grid.affine)), provenance
