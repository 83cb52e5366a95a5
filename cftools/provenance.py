"""Provenance: the JSON beside each image that says how it came about, and dataset_description.json above.

There is no time of day and no absolute path in them: the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Protocol

from cftools import __version__
from cftools.condition import Condition
from cftools.errors import OutputError
from cftools.preset import Preset
from cftools.schema import FrozenMapping, plain

BIDS_VERSION = "1.10.0"
#: What can move a number in the result.
LIBRARIES = ("SimpleITK", "monai", "nibabel", "nilearn", "numpy", "safetensors", "scipy", "torch")
#: Options that decide where, when or on which scans a command works, never what comes out for one scan.
UNRECORDED_OPTIONS = {
    **dict.fromkeys(("--shard", "--json", "--summary"), 1),
    **dict.fromkeys(("--force", "--skip-existing", "-q", "--quiet", "-v", "-vv", "--verbose"), 0),
}


class Named(Protocol):
    """Weights, loaded or as a latent remembers them."""

    @property
    def name(self) -> str:
        """Bundled, or of the file."""

    @property
    def sha256(self) -> str:
        """Of the file."""


@dataclass(frozen=True)
class Provenance:
    """How one image came about.

    Attributes:
        command: as `command_line` gives it.
        sources: the images it was made from, as `source_name` gives them.
        skull_stripped: whether the image is.
        preset: resolved, with the flags in it; None where there is none.
        weights: by role.
        source, target: what the scan was taken to be, and what it was made.
        seed: of the random draws.
        spatial_reference: what the image is aligned to, where its file name does not say.
        bids: further keys of the sidecar itself, such as Age and Sex of a simulated subject.
        details: more plain values, such as what was guessed or clipped.
    """

    command: str
    sources: tuple[str, ...]
    skull_stripped: bool
    preset: Preset | None = None
    weights: Mapping[str, Named] = FrozenMapping()
    source: Condition | None = None
    target: Condition | None = None
    seed: int | None = None
    spatial_reference: str | None = None
    bids: Mapping[str, Any] = FrozenMapping()
    details: Mapping[str, Any] = FrozenMapping()

    def document(self) -> dict[str, Any]:
        """The sidecar's content: BIDS keys above, ours below "cftools"; what is None is left out."""
        weights = {role: {"name": used.name, "sha256": used.sha256} for role, used in self.weights.items()}
        condition = {"source": plain(self.source), "target": plain(self.target)}
        own = {
            "command": self.command,
            "preset": self.preset and self.preset.resolved(),
            "weights": weights or None,
            "condition": condition if self.target is not None else None,
            "seed": self.seed,
            "details": plain(self.details) or None,
            "versions": versions(),
        }
        bids = {
            **plain(self.bids),
            "Sources": list(self.sources),
            "SkullStripped": self.skull_stripped,
            "SpatialReference": self.spatial_reference,
            "cftools": {key: value for key, value in own.items() if value is not None},
        }
        return {key: value for key, value in bids.items() if value is not None}

    def content(self) -> bytes:
        """The bytes of the sidecar: the same provenance always gives the same."""
        return _json(self.document())


def write_sidecar(image: str | Path, provenance: Provenance, force: bool = False) -> Path:
    """Write the JSON that stands beside an image, and return its path.

    Raises:
        OutputError: it exists already, or cannot be written.
    """
    from cftools.volume import write_atomic

    path = sidecar_path(image)
    write_atomic(path, provenance.content(), force=force)
    return path


def sidecar_path(image: str | Path) -> Path:
    """scan.nii.gz -> scan.json; any other ending is replaced likewise."""
    image = Path(image)
    is_nifti = image.name.endswith(".nii.gz")
    return image.with_name((image.name.removesuffix(".nii.gz") if is_nifti else image.stem) + ".json")


def dataset_description(
    folder: str | Path, name: str, raw: bool = False, ignore: Sequence[str] = (), **more: Any
) -> Path:
    """Write dataset_description.json into a folder unless there is one, which is kept whatever it holds.

    Every task of an array job writes the same bytes, so whichever comes first is right.

    Args:
        raw: whether the dataset is raw, such as a simulated cohort, and no derivative.
        ignore: patterns of files that are not of BIDS, for .bidsignore.
        more: further BIDS keys, such as Authors, License or DatasetLinks.
    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / "dataset_description.json"
    content = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw" if raw else "derivative",
        "GeneratedBy": [{"Name": "cftools", "Version": __version__}],
        **more,
    }
    kept_or_written(path, _json(content))
    if ignore:
        kept_or_written(path.with_name(".bidsignore"), "".join(line + "\n" for line in ignore).encode())
    return path


def kept_or_written(path: Path, data: bytes) -> None:
    """Write a file unless there is one, also where another task of an array job is about to write the same.

    Raises:
        OutputError: it cannot be written.
    """
    from cftools.volume import write_atomic

    try:
        write_atomic(path, data)
    except OutputError:
        if not path.exists():
            raise


def source_name(image: str | Path, dataset: str | Path | None = None, link: str = "raw") -> str:
    """An image for Sources: bids:raw:sub-01/anat/... within a dataset, else its file name alone.

    Args:
        dataset: the BIDS folder it lies in, which dataset_description.json calls `link` under DatasetLinks;
            with an empty link it is the output's own dataset.
    """
    if dataset is None:
        return Path(image).name
    inside = PurePath(image).relative_to(dataset)
    return f"bids:{link}:{inside.as_posix()}"


def command_line(arguments: Sequence[str]) -> str:
    """A command for the record: the program without its folder, without options that change no result."""
    words = [Path(arguments[0]).name]
    skip = 0
    for word in arguments[1:]:
        if skip:
            skip -= 1
            continue
        option, equals, _ = word.partition("=")
        if option in UNRECORDED_OPTIONS:
            skip = 0 if equals else UNRECORDED_OPTIONS[option]
        else:
            words.append(word)
    return shlex.join(words)


@cache
def versions() -> dict[str, str]:
    """Versions of cftools, Python and the libraries that compute, where installed; nothing is imported."""
    found = {"cftools": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
