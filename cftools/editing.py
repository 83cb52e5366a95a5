"""Editing scans: a preset with its weights, checked before any work and loaded once for all scans."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cftools.cohort import contrast_of
from cftools.condition import Condition, Value, apply, check
from cftools.errors import CftoolsWarning, ConditionError, OutputError, WeightsError
from cftools.planning import METHODS, Changes, Plan
from cftools.preset import Preset
from cftools.provenance import Provenance, command_line, sidecar_path, source_name, write_sidecar
from cftools.weights import Checkpoint, Facts, installed, load

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cftools.heads import Preparer
    from cftools.methods import ScalarReader
    from cftools.prepare import Grid, Prepared
    from cftools.volume import Volume
    from cftools.volumes import TissueReader


#: Weights that read a variable off a scan when nobody says it.
READERS = {"age": "age-2mm"}


class Method(Protocol):
    """What edits prepared scans; made by `of(preset, weights, device)`."""

    device: torch.device

    def edits(
        self, preset: Preset, prepared: Prepared, source: Condition, targets: Sequence[Condition], seed: int = 0
    ) -> Iterator[np.ndarray]:
        """The scan under each condition in turn, on its own grid."""

    def spread(
        self, preset: Preset, prepared: Prepared, source: Condition, target: Condition, seed: int = 0
    ) -> tuple[str, Iterator[np.ndarray]]:
        """The same edit made in other ways that are as good, and in words which."""


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit of one scan.

    Attributes:
        volume: on the scan's own grid.
        source, target: what the scan was taken to be, and what it was made.
        similarity: of the scan's registration to the template.
        provenance: for the sidecar.
        volumes: ml of each of `volumes.VOLUMES` in the scan and in the edit; None where nobody asked.
        spread: standard deviation over the edit made in other ways, in the scan's intensities, and in words which; or
            None.
    """

    volume: Volume
    source: Condition
    target: Condition
    similarity: float
    provenance: Provenance
    volumes: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    spread: tuple[str, Volume] | None = None

    def save(self, path: Path, force: bool = False) -> None:
        """Write the image and the sidecar beside it.

        The image comes last: where there is one it is complete, whenever the command was killed.

        Raises:
            OutputError: one of them exists, or cannot be written.
        """
        save_described(self.volume, self.provenance, path, force)


def save_described(volume: Volume, provenance: Provenance, path: Path, force: bool = False) -> None:
    """Write an image and the sidecar beside it; errors and order as `Edited.save`."""
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already: --force replaces it")
    # A JSON without an image is what a killed run leaves.
    sidecar = write_sidecar(path, provenance, force=force or is_sidecar(sidecar_path(path)))
    try:
        volume.save(path, force=force)
    except BaseException:
        sidecar.unlink(missing_ok=True)
        raise


def is_sidecar(sidecar: Path) -> bool:
    """Whether a JSON file is a sidecar that cftools wrote."""
    try:
        return "cftools" in json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


