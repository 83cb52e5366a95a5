"""Which scans a command line names, where their results go, and whether they can go there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cftools.cli import terminal
from cftools.cli.shard import WHOLE, Shard
from cftools.errors import OutputError, UsageError

if TYPE_CHECKING:
    from cftools.cohort import Wanted
    from cftools.condition import Condition, Variable
    from cftools.planning import Changes
    from cftools.volume import Volume

IMAGE_ENDINGS = (".nii", ".nii.gz")
LATENT_ENDINGS = (".safetensors",)


@dataclass(frozen=True)
class Naming:
    """What comes of a scan, and how it is named.

    Attributes:
        sweep: what is changed in each of its outputs.
        name: the file name for a scan and a change.
        endings: that an output may have.
    """

    sweep: Sequence[Changes]
    name: Callable[[Path, Changes], str]
    endings: tuple[str, ...] = IMAGE_ENDINGS


@dataclass(frozen=True)
class Job:
    """One scan, and where what is made of it goes.

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


def list_jobs(words: Sequence[str], output: str | None, wanted: Wanted, naming: Naming) -> list[Job]:
    """Scans and outputs from the words of a command line.

    Args:
        output: of -o; without it the second of two words.
        wanted: which scans of a BIDS folder to take.
    Raises:
        UsageError: they make no sense together. InputError: a BIDS folder has no such scan.
    """
    words = list(words)
    if output is None and len(words) > 1:
        if len(words) > 2:
            raise UsageError(f"{len(words)} scans: name a folder for the results with -o DIR")
        output = words.pop()
    if any(_is_dataset(word) for word in words):
        return _jobs_of_dataset(words, output, wanted, naming)
    if wanted.participants or wanted.sessions:
        option = "--participant-label" if wanted.participants else "--session-label"
        raise UsageError(f"{option} goes with a BIDS folder, and {words[0]} is none")
    several = len(words) > 1 or len(naming.sweep) > 1
    if "-" in words and len(words) > 1:
        raise UsageError("- is stdin: it cannot be one of several scans")
    if words == ["-"] and output is None:
        output = "-"
    scan = None if words[0] == "-" else Path(words[0])
    if output == "-":
        if several:
            raise UsageError("- is stdout: it takes one output; name a folder with -o DIR")
        return [Job(scan, ((None, naming.sweep[0]),))]
    if output is not None and not is_folder(output, several, naming.endings):
        if not Path(output).parent.is_dir():
            raise OutputError(f"{output}: the folder {Path(output).parent} does not exist: make it first")
        return [Job(scan, ((Path(output), naming.sweep[0]),))]
    if scan is None:
        raise UsageError("- is stdin, which has no name: name the output")
    return [_job(Path(word), Path(output) if output else Path(word).parent, naming) for word in words]


@dataclass(frozen=True)
class Policy:
    """How the outputs of a command line are treated.

    Attributes:
        force: replace what is there. skip_existing: leave out what is there.
        shard: the part of the scans to do.
        sure: whether an output is surely meant as one. The second of two words may be a scan that a glob
            found, and is then not replaced even with --force unless it was made by cftools.
    Raises:
        UsageError: --force and --skip-existing together.
    """

    force: bool = False
    skip_existing: bool = False
    shard: Shard = WHOLE
    sure: bool = True

    def __post_init__(self) -> None:
        if self.force and self.skip_existing:
            raise UsageError("--force and --skip-existing contradict each other: choose one")


def check_outputs(jobs: Sequence[Job], json: str | None, policy: Policy) -> tuple[list[Job], list[Job]]:
    """This shard's jobs that are left to do, and those done, once every output can be written and harms no input.

    Args:
        json: of --json.
    Raises:
        UsageError, OutputError: an output exists, comes twice, is an input, or has no folder it can go to.
    """
    from cftools.provenance import sidecar_path

    makers = _makers(jobs)
    left: list[Job] = []
    done: list[Job] = []
    mine = policy.shard.of(jobs)
    for job in mine:
        edits: list[tuple[Path | None, Changes]] = []
        for path, changes in job.edits:
            if path is None:
                if json == "-":
                    raise UsageError("stdout takes the output or --json -, not both: name a file for one")
                terminal.write_bytes(b"")  # refuses a terminal now rather than after the work
            elif policy.skip_existing and path.exists():
                continue
            else:
                _check_output(path, sidecar_path(path), policy.force, policy.sure)
            edits.append((path, changes))
        if edits:
            left.append(replace(job, edits=tuple(edits)))
        else:
            done.append(job)
    if json and json != "-":
        _check_json(json, jobs, makers, policy)
    total = sum(len(job.edits) for job in mine)
    if skipped := total - sum(len(job.edits) for job in left):
        terminal.say(f"{skipped} of {total} exist already, left out")
    if not mine:
        terminal.say(f"--shard {policy.shard}: no scan is left for it, of {len(jobs)}")
    return left, done


