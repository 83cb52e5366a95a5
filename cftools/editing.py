"""Editing scans: a preset with its weights, checked before any work, loaded once, applied to one scan after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cohort import contrast_of
from cftools.condition import Change, Condition, Value, apply, check
from cftools.errors import CftoolsWarning, ConditionError, PresetError, WeightsError
from cftools.preset import Preset
from cftools.provenance import Provenance, command_line, source_name, write_sidecar
from cftools.weights import Checkpoint, Facts, facts_of, load, locate

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cftools.methods import FlowMethod, ScalarReader
    from cftools.prepare import Grid, Prepared
    from cftools.volume import Volume

#: What can edit: by a preset's method, the architectures of its weights and the ways to carry the edit home.
METHODS = {"flow": (("twin",), ("field",))}
#: Weights that read a variable off a scan when nobody says it.
READERS = {"age": "age-2mm"}

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

    def conditions(self, known: Condition, changes: Changes) -> Condition:
        """The condition that changes lead to from what is known of a scan.

        Raises:
            ConditionError: out of the weights' range, or relative to something unknown.
        """
        return check(apply(changes, known), self.facts.variables, self.clip)


def plan(
    preset: Preset,
    sweep: Sequence[Changes],
    told: Condition,
    weights: str | None = None,
    steps: int | None = None,
    clip: bool = False,
) -> Plan:
    """Choose weights and check that preset, weights and conditions go together, without loading anything heavy.

    Args:
        preset: as it is shipped.
        sweep: the edits to make of each scan.
        told: what is said of every scan.
        weights: a name or path instead of the preset's own choice, the first that knows all that is changed.
        steps: network evaluations instead of the preset's.
    Raises:
        PresetError: the preset cannot edit, or the weights are of another kind.
        WeightsError: there are no such weights. ConditionError: they cannot do what is asked.
    """
    if "edit" not in preset.tasks or preset.method not in METHODS:
        raise PresetError(f"preset {preset.name}: cannot edit scans; try --preset twin")
    architectures, carries = METHODS[preset.method]
    changed = {change.name for changes in sweep for change in changes}
    names = [weights] if weights else list(preset.weights[preset.main_role])
    known = [(name, facts_of(name)) for name in names]
    able = [(name, facts) for name, facts in known if changed <= set(changeable(facts))]
    name, facts = (able or known)[0]
    if facts.architecture not in architectures:
        needed = " or ".join(architectures)
        raise PresetError(f"preset {preset.name}: needs {needed} weights, and {name} are {facts.architecture}")
    label = name if locate(name)[1] else Path(name).stem
    preset = preset.with_weights(label).override(steps=steps)
    if preset.carry not in carries:
        raise PresetError(f"preset {preset.name}: a {preset.method} method is carried by {', '.join(carries)}")
    with warnings.catch_warnings():
        # Each scan gets its own warning of what is clipped.
        warnings.simplefilter("ignore", CftoolsWarning)
        check(told, facts.variables, clip)
        for changes in sweep:
            _check_changes(facts, changes, clip)
    return Plan(preset, name, facts, clip)


def changeable(facts: Facts) -> tuple[str, ...]:
    """The variables that weights can change; the others they can only be told."""
    names = tuple(facts.variables)
    return tuple(names[index] for index in facts.architecture_arguments.get("changes", range(len(names))))


def _check_changes(facts: Facts, changes: Changes, clip: bool) -> None:
    for change in changes:
        check(Condition({change.name: None if change.relative else change.value}), facts.variables, clip)
        if change.name not in changeable(facts):
            can = ", ".join(changeable(facts)) or "nothing"
            raise ConditionError(f"these weights can change {can}; {change.name} they can only be told (--from)")
        if change.value is None:
            raise ConditionError(f"{change.name}: name a value to change it to")
        if change.relative and facts.variables[change.name].kind != "number":
            raise ConditionError(f"{change.entity}: only a number can be added to, and {change.name} is none")


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit of one scan.

    Attributes:
        volume: on the scan's own grid.
        source, target: what the scan was taken to be, and what it was made.
        similarity: of the scan's registration to the template.
        provenance: for the sidecar.
    """

    changes: Changes
    volume: Volume
    source: Condition
    target: Condition
    similarity: float
    provenance: Provenance

    def save(self, path: Path, force: bool = False) -> None:
        """Write the image and the sidecar beside it.

        The image comes last: where there is one it is complete, whenever the command was killed.

        Raises:
            OutputError: one of them exists, or cannot be written.
        """
        write_sidecar(path, self.provenance, force=force)
        self.volume.save(path, force=force)