class Editor:
    """Edits one scan after another; network and weights are loaded once, when the first scan is sound.

    Args:
        plan: what to edit with.
        device: says which device to use; called once torch is there.
        seed: of all random draws.
        volumes: whether to measure structures before and after.
        spread: whether to make every edit in other ways too.
        stripped: the scans are brains cut out already, so that no brain is to be found in them.
    """

    def __init__(
        self,
        plan: Plan,
        device: Callable[[], torch.device],
        seed: int = 0,
        volumes: bool = False,
        spread: bool = False,
        stripped: bool = False,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.volumes = volumes
        self.spread = spread
        self.stripped = stripped
        self._device = device
        self._preparer: Preparer | None = None
        self._method: tuple[Method, dict[str, Checkpoint]] | None = None
        self._readers: dict[str, tuple[ScalarReader, Checkpoint]] = {}
        self._tissues: tuple[TissueReader, Checkpoint] | None = None

    def edit(
        self,
        volume: Volume,
        known: Condition,
        sweep: Sequence[Changes],
        dataset: Path | None = None,
        region: Volume | None = None,
        mask: Volume | None = None,
    ) -> Iterator[Edited]:
        """Each edit of a scan in turn, the scan prepared once.

        Args:
            volume: the scan, whole head or brain alone.
            known: what is known of it; what must be and is not, a model reads off the scan.
            dataset: the BIDS folder it belongs to, for the record.
            region: a mask on the scan's grid, where alone the edit may show, for a carry by region.
            mask: of the brain, on the scan's grid; None to find it.
        Raises:
            ConditionError: a value is unknown, or out of range.
            VolumeError, RegistrationError: as `Preparer`; a region that is no mask on the scan's grid.
        Warns:
            CftoolsWarning: another contrast by its name; a value is a model's guess, or was clipped.
        """
        preset, facts = self.plan.preset, self.plan.facts
        _check_contrast(volume, facts)
        where = volume.region(region) if region is not None else None
        names = dict.fromkeys(change.name for changes in sweep for change in changes)
        missing = [name for name in names if known.get(name) is None]
        for name in missing:
            _find_reader(name)
        # Before the expensive part, unless something is still to be read off the scan.
        conditions = None if missing else self._conditions(known, sweep)

        method, weights, prepared, guesses = self.opened(volume, missing, mask)
        prepared = replace(prepared, region=where)
        source, targets = conditions or self._conditions(known.do(**guesses), sweep)
        details = {
            "device": method.device.type,
            "registration": {"similarity": round(prepared.similarity, 4)},
            "guessed": guesses,
            "brain": prepared.found_by,
        }
        before = self._measured(prepared) if self.volumes else None
        if before is not None and self._tissues is not None:
            weights = weights | {"reader of volumes": self._tissues[1]}
        arrays = method.edits(preset, prepared, source, targets, self.seed)
        for changes, target, array in zip(sweep, targets, arrays, strict=True):
            provenance = Provenance(
                command=_command(self.plan, changes, source, volume, self.seed, region, mask, self.stripped),
                sources=(source_name(volume.path or "stdin", dataset),),
                skull_stripped=not prepared.found_by,
                preset=preset,
                weights=weights,
                source=source,
                target=target,
                seed=self.seed,
                details={key: value for key, value in details.items() if value},
            )
            edit = volume.with_array(array)
            after = self._measured(self.preparer.again(prepared, array)) if before is not None else None
            found = (before, after) if before is not None and after is not None else None
            spread = None
            if self.spread:
                words, others = method.spread(preset, prepared, source, target, self.seed)
                spread = (words, volume.with_array(_deviation(others)))
            yield Edited(edit, source, target, prepared.similarity, provenance, found, spread)

    @property
    def preparer(self) -> Preparer:
        """What brings scans to the model's grid."""
        from cftools.heads import Preparer

        if self._preparer is None:
            self._preparer = Preparer(_grid(self.plan.facts), self._device, self.stripped)
        return self._preparer

    def opened(
        self, volume: Volume, unknown: Sequence[str], mask: Volume | None = None
    ) -> tuple[Method, dict[str, Checkpoint], Prepared, dict[str, Value]]:
        """A scan on the model's grid, and what models read off it; with the method, and all weights by role.

        Raises:
            VolumeError, RegistrationError: as `Preparer`. WeightsError: damaged, or for another grid.
        """
        # The other way round, damaged weights would be found after a registration, for each scan anew.
        method, loaded = self._loaded()
        prepared = self.preparer(volume, mask)
        guesses = {name: self._guess(name, prepared) for name in unknown}
        readers = {f"reader of {name}": self._readers[name][1] for name in unknown}
        return method, loaded | readers | self.preparer.weights_of(prepared), prepared, guesses

    def _conditions(self, known: Condition, sweep: Sequence[Changes]) -> tuple[Condition, list[Condition]]:
        """Source and targets as the weights know them."""
        variables, clip = self.plan.facts.variables, self.plan.clip
        targets = [check(apply(changes, known), variables, clip) for changes in sweep]
        return check(known, variables, clip), targets

    def _guess(self, name: str, prepared: Prepared) -> Value:
        """What a model reads off the scan, with a warning that gives its error."""
        import torch

        from cftools.methods import ScalarReader

        if name not in self._readers:
            checkpoint = load(READERS[name], expect="reader")
            if checkpoint.facts.grid != self.plan.facts.grid:
                raise WeightsError(f"{READERS[name]}: made for another grid than {self.plan.weights}")
            self._readers[name] = (ScalarReader(checkpoint, self._device()), checkpoint)
        reader, _ = self._readers[name]
        with torch.inference_mode():
            value = round(reader.read(prepared), 1)
        unit = f" {reader.variable.unit}".rstrip()
        error = "of unknown error" if math.isnan(reader.error) else f"on average {reader.error:.1f}{unit} off"
        text = f"its {name} is a guess from the image: {value:g}{unit}, {error}; better give --from {name}=..."
        warnings.warn(f"{_name(prepared.volume)}: {text}", CftoolsWarning, stacklevel=2)
        return value

    def _measured(self, prepared: Prepared) -> dict[str, float]:
        """Volumes of a scan, ml."""
        from cftools.volumes import TISSUES, TissueReader

        if self._tissues is None:
            checkpoint = load(TISSUES, expect="segmenter")
            if checkpoint.facts.grid != self.plan.facts.grid:
                raise WeightsError(f"{TISSUES}: made for another grid than {self.plan.weights}")
            self._tissues = (TissueReader(checkpoint, self._device()), checkpoint)
        return self._tissues[0].volumes(prepared)

    def _loaded(self) -> tuple[Method, dict[str, Checkpoint]]:
        if self._method is None:
            module, name = METHODS[self.plan.preset.method].made_by
            made = getattr(importlib.import_module(module), name)
            self._method = made.of(self.plan.preset, self.plan.weights, self._device())
        return self._method


def _deviation(images: Iterator[np.ndarray]) -> np.ndarray:
    """Standard deviation over images of one shape, voxel by voxel, float32; one after the other (Welford 1962)."""
    import numpy as np

    mean = squares = np.zeros(())
    for count, image in enumerate(images, start=1):
        off = image - mean
        mean = mean + off / count
        squares = squares + off * (image - mean)
    return np.sqrt(squares / count).astype(np.float32)


def _check_contrast(volume: Volume, facts: Facts) -> None:
    contrast = contrast_of(volume.path) if volume.path else facts.contrasts[0]
    if contrast not in facts.contrasts:
        text = f"is a {contrast} scan by its name, and the weights were made for {', '.join(facts.contrasts)}"
        warnings.warn(f"{_name(volume)}: {text}", CftoolsWarning, stacklevel=2)


def readable(name: str) -> bool:
    """Whether a model can read this variable off a scan."""
    return name in READERS and installed(READERS[name])


def _find_reader(name: str) -> None:
    """Raise a ConditionError if nothing can read this variable off a scan."""
    if not readable(name):
        hint = f"the scan's own {name} is unknown: give it with --from {name}=..."
        lack = f" (there is no {READERS[name]} to read it off the scan)" if name in READERS else ""
        raise ConditionError(hint + lack)


def _grid(facts: Facts) -> Grid:
    import numpy as np

    from cftools.prepare import Grid

    x, y, z = facts.grid.shape
    return Grid(facts.grid.name, (x, y, z), np.array(facts.grid.affine))


def _command(
    plan: Plan,
    changes: Changes,
    source: Condition,
    volume: Volume,
    seed: int,
    region: Volume | None = None,
    mask: Volume | None = None,
    stripped: bool = False,
) -> str:
    """The command that makes one image alone, whatever sweep or batch it came from."""
    preset = plan.preset
    sampling: Any = preset.sampling
    words = ["cf-edit", "--preset", preset.name, "--weights", preset.weights[preset.main_role][0]]
    words += ["--steps", str(sampling.steps)]
    if len(METHODS[preset.method].carries) > 1:
        words += ["--carry", str(preset.carry)]
    for option, file in (("--region", region), ("--mask", mask)):
        if file is not None:
            words += [option, file.path.name if file.path else "-"]
    words += ["--prepared"] * stripped
    if (guidance := getattr(sampling, "guidance", None)) is not None:
        words += ["--guidance", f"{guidance:g}"]
    if seed:
        words += ["--seed", str(seed)]
    for change in changes:
        words += ["--set", f"{change.name}={_text(change.value, signed=change.relative)}"]
    told = [f"{name}={_text(value)}" for name, value in source.items() if value is not None]
    words += ["--from", ",".join(told), *(["--clip"] if plan.clip else [])]
    return command_line([*words, volume.path.name if volume.path else "-"])


def _name(volume: Volume) -> str:
    return str(volume.path or "-")


def _text(value: Value, signed: bool = False) -> str:
    """A value as one types it."""
    if not isinstance(value, float):
        return str(value)
    digits = format(Decimal(repr(value)), "f").removesuffix(".0")
    return f"+{digits}" if signed and value >= 0 else digits
