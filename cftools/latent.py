"""The latent container: what cf-encode, cf-invert, cf-resample and cf-decode hand to one another.

One safetensors file or stream: an encoded scan (mean and std), a state x_t on the way to noise, or edits with the
factual resample beside them; and in its metadata all that the next command needs to go on where the last one
stopped: conditions, preset, weights' sha256, space, grid, and the scan's way there. The same latent gives the same
bytes, and numbers come back to the bit, so a pipe gives what one command would.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cftools.condition import Condition
from cftools.errors import LatentError, OutputError
from cftools.facts import (
    LATENT_FORMAT,
    Affine,
    Kind,
    LatentFacts,
    ScanFacts,
    StateFacts,
    Target,
    WeightsUsed,
    as_condition,
)
from cftools.nifti import printable
from cftools.schema import FrozenMapping, plain, read
from cftools.tensorfile import SUFFIX, Origin, parse_json, read_head
from cftools.volume import Volume, write_atomic

METADATA_KEY = "cftools_latent"
#: Hundreds of edits need a tenth of this.
LARGEST_HEADER = 1 << 20
#: What makes each kind.
MAKERS = {"encoded": "cf-encode", "state": "cf-invert", "edited": "cf-resample"}

_SOLVER = "solver."
_SOLVER_NAME = re.compile(r"solver\.[a-z][a-z0-9_]*")
_REMEDY = "make it anew with cf-encode"
_IMAGES = (b"\x1f\x8b", b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c", b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")


@dataclass(frozen=True, eq=False)
class Latent:
    """A scan in the space of a model, on its way through the pipe.

    Attributes:
        facts: what goes with the tensors.
        tensors: float32, all (N, C, *sides), N being 1, or the slices of a scan where the space is 2D. Encoded:
            mean, std. State: x_t; mean and std or neither; solver.NAME, with any axes in front, what a solver
            or a tape needs to go on. Edited: edited.0, edited.1, ... in order of the targets, and factual, the
            resample under the source's own condition, unless it was not asked for.
        name: what messages call it.
    Raises:
        LatentError: a tensor is missing, foreign, of another shape, or not finite.
    """

    facts: LatentFacts
    tensors: Mapping[str, np.ndarray] = field(repr=False)
    name: str = "the latent"

    def __post_init__(self) -> None:
        # Contiguous, always: safetensors writes the memory of other arrays as if they were. Copies, of which torch
        # can make tensors: bytes that were read cannot be written to.
        tensors = {key: np.array(array, np.float32, order="C") for key, array in self.tensors.items()}
        object.__setattr__(self, "tensors", FrozenMapping(tensors))
        _check_shapes(self.facts, {key: array.shape for key, array in tensors.items()}, self.name)
        for key, array in tensors.items():
            if not np.isfinite(array).all():
                raise LatentError(f"{self.name}: its {key} holds NaN or infinity: {_REMEDY}")
        if "std" in tensors and tensors["std"].min() < 0:
            raise LatentError(f"{self.name}: its std is below 0: {_REMEDY}")

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """Read a file, checking all of it.

        Raises:
            LatentError: missing, no ordinary file, or as `from_bytes`.
        """
        path = Path(path)
        name = printable(path)
        try:
            if not path.is_file():  # a FIFO would block
                what = "is not an ordinary file" if path.exists() else "does not exist"
                raise LatentError(f"{name}: {what}: name a latent (- reads stdin)")
            data = path.read_bytes()
        except OSError as error:
            raise LatentError(f"{name}: cannot be read ({error.strerror}): check its permissions") from None
        return cls.from_bytes(data, name)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "-") -> Latent:
        """Read the bytes of a file, as they come from stdin.

        Args:
            name: for messages; - is standard input.
        Raises:
            LatentError: empty, an image, a pickle, cut short, longer than it says, with tensors that overlap or
                are not what its metadata say, without metadata or from a newer cftools, NaN. One line.
        """
        origin = Origin("standard input (-)" if name == "-" else name, _REMEDY, LatentError)
        if data.startswith(_IMAGES):
            raise LatentError(f"{origin.name}: is an image, not a latent: run cf-encode on it")
        head = read_head(data, origin, LARGEST_HEADER)
        facts = _facts(head.metadata, origin)
        for key, place in head.tensors.items():
            if place.dtype != "F32":
                raise origin.refuse(f"its {key} is {place.dtype}, and latents are F32")
        # On the shapes' word nothing is allocated: they are those of the file, and of its facts.
        _check_shapes(facts, {key: place.shape for key, place in head.tensors.items()}, origin.name)
        tensors = {
            key: np.frombuffer(data, "<f4", math.prod(place.shape), place.start).reshape(place.shape)
            for key, place in head.tensors.items()
        }
        return cls(facts, tensors, origin.name)

    def to_bytes(self) -> bytes:
        """The bytes of a file: the same latent always gives the same, and they give the same latent."""
        from safetensors.numpy import save

        _read_facts(plain(self.facts), Origin(self.name, _REMEDY, LatentError))
        text = json.dumps(plain(self.facts), ensure_ascii=True, allow_nan=False, sort_keys=True)
        return save(dict(self.tensors), {METADATA_KEY: text})

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write a file whole or not at all.

        Raises:
            OutputError: its name does not end in .safetensors; it exists already, or cannot be written.
        """
        if Path(path).suffix.lower() != SUFFIX:
            raise OutputError(f"{printable(path)}: latents are {SUFFIX} files: give it that ending")
        write_atomic(path, self.to_bytes(), force)

    def as_state(
        self,
        x_t: np.ndarray,
        state: StateFacts,
        solver: Mapping[str, np.ndarray] | None = None,
        weights: Mapping[str, WeightsUsed] | None = None,
        command: str = "",
    ) -> Latent:
        """The latent brought to a time on a path; mean and std stay with it.

        Args:
            x_t: (N, C, *sides).
            solver: what the solver or a tape needs to go on, by name; (..., N, C, *sides).
            weights: that were used for it, by role, beside those before.
            command: for the provenance.
        """
        kept = {key: self.tensors[key] for key in ("mean", "std") if key in self.tensors}
        carried = {f"{_SOLVER}{key}": array for key, array in (solver or {}).items()}
        facts = replace(self._after(command, weights), kind="state", state=state, targets=())
        return Latent(facts, {**kept, "x_t": x_t, **carried}, self.name)

    def as_edits(
        self,
        targets: Sequence[Target],
        edited: Sequence[np.ndarray],
        factual: np.ndarray | None = None,
        weights: Mapping[str, WeightsUsed] | None = None,
        command: str = "",
    ) -> Latent:
        """What was resampled from a latent: one edit a target, and the factual, each (N, C, *sides)."""
        tensors = {f"edited.{index}": array for index, array in enumerate(edited)}
        if factual is not None:
            tensors["factual"] = factual
        facts = replace(self._after(command, weights), kind="edited", targets=tuple(targets))
        return Latent(facts, tensors, self.name)

    @property
    def source(self) -> Condition:
        """What the scan was taken to be."""
        return as_condition(self.facts.source)

    @property
    def targets(self) -> tuple[Condition, ...]:
        """What it was made, edit by edit."""
        return tuple(as_condition(target.condition) for target in self.facts.targets)

    @property
    def edited(self) -> tuple[np.ndarray, ...]:
        """The edits in the order of the targets, each (N, C, *sides)."""
        return tuple(self.tensors[f"edited.{index}"] for index in range(len(self.facts.targets)))

    @property
    def solver(self) -> dict[str, np.ndarray]:
        """What the solver or a tape left with a state, by name."""
        return {key.removeprefix(_SOLVER): self.tensors[key] for key in self.tensors if key.startswith(_SOLVER)}

    def check(self, weights_sha256: str, role: str = "space") -> None:
        """Raise a LatentError unless the latent was made with these weights in this role."""
        used = self.facts.weights.get(role)
        if used is None:
            raise LatentError(f"{self.name}: was made without any weights as {role}: {_REMEDY}")
        if used.sha256 != weights_sha256:
            found = f"{printable(used.name)} ({used.sha256[:12]}), and these are others ({weights_sha256[:12]})"
            raise LatentError(f"{self.name}: its {role} weights were {found}: use the same, or encode again")

    def check_kind(self, *kinds: Kind) -> None:
        """Raise a LatentError unless the latent is of one of these kinds."""
        if self.facts.kind not in kinds:
            needed = " or ".join(f"what {MAKERS[kind]} writes" for kind in kinds)
            raise LatentError(f"{self.name}: is what {MAKERS[self.facts.kind]} writes: give {needed}")

    def check_onto(self, volume: Volume) -> None:
        """Raise a LatentError unless this is the very scan that the latent was made from."""
        scan = self.facts.scan
        if scan is None:
            raise LatentError(f"{self.name}: was made from no scan: decode it on the model's grid")
        placed = np.allclose(volume.affine, scan.affine, atol=1e-3)
        if volume.array.shape != scan.shape or not placed or voxel_sha256(volume) != scan.sha256:
            of = printable(scan.name)
            raise LatentError(f"{self.name}: was made from another scan ({of}): decode it onto that one")

    def _after(self, command: str, weights: Mapping[str, WeightsUsed] | None) -> LatentFacts:
        used = FrozenMapping({**self.facts.weights, **(weights or {})})
        lines = [printable(command)] if command else []
        return replace(self.facts, weights=used, provenance=(*self.facts.provenance, *lines))


