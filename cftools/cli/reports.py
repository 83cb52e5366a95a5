"""HTML pages of what a command made, or of files that exist."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli import terminal
from cftools.cli.terminal import running
from cftools.errors import CftoolsWarning, InputError, OutputError, UsageError, WeightsError

if TYPE_CHECKING:
    from cftools.cli.batch import Record
    from cftools.editing import Edited
    from cftools.prepare import Prepared
    from cftools.volume import Volume

INDEX = "index.html"
ENDING = ".html"
_UNMEASURED = "Not measured: the weights that tell volumes are not installed (cf-weights list)."


class Reports:
    """Writes a page for each scan as it is edited: one file, or a folder of pages with an index.

    Args:
        destination: of --report; None writes nothing.
        scans: names of all scans.
        force: replace pages that exist.
        skip_existing: replace pages, and only pages, that cftools wrote: their scans are made anew.
        several: whether there are other scans, of another shard perhaps.
    Raises:
        UsageError: several scans and one file. OutputError: a page exists, or has no folder to go to.
    """

    def __init__(
        self,
        destination: Path | None,
        scans: Sequence[str],
        force: bool,
        skip_existing: bool,
        several: bool = False,
    ) -> None:
        self._folder: Path | None = None
        self._pages: dict[str, Path] = {}
        self._edits: dict[str, list[Edited]] = {}
        if destination is None:
            return
        if destination.exists() and not destination.is_dir() and destination.suffix != ENDING:
            raise OutputError(f"{destination}: is no folder, and a page's name ends in {ENDING}")
        if destination.suffix == ENDING and not destination.is_dir():
            if several or len(scans) > 1:
                raise UsageError(f"--report {destination}: several scans have a page each: name a folder")
            if not destination.parent.is_dir():
                raise OutputError(f"{destination}: the folder {destination.parent} does not exist: make it first")
            self._pages = dict.fromkeys(scans, destination)
        else:
            self._folder = destination
            self._pages = {scan: destination / _page_name(scan) for scan in scans}
            if len(set(self._pages.values())) < len(scans):
                raise UsageError(f"--report {destination}: two scans have one name: use two folders")
            self._check(destination / INDEX, ours=True)
        above = next(folder for folder in destination.absolute().parents if folder.exists())
        for folder in (above, *([destination] if destination.is_dir() else [])):
            if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
                raise OutputError(f"{destination}: {folder} is no folder that can be written to: name another one")
        if not force:
            for page in self._pages.values():
                self._check(page, ours=skip_existing)

    @property
    def measures(self) -> bool:
        """Whether pages are written and structures can be measured for them."""
        return bool(self._pages) and _can_measure()

    def add(self, scan: str, edited: Edited) -> None:
        """Keep an edit for the page of its scan."""
        if scan in self._pages:
            self._edits.setdefault(scan, []).append(edited)

    def end(self, record: Record[Any]) -> None:
        """Write the page of a scan whose edits are all made, or, into a folder, one that says why they are not."""
        page, edits = self._pages.get(record.name), self._edits.pop(record.name, [])
        if page is None:
            return
        if record.error:
            if self._folder is not None:
                from cftools.report import failure_page

                self._write(page, failure_page(Path(record.name).name, record.error, _command()))
        elif edits:
            self._write(page, _page_of(edits, record.warnings))
            if self._folder is None:
                terminal.result(page)

    def finish(self) -> None:
        """Write the index of a folder, of these pages and of all that lie there already."""
        if self._folder is not None and self._folder.is_dir():
            from cftools.report import index_page

            self._write(self._folder / INDEX, index_page(self._folder))
            terminal.result(self._folder / INDEX)

    def _check(self, page: Path, ours: bool) -> None:
        """Raise an OutputError if a page must not be written; those of ours may be replaced if so said."""
        from cftools.report import is_report

        if page.exists() and not (ours and is_report(page)):
            raise OutputError(f"{page}: exists already: --force replaces it")

    def _write(self, page: Path, html: str) -> None:
        from cftools.volume import write_atomic

        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{self._folder}: cannot be made ({error.strerror}): name another folder") from None
        # Whether it may replace another was checked before the work.
        write_atomic(page, html.encode(errors="replace"), force=True)


def page_of_files(
    before: Volume,
    after: Sequence[Volume],
    labels: Sequence[str],
    at: tuple[float, float, float] | None = None,
    radiological: bool = False,
    limit: float | None = None,
) -> str:
    """The page of a scan and its edits that exist as files, with what the JSON beside them says.

    The scan is prepared as for an edit, for its brain and its place in the template; where that cannot be done the
    page says why and is without them.

    Raises:
        VolumeError: they are not on one grid. UsageError: as `scan_page`; labels too few or too many.
    """
    from cftools.report import ReportedEdit, ScanReport, scan_page

    if labels and len(labels) != 1 + len(after):
        raise UsageError(f"{len(labels)} labels for {1 + len(after)} images: give each its own")
    for volume in after:
        before.check_same_grid(volume)
    with warnings.catch_warnings(record=True) as caught:
        prepared, notes = _prepared(before)
        volumes = _measured(prepared, after) if prepared is not None and _can_measure() else None
    for each in caught:
        warnings.showwarning(each.message, each.category, each.filename, each.lineno)
    notes += [str(each.message) for each in caught if issubclass(each.category, CftoolsWarning)]
    titles = labels[1:] if labels else [""] * len(after)
    measured = volumes[1:] if volumes else [None] * len(after)
    edits = [
        ReportedEdit(volume, _sidecar(volume), found, title)
        for volume, found, title in zip(after, measured, titles, strict=True)
    ]
    report = ScanReport(
        name=labels[0] if labels else _name(before),
        before=before,
        edits=edits,
        mask=prepared.mask if prepared else None,
        to_mni=prepared.to_mni if prepared else None,
        similarity=prepared.similarity if prepared else None,
        volumes=volumes[0] if volumes else None,
        unmeasured=_UNMEASURED,
        warnings=notes,
        command=_command(),
    )
    return scan_page(report, at, radiological, limit)


def _page_of(edits: Sequence[Edited], notes: Sequence[str]) -> str:
    from cftools.report import ReportedEdit, ScanReport, scan_page

    first = edits[0]
    volume = first.prepared.volume
    reported = [
        ReportedEdit(edit.volume, edit.provenance.document(), edit.volumes[1] if edit.volumes else None)
        for edit in edits
    ]
    return scan_page(
        ScanReport(
            name=_name(volume),
            before=volume,
            edits=reported,
            mask=first.prepared.mask,
            to_mni=first.prepared.to_mni,
            similarity=first.similarity,
            volumes=first.volumes[0] if first.volumes else None,
            unmeasured=_UNMEASURED,
            warnings=notes,
            command=_command(),
        )
    )


def _page_name(scan: str) -> str:
    """sub-01_T1w.html for .../sub-01_T1w.nii.gz; never the index's own name."""
    stem = Path(scan).name.removesuffix(".gz")
    stem = stem.rpartition(".")[0] or stem
    stem = "stdin" if stem == "-" else stem
    return f"{stem}_scan{ENDING}" if f"{stem}{ENDING}" == INDEX else f"{stem}{ENDING}"


