"""What a command line asks for, checked before any work: preset, weights and conditions that go together."""

from __future__ import annotations

import importlib
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.condition import Change, Condition, Value, check, parse_values
from cftools.errors import CftoolsWarning, ConditionError, PresetError, UsageError, WeightsError
from cftools.preset import Preset, Task
from cftools.provenance import command_line
from cftools.weights import Checkpoint, Facts, facts_of, installed, locate

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ability:
    """What a kind of method needs to edit, or to make scans.

    Attributes:
        architectures: of its weights; carries: ways to bring the edit home.
        made_by: module and class, imported when needed: torch, and MONAI for some, take seconds.
    """

    architectures: tuple[str, ...]
    carries: tuple[str, ...]
    made_by: tuple[str, str]


#: What can edit or make scans, by a preset's method.
METHODS = {
    "flow": Ability(("twin",), ("field",), ("cftools.methods", "FlowMethod")),
    "diffusion": Ability(
        ("diffusion-unet",), ("replace", "residual", "warp", "region"), ("cftools.diffuse", "DiffusionModel")
    ),
    "generator": Ability(
        ("generator",), ("replace", "residual", "warp", "region"), ("cftools.generate", "GeneratorMethod")
    ),
    "token": Ability(("token-transformer",), (), ("cftools.autoregress", "TokenMethod")),
}

Changes = tuple[Change, ...]


@dataclass(frozen=True)
class Plan:
    """What to edit with and how, known to go together.

    Attributes:
        preset: resolved, with the weights in it.
        weights: a bundled name or a path.
        clip: move values out of the weights' range to its nearest end instead of refusing them.
    """

    preset: Preset
    weights: str
    facts: Facts
    clip: bool = False


def plan(
    preset: Preset,
    sweep: Sequence[Changes],
    told: Condition,
    weights: str | None = None,
    clip: bool = False,
    region: bool | None = None,
    task: Task = "edit",
    **sampling: Any,
) -> Plan:
    """Choose weights and check that all goes together: preset, weights, conditions; nothing is loaded yet.

    Args:
        preset: as it is shipped.
        sweep: the edits to make of each scan.
        told: what is said of every scan.
        weights: a name or path instead of the preset's own choice, the first that knows all that is changed.
        region: whether a mask will say where the edit may show; None where that is not yet known.
        task: what it is for, edit or synth.
        sampling: values for the preset's sampling and carry; None changes nothing.
    Raises:
        PresetError: the preset cannot edit, or the weights are of another kind.
        WeightsError: there are no such weights. ConditionError: they cannot do what is asked.
        UsageError: a carry by region without a region, or a region without it.
    """
    if task not in preset.tasks or preset.method not in METHODS:
        lack = f"does not {task}" if {"edit", "synth"} & set(preset.tasks) else "can neither edit nor make scans"
        raise PresetError(f"preset {preset.name}: {lack}; try --preset {'twin' if task == 'edit' else 'ldm'}")
    ability = METHODS[preset.method]
    changed = {change.name for changes in sweep for change in changes}
    names = [weights] if weights else bundled(preset)
    known = [(name, facts_of(name)) for name in names]
    able = [(name, facts) for name, facts in known if changed <= set(changeable(facts))]
    name, facts = (able or known)[0]
    if facts.architecture not in ability.architectures:
        needed = " or ".join(ability.architectures)
        raise PresetError(f"preset {preset.name}: needs {needed} weights, {name} are {facts.architecture}")
    label = name if locate(name)[1] else Path(name).stem
    preset = preset.with_weights(label)
    preset = (preset.without_scan() if task == "synth" else preset).override(**sampling)
    if task == "edit" and preset.carry not in ability.carries:
        needed = " or ".join(ability.carries)
        raise PresetError(f"preset {preset.name}: a {preset.method} method is carried by {needed}, not {preset.carry}")
    if region is not None:
        check_region(preset, region)
    with warnings.catch_warnings():
        # Each scan gets its own warning of what is clipped.
        warnings.simplefilter("ignore", CftoolsWarning)
        check(told, facts.variables, clip)
        for changes in sweep:
            check_changes(facts, changes, clip)
    return Plan(preset, name, facts, clip)


def on_device(plan: Plan, device: torch.device) -> Plan:
    """The plan as a device runs it, for the record too: in float32 where it does not compute bfloat16."""
    from cftools.diffusion.denoiser import computes_bfloat16

    if getattr(plan.preset.sampling, "dtype", "") != "bfloat16" or computes_bfloat16(device):
        return plan
    return replace(plan, preset=plan.preset.override(dtype="float32"))


def opened(plan: Plan, device: torch.device) -> tuple[Any, dict[str, Checkpoint]]:
    """The method of a plan with its weights, and what was loaded, by role.

    Raises:
        WeightsError: damaged, or not made for each other.
    """
    module, name = METHODS[plan.preset.method].made_by
    made: tuple[Any, dict[str, Checkpoint]] = getattr(importlib.import_module(module), name).of(
        plan.preset, plan.weights, device
    )
    return made


