"""Editing scans: a preset with its weights, checked before any work and loaded once for all scans."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cftools.cohort import contrast_of
from cftools.condition import Condition, Value, apply, check
from cftools.errors import CftoolsWarning, ConditionError, DomainWarning, WeightsError
from cftools.planning import Changes, Plan, editing_command, on_device, opened
from cftools.preset import Preset
from cftools.provenance import Provenance, source_name
from cftools.weights import Checkpoint, Facts, installed, load

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cftools.heads import Preparer
    from cftools.methods import ScalarReader
    from cftools.prepare import Grid, Prepared
    from cftools.volume import Volume
    from cftools.volumes import TissueReader


#: What a model shows of a scan that it was made for, at least, dB: 25.7 (T2w twins) to 30 (docs/latent-diffusion.md).
LEAST_RECONSTRUCTION_DB = 24.0
#: Weights that read a variable off a scan when nobody says it.
READERS = {"age": "age-2mm"}
#: What people are taken for when nobody says it: most have no disease.
USUAL: Mapping[str, Value] = {"diagnosis": "CN"}


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

    def reconstruction(self, prepared: Prepared) -> float | None:
        """How well the model can show the scan at all, dB; None where it needs no latent of it."""


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan that all is known of but what a network must say.

    Attributes:
        prepared: on the model's grid.
        known: of the scan; unknown: what a model is still to read off it.
        sweep: the edits to make.
        region: the mask where alone they may show, or None.
        mask: of the brain, as it was given, or None.
    """

    prepared: Prepared
    known: Condition
    unknown: tuple[str, ...]
    sweep: Sequence[Changes] = ()
    region: Volume | None = None
    mask: Volume | None = None


@dataclass(frozen=True, eq=False)
class Edited:
    """One edit of one scan.

    Attributes:
        volume: on the scan's own grid.
        source, target: what the scan was taken to be, and what it was made.
        similarity: of the scan's registration to the template.
        prepared: the scan, its brain and its way to the template.
        provenance: for the sidecar.
        volumes: ml of each of `volumes.VOLUMES` in the scan and in the edit; None where nobody asked.
        spread: standard deviation over the edit made in other ways, in the scan's intensities, and in words which; or
            None.
        reconstruction: of the scan by the model, dB; None where nobody asked, or it needs none.
    """

    volume: Volume
    source: Condition
    target: Condition
    similarity: float
    prepared: Prepared
    provenance: Provenance
    volumes: tuple[Mapping[str, float], Mapping[str, float]] | None = None
    spread: tuple[str, Volume] | None = None
    reconstruction: float | None = None

    def save(self, path: Path, force: bool = False) -> None:
        """Write the image and the sidecar beside it.

        The image comes last: where there is one it is complete, whenever the command was killed.

        Raises:
            OutputError: one of them exists, or cannot be written.
        """
        from cftools.described import save_described

        save_described(self.volume, self.provenance, path, force)


