"""Which scans a command line names, where their results go, and whether they can go there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cftools.cli import terminal
from cftools.errors import OutputError, UsageError

if TYPE_CHECKING:
    from cftools.planning import Changes

IMAGE_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Job:
    """One scan, and where its edits go.

    Attributes:
        scan: None is stdin.
        edits: each output, None for stdout, and what is changed in it.
        dataset, derivatives: the BIDS folders it was found in and goes to; None for a scan named by itself.
    """

    scan: Path | None
    edits: tuple[tuple[Path | None, Changes], ...]
    dataset: Path | None = None
    derivatives: Path | None = None

    def __str__(self) -> str:
        return str(self.scan or "-")


def list_jobs(
    words: Sequence[str],
    output: str | None,
    labels: Sequence[str],
    sweep: Sequence[Changes],
    contrast: str,
) -> list[Job]:
    """Scans and outputs from the words of a command line.

    Args:
        output: of -o; without it the second of two words.
        labels: participants of a BIDS folder to keep.
        sweep: the edits to make of each scan.
        contrast: which scans of a BIDS folder to take.
    Raises:
        UsageError: they make no sense together. InputError: a BIDS folder has no such scan.
    """
    words = list(words)
    if output is None and len(words) > 1:
        if len(words) > 2:
            raise UsageError(f"{len(words)} scans: name a folder for the results with -o DIR")
        output = words.pop()
    if any(_is_dataset(word) for word in words):
        return _jobs_of_dataset(words, output, labels, sweep, contrast)
    if labels:
        raise UsageError(f"--participant-label goes with a BIDS folder, and {words[0]} is none")
    several = len(words) > 1 or len(sweep) > 1
    if "-" in words and len(words) > 1:
        raise UsageError("- is stdin: it cannot be one of several scans")
    if words == ["-"] and output is None:
        output = "-"
    scan = None if words[0] == "-" else Path(words[0])
    if output == "-":
        if several:
            raise UsageError("- is stdout: it takes one image; name a folder with -o DIR")
        return [Job(scan, ((None, sweep[0]),))]
    if output is not None and not is_folder(output, several):
        if not Path(output).parent.is_dir():
            raise OutputError(f"{output}: the folder {Path(output).parent} does not exist: make it first")
        return [Job(scan, ((Path(output), sweep[0]),))]
    if scan is None:
        raise UsageError("- is stdin, which has no name: name the output image")
    return [_job(Path(word), Path(output) if output else Path(word).parent, sweep) for word in words]


def check_outputs(jobs: Sequence[Job], json: str | None, force: bool, skip_existing: bool, sure: bool) -> list[Job]:
    """The jobs that are left to do, once every output can be written and harms no input.

    Args:
        json: of --json.
        sure: whether an output is surely meant as one. The second of two words may be a scan that a glob
            found, and is then not replaced even with --force unless it was made by cftools.
    Raises:
        UsageError, OutputError: an output exists, comes twice, is an input, or has no folder it can go to.
    """
    from cftools.provenance import sidecar_path

    scans = [job.scan for job in jobs if job.scan is not None]
    inputs = {_identity(path) for scan in scans for path in (scan, sidecar_path(scan))} - {None}
    makers: dict[Path, Job] = {}
    left: list[Job] = []
    skipped = 0
    for job in jobs:
        edits: list[tuple[Path | None, Changes]] = []
        for path, changes in job.edits:
            if path is None:
                if json == "-":
                    raise UsageError("stdout takes the image or --json -, not both: name a file for one")
                terminal.write_bytes(b"")  # refuses a terminal now rather than after the work
            else:
                sidecar = sidecar_path(path)
                if {_identity(path), _identity(sidecar)} & inputs:
                    raise OutputError(f"{path}: it, or the JSON beside it, is an input: name another output")
                place = _place(sidecar)
                if place in makers:
                    raise UsageError(f"{path}: would come from {makers[place]} and {job}: use two folders")
                makers[place] = job
                if skip_existing and path.exists():
                    skipped += 1
                    continue
                _check_output(path, sidecar, force, sure)
            edits.append((path, changes))
        if edits:
            left.append(replace(job, edits=tuple(edits)))
    if json and json != "-":
        place = Path(json).resolve()
        if not place.parent.is_dir():
            raise OutputError(f"--json {json}: the folder {place.parent} does not exist: make it first")
        if place in makers or _identity(place) in inputs:
            raise UsageError(f"--json {json}: is the JSON of an image: name another file")
        _check_output(Path(json), Path(json), force, sure=True)
    if skipped:
        terminal.say(f"{skipped} of {skipped + sum(len(job.edits) for job in left)} exist already, left out")
    return left


def check_files(
    outputs: Mapping[Path, tuple[str, ...]],
    inputs: Iterable[Path | str | None],
    force: bool,
    others: Iterable[Path] = (),
    folders: bool = False,
) -> None:
    """Raise an OutputError or a UsageError unless every output can be written and harms no input.

    Args:
        outputs: with the endings that each may have.
        inputs: files that are read; - and None are none.
        others: images and tables that are written too, checked elsewhere.
        folders: whether the folders of outputs are made when absent.
    """
    from cftools.provenance import sidecar_path

    named = [Path(one) for one in inputs if one is not None and str(one) != "-"]
    read = {_identity(path) for one in named for path in (one, sidecar_path(one))} - {None}
    seen = {_place(one) for path in others for one in (path, sidecar_path(path))}
    for path, endings in outputs.items():
        if str(path) == "-" or not str(path).lower().endswith(endings):
            raise OutputError(f"{path}: such a file ends in {' or '.join(endings)}: name it so")
        sidecar = sidecar_path(path) if endings == IMAGE_ENDINGS else path
        places = {_place(one) for one in (path, sidecar)}
        if places & seen:
            raise UsageError(f"{path}: is named for two outputs: use two files")
        seen |= places
        if {_identity(path), _identity(sidecar)} & read:
            raise OutputError(f"{path}: it, or the JSON beside it, is an input: name another output")
        if not folders and not path.parent.is_dir():
            raise OutputError(f"{path}: the folder {path.parent} does not exist: make it first")
        _check_output(path, sidecar, force, sure=True)


def check_tables(names: Iterable[str | None], inputs: Iterable[str | None], force: bool) -> None:
    """`check_files` for JSON and tables as they are named on the command line, with any ending; - is stdout."""
    check_files({Path(name): ("",) for name in names if name and name != "-"}, inputs, force)


def check_folder(folder: Path, force: bool) -> None:
    """Raise an OutputError unless a folder is there or can be made, and is empty or may be written over."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise OutputError(f"{folder}: exists and is not empty; name another folder or use --force")
    _check_writable(folder, folder)


