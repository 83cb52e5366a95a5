"""Plain facts that stand in a latent's metadata: its space, its grid, its scan, and how far it has come.

The dataclasses are the schema; `cftools.schema.read` makes them of JSON and refuses what does not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cftools.condition import Condition, Value
from cftools.errors import ConditionError
from cftools.schema import FrozenMapping

#: Version of a latent's metadata; a file with a higher one was written by a newer cftools.
LATENT_FORMAT = 1

Kind = Literal["encoded", "state", "edited"]
_Row = tuple[float, float, float, float]
Affine = tuple[_Row, _Row, _Row, _Row]

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class GridFacts:
    """The grid that a network works on: voxels, and (4, 4) voxel indices -> MNI152 millimetres (RAS)."""

    name: str
    shape: tuple[int, ...]
    affine: Affine

    def __post_init__(self) -> None:
        _require(all(side >= 1 for side in self.shape), "shape must be 1 or more along each axis")
        _require_affine("affine", self.affine)


@dataclass(frozen=True)
class SpaceFacts:
    """Which space latents live in; fixed by training, with nothing left to remember between encode and decode.

    Attributes:
        kind: identity, wavelet, vae or vq.
        shape: sides of the image before padding, 2 or 3 of them.
        channels: of a latent.
        factor: image voxels to a latent's along each axis.
        divisor: latent sides are a multiple of it, for which the image is padded.
        scale: what latents are multiplied by so that their spread is near 1: all channels of a vae or vq, the
            lowest band of a wavelet (1/3 in WDM).
    """

    kind: Literal["identity", "wavelet", "vae", "vq"]
    shape: tuple[int, ...]
    channels: int
    factor: int = 1
    divisor: int = 1
    scale: float = 1.0

    def __post_init__(self) -> None:
        _require(len(self.shape) in (2, 3), f"an image has 2 or 3 sides, not {len(self.shape)}")
        numbers = (*self.shape, self.channels, self.factor, self.divisor)
        _require(min(numbers) >= 1, "shape, channels, factor and divisor must be 1 or more")
        _require(max(numbers) < 1 << 16, "shape, channels, factor and divisor must be at most 65535")
        _require(self.scale > 0, "scale must be above 0")
        if self.kind == "identity":
            _require(self.factor == 1 and self.scale == 1, "an identity has factor 1 and scale 1")
        if self.kind == "wavelet":
            bands = 2 ** len(self.shape)
            _require(self.factor == 2, "a wavelet has factor 2")
            _require(self.channels % bands == 0, f"wavelet channels must be a multiple of {bands}")

    @property
    def padded(self) -> tuple[int, ...]:
        """Sides of the image that is encoded: the next multiples of factor times divisor."""
        multiple = self.factor * self.divisor
        return tuple(-(-side // multiple) * multiple for side in self.shape)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, *sides) of a latent."""
        return self.channels, *(side // self.factor for side in self.padded)


@dataclass(frozen=True)
class DiffusionFacts:
    """What a denoiser was trained to say, and in which space.

    Attributes:
        path: by name, with its settings: `diffusion.path.make_path(path, **settings)`.
        prediction: what the network says.
        learned_variance: it says a log-variance too.
        clip: range of training images that x_0 keeps to, low and high; empty for none.
        space: sha256 of the weights of its space; empty where the space has none.
        channels: what it sees beside x_t, by the names of `sampling.CHANNELS`, in order.
        patch: sides of the windows it was trained on, in the space's voxels; empty for whole images.
    """

    path: str
    prediction: Literal["eps", "x0", "v", "flow"]
    settings: Mapping[str, float] = FrozenMapping()
    learned_variance: bool = False
    clip: tuple[float, ...] = ()
    space: str = ""
    channels: tuple[str, ...] = ()
    patch: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require(len(self.clip) in (0, 2), "clip must be empty, or low and high")
        _require(len(self.clip) == 0 or self.clip[0] < self.clip[1], "clip must have low below high")
        _require(not self.space or _DIGEST.fullmatch(self.space) is not None, "space must be 64 hexadecimal digits")


@dataclass(frozen=True)
class TokenFacts:
    """Whose tokens a transformer draws: sha256 of the weights of its space."""

    space: str

    def __post_init__(self) -> None:
        _require(_DIGEST.fullmatch(self.space) is not None, "space must be 64 hexadecimal digits")


@dataclass(frozen=True)
class ScanFacts:
    """The scan behind a latent, and its way to the grid, so that cf-decode need not register it again.

    Attributes:
        name: the scan, as `provenance.source_name` gives it.
        contrast: BIDS suffix, such as T1w.
        shape, affine: the scan's own grid, voxel indices -> native world mm (RAS).
        sha256: of its intensities, as `latent.voxel_sha256` gives it.
        to_mni: native world mm -> MNI152 world mm.
        offset, scale: intensity on the grid = (native - offset) / scale.
        similarity: of the registration; None where there was none.
    """

    name: str
    contrast: str
    shape: tuple[int, int, int]
    affine: Affine
    sha256: str
    to_mni: Affine
    offset: float
    scale: float
    similarity: float | None = None

    def __post_init__(self) -> None:
        _require(min(self.shape) >= 1, "shape must be 1 or more along each axis")
        _require_affine("affine", self.affine)
        _require_affine("to_mni", self.to_mni)
        _require(_DIGEST.fullmatch(self.sha256) is not None, "sha256 must be 64 hexadecimal digits")
        _require(self.scale != 0, "scale must not be 0")


@dataclass(frozen=True)
class WeightsUsed:
    """Weights by name and sha256 of their file."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        _require(_DIGEST.fullmatch(self.sha256) is not None, "sha256 must be 64 hexadecimal digits")


@dataclass(frozen=True)
class StateFacts:
    """Where on its path x_t lies, and how it came there.

    Attributes:
        time: t in (0, 1].
        path: x_t = alpha x_0 + sigma eps, by name.
        start: as in the preset: prior, noised, inverted or recorded.
        solver, steps: what came up here, in how many moves; what comes down had better be the same.
        evaluations: of the network.
        residual: worst relative residual of an inversion's fixed points, or None.
    """

    time: float
    path: str
    start: Literal["prior", "noised", "inverted", "recorded"]
    solver: str
    steps: int
    evaluations: int = 0
    residual: float | None = None

    def __post_init__(self) -> None:
        _require(0 < self.time <= 1, "time must be above 0 and at most 1")
        _require(self.steps >= 1 and self.evaluations >= 0, "steps or evaluations are too few")
        _require(self.residual is None or self.residual >= 0, "residual must not be negative")


@dataclass(frozen=True)
class Target:
    """What a scan was made: a condition, whole, and the value of desc- in a file's name, such as agePlus30."""

    condition: Mapping[str, Value]
    entity: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "condition", as_condition(self.condition))
        _require(re.fullmatch("[A-Za-z0-9]*", self.entity) is not None, "entity must be letters and digits")