def affine_rows(matrix: np.ndarray) -> Affine:
    """A (4, 4) matrix as the facts hold it; its doubles come back to the bit."""
    (a, b, c, d) = (tuple(float(number) for number in row) for row in matrix)
    rows: Any = (a, b, c, d)
    return rows


def scan_facts(
    volume: Volume,
    name: str,
    contrast: str,
    to_mni: np.ndarray,
    offset: float,
    scale: float,
    similarity: float = math.nan,
) -> ScanFacts:
    """The facts of a scan that was brought to a grid: arguments as the attributes, nan for no similarity."""
    x, y, z = volume.array.shape
    return ScanFacts(
        name=name,
        contrast=contrast,
        shape=(x, y, z),
        affine=affine_rows(volume.affine),
        sha256=voxel_sha256(volume),
        to_mni=affine_rows(to_mni),
        offset=float(offset),
        scale=float(scale),
        similarity=None if math.isnan(similarity) else float(similarity),
    )


def voxel_sha256(volume: Volume) -> str:
    """Tells scans apart that share a grid: the sha256 of their intensities, little-endian float32, x fastest."""
    return hashlib.sha256(volume.array.astype("<f4", copy=False).tobytes(order="F")).hexdigest()


def _facts(metadata: Mapping[str, str], origin: Origin) -> LatentFacts:
    text = metadata.get(METADATA_KEY)
    if text is None:
        what = "holds weights, not a latent" if "cftools" in metadata else "has no metadata of a latent"
        raise origin.refuse(what)
    table = parse_json(text, origin, "metadata")
    version = table.get("format") if isinstance(table, dict) else None
    if isinstance(version, int) and version > LATENT_FORMAT:
        raise LatentError(f"{origin.name}: written by a newer cftools (format {str(version)[:20]}): update cftools")
    return _read_facts(table, origin)