def bundled(preset: Preset) -> list[str]:
    """Those of a preset's main weights that are installed.

    Raises:
        WeightsError: none of them is, or none that play another role.
    """
    for role in (preset.main_role, *preset.weights):
        if not any(map(installed, preset.weights[role])):
            names = " and ".join(preset.weights[role])
            raise WeightsError(
                f"preset {preset.name}: its weights {names} are not installed: cf-train makes them, and "
                "cf-weights add puts them where this command finds them"
            )
    return [name for name in preset.weights[preset.main_role] if installed(name)]


def check_region(preset: Preset, region: bool) -> None:
    """Raise a UsageError unless a region is named where, and only where, the preset carries by one."""
    if (preset.carry == "region") != region:
        raise UsageError("--region MASK and --carry region go together: both or neither")


def parse_sweep(ages: Sequence[str], assignments: Sequence[str]) -> list[Changes]:
    """The edits that are asked for: every combination of one value of each variable.

    Args:
        ages: values of age, "+30" or "-10,+10".
        assignments: those of other variables, "load=low,high" or "load=low,diagnosis=AD".
    Raises:
        ConditionError: none, one twice, or one that cannot be read.
    """
    texts = [("age", text) for text in ages]
    for text in assignments:
        for part in re.split(r",(?=[^,=]*=)", text):
            name, equals, values = part.partition("=")
            if not equals:
                raise ConditionError(f"{text!r}: {part!r} is not name=value")
            texts.append((name.strip(), values))
    values_of: dict[str, list[Change]] = {}
    for name, text in texts:
        for change in parse_values(name, text):
            if change in values_of.setdefault(name, []):
                raise ConditionError(f"{change.entity} is asked for twice")
            values_of[name].append(change)
    if not values_of:
        raise ConditionError("nothing to change: name a condition, such as --age +30")
    return list(itertools.product(*values_of.values()))


def changeable(facts: Facts) -> tuple[str, ...]:
    """The variables that weights can change; the others they can only be told."""
    names = tuple(facts.variables)
    return tuple(names[index] for index in facts.architecture_arguments.get("changes", range(len(names))))


def check_changes(facts: Facts, changes: Changes, clip: bool) -> None:
    """Raise a ConditionError unless the weights can make these changes."""
    for change in changes:
        check(Condition({change.name: None if change.relative else change.value}), facts.variables, clip)
        if change.name not in changeable(facts):
            can = ", ".join(changeable(facts)) or "nothing"
            raise ConditionError(f"these weights can change {can}; {change.name} they are only told (--from)")
        if change.value is None:
            raise ConditionError(f"{change.name}: name a value to change it to")
        if change.relative and facts.variables[change.name].kind != "number":
            raise ConditionError(f"{change.entity}: only a number can be added to, and {change.name} is none")


def editing_command(
    plan: Plan,
    changes: Changes,
    source: Condition,
    name: str,
    seed: int,
    region: str | None = None,
    mask: str | None = None,
    stripped: bool = False,
) -> str:
    """The command that makes one image alone, whatever sweep or batch it came from.

    Args:
        name: of the scan; region, mask: of masks; - for stdin.
        stripped: the scan was said to be a brain alone.
    """
    preset = plan.preset
    sampling: Any = preset.sampling
    words = ["cf-edit", "--preset", preset.name, "--weights", preset.weights[preset.main_role][0]]
    words += ["--steps", str(sampling.steps)] if hasattr(sampling, "steps") else []
    if len(METHODS[preset.method].carries) > 1:
        words += ["--carry", str(preset.carry)]
    for option, file in (("--region", region), ("--mask", mask)):
        words += [option, file] if file is not None else []
    words += ["--prepared"] if stripped else []
    if (guidance := getattr(sampling, "guidance", None)) is not None:
        words += ["--guidance", f"{guidance:g}"]
    words += ["--dtype", sampling.dtype] if hasattr(sampling, "dtype") else []
    if seed:
        words += ["--seed", str(seed)]
    for change in changes:
        words += ["--set", f"{change.name}={_text(change.value, signed=change.relative)}"]
    return command_line([*words, *_told(source, plan), name])


def encoding_command(
    plan: Plan, source: Condition, name: str, seed: int, mask: str | None = None, stripped: bool = False
) -> str:
    """The command that makes one scan's latent alone, whatever batch it came from; arguments as above."""
    words = ["cf-encode", "--preset", plan.preset.name, "--weights", plan.preset.weights[plan.preset.main_role][0]]
    words += ["--mask", mask] if mask is not None else []
    words += ["--prepared"] if stripped else []
    words += ["--seed", str(seed)] if seed else []
    return command_line([*words, *_told(source, plan), name, "-"])


def _told(source: Condition, plan: Plan) -> list[str]:
    told = [f"{name}={_text(value)}" for name, value in source.items() if value is not None]
    return [*(["--from", ",".join(told)] if told else []), *(["--clip"] if plan.clip else [])]


def _text(value: Value, signed: bool = False) -> str:
    """A value as one types it."""
    if not isinstance(value, float):
        return str(value)
    digits = format(Decimal(repr(value)), "f").removesuffix(".0")
    return f"+{digits}" if signed and value >= 0 else digits