class Editor:
    """Edits one scan after another; network and weights are loaded once, when the first scan is sound.

    Args:
        plan: what to edit with.
        device: says which device to use; called once torch is there.
        seed: of all random draws.
        volumes: whether to measure structures before and after.
        spread: whether to make every edit in other ways too.
        quality: whether to look how well the model can show each scan at all.
        stripped: the scans are brains cut out already, so that no brain is to be found in them.
    """

    def __init__(
        self,
        plan: Plan,
        device: Callable[[], torch.device],
        seed: int = 0,
        volumes: bool = False,
        spread: bool = False,
        quality: bool = False,
        stripped: bool = False,
    ) -> None:
        self.plan = plan
        self.seed = seed
        self.volumes = volumes
        self.spread = spread
        self.quality = quality
        self.stripped = stripped
        self._device = device
        self._preparer: Preparer | None = None
        self._method: tuple[Method, dict[str, Checkpoint]] | None = None
        self._readers: dict[str, tuple[ScalarReader, Checkpoint]] = {}
        self._tissues: tuple[TissueReader, Checkpoint] | None = None

    def ready(
        self,
        volume: Volume,
        known: Condition,
        sweep: Sequence[Changes] = (),
        region: Volume | None = None,
        mask: Volume | None = None,
    ) -> Ready:
        """A scan read to be edited; another scan may be edited meanwhile, in another thread.

        Args:
            volume: the scan, whole head or brain alone.
            known: what is known of it; what must be and is not, a model will read off the scan.
            sweep: the edits to make; without any, all is read off that can be.
            region: a mask on the scan's grid, where alone the edit may show, for a carry by region.
            mask: of the brain, on the scan's grid; None to find it.
        Raises:
            ConditionError: a value is unknown, or out of range.
            VolumeError, RegistrationError: as `Preparer`; a region that is no mask on the scan's grid.
            WeightsError: damaged.
        Warns:
            CftoolsWarning: another contrast by its name; a value is supposed, or was clipped.
        """
        facts = self.plan.facts
        _check_contrast(volume, facts)
        where = volume.region(region) if region is not None else None
        changed = dict.fromkeys(change.name for changes in sweep for change in changes)
        names = changed if sweep else [name for name in facts.variables if readable(name)]
        known = _supposed(known, changed, volume)
        unknown = tuple(name for name in names if known.get(name) is None)
        for name in unknown:
            _find_reader(name)
        if not unknown:  # before the expensive part, unless something is still to be read off the scan
            self._conditions(known, sweep)
        # The other way round, damaged weights would be found after a registration, for each scan anew.
        self._loaded()
        prepared = replace(self.preparer(volume, mask), region=where)
        return Ready(prepared, known, unknown, sweep, region, mask)

    def edits(self, ready: Ready, dataset: Path | None = None) -> Iterator[Edited]:
        """Each edit of a scan in turn.

        Args:
            dataset: the BIDS folder it belongs to, for the record.
        Raises:
            ConditionError: a value is out of range.
        Warns:
            CftoolsWarning: a value is a model's guess, or was clipped.
        """
        method, weights, guesses = self.opened(ready)
        preset, prepared, volume = self.plan.preset, ready.prepared, ready.prepared.volume
        source, targets = self._conditions(ready.known.do(**guesses), ready.sweep)
        reconstruction = self.reconstruction(ready)
        details = {
            "device": method.device.type,
            "registration": {"similarity": round(prepared.similarity, 4)},
            "guessed": guesses,
            "brain": prepared.found_by,
        }
        before = self._measured(prepared) if self.volumes else None
        if before is not None and self._tissues is not None:
            weights = weights | {"reader of volumes": self._tissues[1]}
        region, mask = (None if one is None else _file(one) for one in (ready.region, ready.mask))
        arrays = method.edits(preset, prepared, source, targets, self.seed)
        for changes, target, array in zip(ready.sweep, targets, arrays, strict=True):
            provenance = Provenance(
                command=editing_command(
                    self.plan, changes, source, _file(volume), self.seed, region, mask, self.stripped
                ),
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
            yield Edited(edit, source, target, prepared.similarity, prepared, provenance, found, spread, reconstruction)

    def once_more(self, ready: Ready, array: np.ndarray, source: Condition, target: Condition) -> np.ndarray:
        """An edit of what an earlier edit made of a scan, (I, J, K): nothing is registered anew.

        Args:
            array: the scan, or an edit of it.
            source, target: what it shows, and what it is to show; as the weights know them, and nothing is read off it.
        """
        prepared = ready.prepared
        if array is not prepared.volume.array:
            prepared = replace(self.preparer.again(prepared, array), region=prepared.region)
        method, _ = self._loaded()
        (made,) = method.edits(self.plan.preset, prepared, source, [target], self.seed)
        return made

    @property
    def preparer(self) -> Preparer:
        """What brings scans to the model's grid."""
        from cftools.heads import Preparer

        if self._preparer is None:
            self._preparer = Preparer(_grid(self.plan.facts), self._device, self.stripped)
        return self._preparer

    def opened(self, ready: Ready) -> tuple[Method, dict[str, Checkpoint], dict[str, Value]]:
        """The method, all weights by role, and what models read off the scan.

        Raises:
            WeightsError: damaged, or for another grid.
        """
        method, loaded = self._loaded()
        guesses = {name: self._guess(name, ready.prepared) for name in ready.unknown}
        readers = {f"reader of {name}": self._readers[name][1] for name in ready.unknown}
        return method, loaded | readers | self.preparer.weights_of(ready.prepared), guesses

    def reconstruction(self, ready: Ready) -> float | None:
        """How well the model can show the scan at all, dB; None where nobody asks or it need not.

        Warns:
            DomainWarning: not well.
        """
        if not self.quality:
            return None
        found = self._loaded()[0].reconstruction(ready.prepared)
        if found is not None and found < LEAST_RECONSTRUCTION_DB:
            text = f"the model can show it only to {found:.1f} dB, and scans like its own to 26 or more"
            warnings.warn(f"{_name(ready.prepared.volume)}: {text}: look at the result", DomainWarning, stacklevel=2)
        return found

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
            device = self._device()
            self.plan = on_device(self.plan, device)
            self._method = opened(self.plan, device)
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
        warnings.warn(f"{_name(volume)}: {text}", DomainWarning, stacklevel=2)


def _supposed(known: Condition, names: Iterable[str], volume: Volume) -> Condition:
    """What is known of a scan, with what is usual for those of the names that nobody said, and a warning."""
    usual = {name: USUAL[name] for name in names if name in USUAL and known.get(name) is None}
    for name, value in usual.items():
        text = f"its {name} is unknown, and taken to be {value}: better give --from {name}=..."
        warnings.warn(f"{_name(volume)}: {text}", CftoolsWarning, stacklevel=3)
    return known.do(**usual)


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


def _file(volume: Volume) -> str:
    return volume.path.name if volume.path else "-"


def _name(volume: Volume) -> str:
    return str(volume.path or "-")