class Editor:
    """Edits one scan after another; network and weights are loaded once, while the first scan is registered.

    Args:
        plan: what to edit with.
        device: says which device to use; called once torch is there.
        seed: for the record; a flow draws nothing at random.
    """

    def __init__(self, plan: Plan, device: Callable[[], torch.device], seed: int = 0) -> None:
        self.plan = plan
        self.seed = seed
        self._device = device
        self._loading: Future[tuple[FlowMethod, Checkpoint]] | None = None
        self._readers: dict[str, tuple[ScalarReader, Checkpoint]] = {}

    def edit(
        self, volume: Volume, known: Condition, sweep: Sequence[Changes], dataset: Path | None = None
    ) -> Iterator[Edited]:
        """Each edit of a scan in turn, the scan prepared once.

        Args:
            volume: the scan.
            known: what is known of it; what must be and is not, a model reads off the scan.
            dataset: the BIDS folder it belongs to, for the record.
        Raises:
            ConditionError: something is unknown, or out of range. VolumeError, RegistrationError: as `prepare`.
        Warns:
            CftoolsWarning: a value is a model's guess, or was clipped.
        """
        facts = self.plan.facts
        name = str(volume.path or "standard input (-)")
        if volume.path and contrast_of(volume.path) not in facts.contrasts:
            made_for = f"{self.plan.weights} were made for {', '.join(facts.contrasts)}"
            text = f"{name}: is a {contrast_of(volume.path)} scan by its name, and {made_for}"
            warnings.warn(text, CftoolsWarning, stacklevel=2)
        missing = _missing(known, sweep)
        for each in missing:
            _find_reader(each)
        # Before the expensive part, unless what is known is not complete yet.
        conditions = None if missing else self._conditions(known, sweep)

        from cftools.prepare import prepare

        self._start_loading()
        prepared = prepare(volume, _grid(facts))
        guesses = {each: self._guess(each, prepared, name) for each in missing}
        source, targets = conditions or self._conditions(known.do(**guesses), sweep)
        method, checkpoint = self._loaded()
        used = {self.plan.preset.main_role: checkpoint}
        used.update({f"{each} reader": self._readers[each][1] for each in missing})
        for changes, target in zip(sweep, targets, strict=True):
            provenance = Provenance(
                command=self._command(changes, source, name),
                sources=(source_name(volume.path or "stdin", dataset),),
                skull_stripped=facts.skull_stripped,
                preset=self.plan.preset,
                weights=used,
                source=source,
                target=target,
                seed=self.seed,
                details=self._details(prepared, guesses),
            )
            array = self._edited(method, prepared, source, target)
            yield Edited(
                changes, volume.with_array(array), source, target, prepared.similarity, provenance
            )

    def _conditions(self, known: Condition, sweep: Sequence[Changes]) -> tuple[Condition, list[Condition]]:
        source = check(known, self.plan.facts.variables, self.plan.clip)
        return source, [self.plan.conditions(known, changes) for changes in sweep]

    def _edited(
        self, method: FlowMethod, prepared: Prepared, source: Condition, target: Condition
    ) -> np.ndarray:
        import torch

        from cftools.carry import carry_field

        with torch.inference_mode():
            sampling: Any = self.plan.preset.sampling
            deformation = method.edit(prepared, source, target, sampling.steps)
            return carry_field(prepared, deformation.displacement, deformation.residual)

    def _guess(self, name: str, prepared: Prepared, scan: str) -> Value:
        """What a model reads off the scan, with a warning that gives its error."""
        import torch

        from cftools.methods import ScalarReader

        if name not in self._readers:
            checkpoint = load(READERS[name])
            if checkpoint.facts.grid != self.plan.facts.grid:
                raise WeightsError(f"{READERS[name]}: made for another grid than {self.plan.weights}")
            self._readers[name] = (ScalarReader(checkpoint, self._device()), checkpoint)
        reader, _ = self._readers[name]
        with torch.inference_mode():
            value = round(reader.read(prepared), 1)
        unit = f" {reader.variable.unit}" if reader.variable.unit else ""
        error = f"off by {reader.error:.1f}{unit} on average" if reader.error == reader.error else "error unknown"
        text = f"{scan}: its {name} is a guess from the image, {value:g}{unit} ({error}): better give --from {name}=..."
        warnings.warn(text, CftoolsWarning, stacklevel=2)
        return value

    def _start_loading(self) -> None:
        """Importing torch takes as long as a registration, and the two go side by side."""
        if self._loading is None:
            with_one_thread = ThreadPoolExecutor(max_workers=1)
            self._loading = with_one_thread.submit(self._load)
            with_one_thread.shutdown(wait=False)

    def _load(self) -> tuple[FlowMethod, Checkpoint]:
        from cftools.methods import FlowMethod

        checkpoint = load(self.plan.weights)
        return {"flow": FlowMethod}[self.plan.preset.method](checkpoint, self._device()), checkpoint

    def _loaded(self) -> tuple[FlowMethod, Checkpoint]:
        assert self._loading is not None
        return self._loading.result()

    def _details(self, prepared: Prepared, guesses: dict[str, Value]) -> dict[str, Any]:
        method, _ = self._loaded()
        details: dict[str, Any] = {
            "device": method.device.type,
            "registration": {"similarity": round(prepared.similarity, 4)},
        }
        if guesses:
            details["guessed"] = guesses
        return details

    def _command(self, changes: Changes, source: Condition, scan: str) -> str:
        """The command that makes this image alone, whatever sweep or batch it came from."""
        preset = self.plan.preset
        sampling: Any = preset.sampling
        words = ["cf-edit", "--preset", preset.name, "--weights", preset.weights[preset.main_role][0]]
        words += ["--steps", str(sampling.steps)]
        for change in changes:
            words += ["--set", f"{change.name}={_text(change.value, signed=change.relative)}"]
        told = [f"{name}={_text(value)}" for name, value in source.items() if value is not None]
        if told:
            words += ["--from", ",".join(told)]
        if self.plan.clip:
            words.append("--clip")
        return command_line([*words, Path(scan).name])


def _missing(known: Condition, sweep: Iterable[Changes]) -> list[str]:
    """What is to be changed and is not known."""
    names = dict.fromkeys(change.name for changes in sweep for change in changes)
    return [name for name in names if known.get(name) is None]


def _find_reader(name: str) -> None:
    """Raises ConditionError: nothing can read this variable off a scan."""
    hint = f"the scan's own {name} is unknown: give it with --from {name}=..."
    if name not in READERS:
        raise ConditionError(hint)
    try:
        locate(READERS[name])
    except WeightsError:
        raise ConditionError(f"{hint} (there is no {READERS[name]} to read it off the scan)") from None


def _grid(facts: Facts) -> Grid:
    import numpy as np

    from cftools.prepare import Grid

    x, y, z = facts.grid.shape
    return Grid(facts.grid.name, (x, y, z), np.array(facts.grid.affine))


def _text(value: Value, signed: bool = False) -> str:
    """A value as one types it."""
    if not isinstance(value, float):
        return str(value)
    digits = format(Decimal(repr(value)), "f").removesuffix(".0")
    return f"+{digits}" if signed and value >= 0 else digits