def _read_facts(table: object, origin: Origin) -> LatentFacts:
    return read(LatentFacts, table, f"{origin.name}: metadata", LatentError)


def _check_shapes(facts: LatentFacts, shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raise a LatentError unless these are the tensors that the facts speak of, in shapes that go together."""
    edits = [f"edited.{index}" for index in range(len(facts.targets))]
    needed = {"encoded": ["mean", "std"], "state": ["x_t"], "edited": edits}[facts.kind]
    if facts.kind == "state" and shapes.keys() & {"mean", "std"}:
        needed = [*needed, "mean", "std"]
    if missing := [key for key in needed if key not in shapes]:
        raise LatentError(f"{name}: its {missing[0]} is missing: {_REMEDY}")
    allowed = {*needed, *(["factual"] if facts.kind == "edited" else [])}
    first, *_ = needed
    count = shapes[first][:1]
    for key, shape in [(first, shapes[first]), *shapes.items()]:  # the one whose count is taken, first
        carried = facts.kind == "state" and _SOLVER_NAME.fullmatch(key)
        if not carried and key not in allowed:
            raise LatentError(f"{name}: {key[:60]!r} has no place in what {MAKERS[facts.kind]} writes: {_REMEDY}")
        expected = (*count, *facts.space.latent_shape)
        if (shape[-len(expected) :] if carried else shape) != expected or 0 in shape:
            right = ", ".join(map(str, facts.space.latent_shape))[:60]
            raise LatentError(f"{name}: its {key} is {str(shape)[:60]} and its space has (N, {right}): {_REMEDY}")