def _command() -> str:
    return shlex.join([running.name, *running.words])


def _name(volume: Volume) -> str:
    return volume.path.name if volume.path else "standard input"


def _prepared(volume: Volume) -> tuple[Prepared | None, list[str]]:
    """The scan with its brain and its way to the template, or why there is none."""
    from cftools.cli import options
    from cftools.heads import Preparer
    from cftools.prepare import GRID_2MM

    try:
        return Preparer(GRID_2MM, lambda: options.choose_device("cpu"))(volume), []
    except InputError as error:
        return None, [f"Without outlines: {error}"]


def _can_measure() -> bool:
    from cftools.planning import bundled
    from cftools.preset import load_preset

    try:
        return bool(bundled(load_preset("tissues")))
    except WeightsError:
        return False


def _measured(prepared: Prepared, after: Sequence[Volume]) -> list[Mapping[str, float]]:
    """Volumes of the scan and of each edit, ml."""
    from cftools.cli import options
    from cftools.heads import Preparer
    from cftools.volumes import TISSUES, TissueReader
    from cftools.weights import load

    reader = TissueReader(load(TISSUES, expect="segmenter"))
    preparer = Preparer(prepared.grid, lambda: options.choose_device("cpu"))
    edits = [preparer.again(prepared, volume.array) for volume in after]
    return [reader.volumes(each) for each in (prepared, *edits)]


def _sidecar(volume: Volume) -> dict[str, Any]:
    """The JSON that stands beside an image, where cftools wrote it."""
    from cftools.described import is_sidecar
    from cftools.provenance import sidecar_path

    if volume.path is None or not is_sidecar(sidecar_path(volume.path)):
        return {}
    content = json.loads(sidecar_path(volume.path).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