@dataclass(frozen=True)
class LatentFacts:
    """What goes with the tensors.

    Attributes:
        preset: its name.
        resolved: all of it, with the flags so far in it, as `Preset.table` gives it.
        weights: by role.
        space, grid: where the latent lives, and the image it decodes to.
        seed: of the random draws.
        scan: None where none was given (synthesis).
        source: what the scan was taken to be, a Condition; None in it is the null token.
        guessed: variables of the source that a model read off the scan.
        state: where x_t lies; edits keep where they started from.
        targets: one for each edit.
        provenance: the commands so far, one a line.
    """

    kind: Kind
    preset: str
    weights: Mapping[str, WeightsUsed]
    space: SpaceFacts
    grid: GridFacts
    seed: int = 0
    scan: ScanFacts | None = None
    source: Mapping[str, Value] = Condition()
    guessed: tuple[str, ...] = ()
    state: StateFacts | None = None
    targets: tuple[Target, ...] = ()
    provenance: tuple[str, ...] = ()
    resolved: Mapping[str, Mapping[str, Any]] = FrozenMapping()
    format: int = LATENT_FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_condition(self.source))
        three = len(self.space.shape) == 3
        _require(not three or self.space.shape == self.grid.shape, "the space's shape is not the grid's")
        _require(self.seed >= 0, "seed must not be negative")
        _require(all(line and line.isprintable() for line in self.provenance), "provenance must be lines of text")
        _require((self.kind == "edited") == bool(self.targets), "edits, and only they, have targets")
        _require(self.kind != "state" or self.state is not None, "a state needs to say where it is")
        _require(self.kind != "encoded" or self.state is None, "an encoded scan is on no path")


def as_condition(values: Mapping[str, Value]) -> Condition:
    """The values as a Condition, with a ValueError where they are none, as a schema wants it."""
    try:
        return values if isinstance(values, Condition) else Condition(values)
    except ConditionError as error:
        raise ValueError(str(error)) from None


def _require_affine(name: str, rows: Affine) -> None:
    (a, b, c, _), (d, e, f, _), (g, h, i, _), last = rows
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    _require(last == (0, 0, 0, 1) and 0 < abs(determinant) < math.inf, f"{name} is no affine that can be inverted")


def _require(fits: bool, otherwise: str) -> None:
    if not fits:
        raise ValueError(otherwise)