def _is_dataset(word: str) -> bool:
    # A folder named like an image is one that is refused as such.
    return os.path.isdir(word) and not word.endswith(IMAGE_ENDINGS)


def _jobs_of_dataset(
    words: Sequence[str],
    output: str | None,
    labels: Sequence[str],
    sweep: Sequence[Changes],
    contrast: str,
) -> list[Job]:
    from cftools.cohort import find_scans

    dataset = Path(words[0])
    if len(words) > 1:
        raise UsageError("a BIDS folder goes alone: edit folders one by one, and scans without them")
    if output is None or not is_folder(output, several=True):
        raise UsageError(f"{dataset}: is a folder: name a folder for the derivatives too")
    root = Path(output)
    if root.resolve() == dataset.resolve():
        raise UsageError(f"{dataset}: is the dataset itself: name another folder for the derivatives")
    found = [scan.path for scan in find_scans(dataset, contrast, labels)]
    jobs = [_job(path, root / path.parent.relative_to(dataset), sweep) for path in found]
    return [replace(job, dataset=dataset, derivatives=root) for job in jobs]


def _job(scan: Path, folder: Path, sweep: Sequence[Changes]) -> Job:
    """A scan whose outputs have their default names in a folder."""
    from cftools.cohort import described
    from cftools.condition import entity

    return Job(scan, tuple((folder / described(scan, entity(changes)), changes) for changes in sweep))


def is_folder(output: str, several: bool) -> bool:
    """Whether an output is a folder; else it is one image."""
    if output.endswith("/") or os.path.isdir(output):
        return True
    is_image = output.lower().endswith(IMAGE_ENDINGS)
    if several and (is_image or output == "-"):
        raise UsageError(f"{output}: several images need a folder: name one with -o DIR")
    if not several and not is_image:
        raise OutputError(f"{output}: an image ends in .nii or .nii.gz, and a new folder in /")
    return several


def _check_output(path: Path, sidecar: Path, force: bool, sure: bool) -> None:
    """Raise an OutputError if an image, or the JSON beside it, cannot or must not be written."""
    from cftools.editing import is_sidecar

    ours = is_sidecar(sidecar)
    for each in (path, sidecar):
        if not _is_there(each) or (each != path and ours):
            continue
        if each.is_dir():
            raise OutputError(f"{each}: is a folder: name another output")
        if each.exists() and not each.is_file():
            raise OutputError(f"{each}: is not an ordinary file: name another output")
        if not force:
            raise OutputError(f"{each}: exists already: --force replaces it; several scans go with -o DIR")
        if not (sure or ours):
            raise OutputError(f"{each}: was not made by cftools: to replace it nevertheless, name it with -o")
    _check_writable(path, path.parent)


def _check_writable(output: Path, folder: Path) -> None:
    """Raise an OutputError unless a folder, or the nearest one above it that there is, can be written to."""
    whole = folder.absolute()
    above = next(one for one in (whole, *whole.parents) if os.path.exists(one))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: {above} is no folder that can be written to: name another one")


def _is_there(path: Path) -> bool:
    """Whether there is anything under a name, be it a link to nowhere.

    Raises:
        OutputError: nothing can have this name.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}): name another output") from None
    return True


def _place(path: Path) -> Path:
    """The same for two ways to write one name, whether or not there is a file."""
    return path.parent.resolve() / path.name


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for two names of one file, None for no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