def _makers(jobs: Sequence[Job]) -> dict[Path, Job]:
    """Whose output each place takes, over all shards; errors as `check_outputs`."""
    from cftools.provenance import sidecar_path

    inputs = _inputs(jobs)
    makers: dict[Path, Job] = {}
    for job in jobs:
        for path, _ in job.edits:
            if path is None:
                continue
            sidecar = sidecar_path(path)
            if {_identity(path), _identity(sidecar)} & inputs:
                raise OutputError(f"{path}: it, or the JSON beside it, is an input: name another output")
            place = _place(sidecar)
            if place in makers:
                raise UsageError(f"{path}: would come from {makers[place]} and {job}: use two folders")
            makers[place] = job
    return makers


def _inputs(jobs: Sequence[Job]) -> set[tuple[int, int] | None]:
    from cftools.provenance import sidecar_path

    scans = [job.scan for job in jobs if job.scan is not None]
    return {_identity(path) for scan in scans for path in (scan, sidecar_path(scan))} - {None}


def _check_json(json: str, jobs: Sequence[Job], makers: Mapping[Path, Job], policy: Policy) -> None:
    place = Path(json).resolve()
    if not place.parent.is_dir():
        raise OutputError(f"--json {json}: the folder {place.parent} does not exist: make it first")
    if place in makers or _identity(place) in _inputs(jobs):
        raise UsageError(f"--json {json}: is the JSON of an image: name another file")
    _check_output(Path(json), Path(json), policy.force, sure=True)


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


def _jobs_of_dataset(words: Sequence[str], output: str | None, wanted: Wanted, naming: Naming) -> list[Job]:
    from cftools.cohort import find_scans

    dataset = Path(words[0])
    if len(words) > 1:
        raise UsageError("a BIDS folder goes alone: edit folders one by one, and scans without them")
    if output is None or not is_folder(output, True, naming.endings):
        raise UsageError(f"{dataset}: is a folder: name a folder for the derivatives too")
    root = Path(output)
    if root.resolve() == dataset.resolve():
        raise UsageError(f"{dataset}: is the dataset itself: name another folder for the derivatives")
    found = [scan.path for scan in find_scans(dataset, wanted.contrast, wanted.participants, wanted.sessions)]
    jobs = [_job(path, root / path.parent.relative_to(dataset), naming) for path in found]
    return [replace(job, dataset=dataset, derivatives=root) for job in jobs]


def _job(scan: Path, folder: Path, naming: Naming) -> Job:
    """A scan whose outputs have their default names in a folder."""
    return Job(scan, tuple((folder / naming.name(scan, changes), changes) for changes in naming.sweep))


def is_folder(output: str, several: bool, endings: tuple[str, ...] = IMAGE_ENDINGS) -> bool:
    """Whether an output is a folder; else it is one file."""
    if output.endswith("/") or os.path.isdir(output):
        return True
    is_file = output.lower().endswith(endings)
    if several and (is_file or output == "-"):
        raise UsageError(f"{output}: several outputs need a folder: name one with -o DIR")
    if not several and not is_file:
        raise OutputError(f"{output}: such an output ends in {' or '.join(endings)}, and a new folder in /")
    return several


def read_scan(
    path: Path | None, index: int | None, variables: Mapping[str, Variable], told: Condition
) -> tuple[Volume, Condition]:
    """A scan, or stdin, and what is known of it: what the command line tells, else its sidecar and the tables.

    Args:
        index: which volume of a 4D image.
        variables: what to look for.
    Raises:
        VolumeError: it cannot be read. InputError: a table is bad.
    """
    from cftools.cohort import known_of
    from cftools.condition import Condition
    from cftools.volume import Volume

    known = Condition(dict.fromkeys(variables))
    if path is None:
        return Volume.from_bytes(terminal.read_bytes(), index=index), known.do(**told)
    if told.keys() != known.keys():
        known = known_of(path, variables)
    return Volume.load(path, index), known.do(**told)


def make_place(job: Job, path: Path, name: str, ignore: Sequence[str] = ()) -> None:
    """Make the folder of an output, and what must lie at the top of BIDS derivatives.

    Args:
        name: of the derivatives, for their dataset_description.json; ignore: what in them is not of BIDS.
    Raises:
        OutputError: they cannot be made.
    """
    from cftools.provenance import dataset_description

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made ({error.strerror}): name another folder") from None
    if job.dataset and job.derivatives:
        links = {"raw": os.path.relpath(job.dataset, job.derivatives)}
        dataset_description(job.derivatives, name, ignore=ignore, DatasetLinks=links)


def _check_output(path: Path, sidecar: Path, force: bool, sure: bool) -> None:
    """Raise an OutputError if an image, or the JSON beside it, cannot or must not be written."""
    from cftools.described import is_sidecar

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
