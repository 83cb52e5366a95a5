"""The HTML report: a page for each scan, whole in itself, and an index of the pages of a cohort.

A page loads nothing: pictures, style and script stand in it, and its content security policy forbids the rest. There
is no time of day in it: the same scan and edits give the same bytes. The index is made of what the pages say of
themselves, so tasks of an array job share nothing but the folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from cftools import __version__
from cftools.panels import panels, thumbnail
from cftools.paragraph import Record, label_of, paragraphs, record_of, told, with_minus
from cftools.slices import scene_of, to_ras
from cftools.volume import Volume

_ROW = re.compile(r'<script type="application/json" id="row">(.*?)</script>', re.DOTALL)
_PICTURE = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/=]*")


@dataclass(frozen=True, eq=False)
class ReportedEdit:
    """One edit, as a report shows it.

    Attributes:
        volume: on the scan's grid.
        sidecar: as `Provenance.document` gives it; empty where there is none.
        volumes: ml of each structure; None where they were not measured.
        label: its title; by default what the sidecar says was changed, else the file's name.
    """

    volume: Volume
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    volumes: Mapping[str, float] | None = None
    label: str = ""


@dataclass(frozen=True, eq=False)
class ScanReport:
    """All that the page of one scan tells.

    Attributes:
        name: of the scan.
        before: the scan; edits: one or more, on its grid.
        mask: the brain on its grid, bool; None shows no outline.
        to_mni: native world mm -> MNI152 world mm, (4, 4); None shows no template.
        similarity: of that registration.
        volumes: ml of each structure before; without them `unmeasured` says why.
        warnings: what was said about the scan and its edits.
        command: that made them all.
    """

    name: str
    before: Volume
    edits: Sequence[ReportedEdit]
    mask: np.ndarray | None = None
    to_mni: np.ndarray | None = None
    similarity: float | None = None
    volumes: Mapping[str, float] | None = None
    unmeasured: str = "Not measured: cf-edit --volumes does, where the weights for it are installed."
    warnings: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True)
class Row:
    """A scan's row in the index.

    Attributes:
        page: file of its page, beside the index.
        edits: labels of what was made; empty for a scan that failed.
        similarity: of its registration, None where that is unknown.
        warnings: how many.
        error: why it failed; empty for one that did not.
        before, after: thumbnails, as data URIs.
    """

    name: str
    page: str = ""
    edits: tuple[str, ...] = ()
    similarity: float | None = None
    warnings: int = 0
    error: str = ""
    before: str = ""
    after: str = ""

    @property
    def goodness(self) -> tuple[bool, float, int]:
        """What rows are sorted by, worst first: failures, then unlike the template, then many warnings."""
        unlike = -1.0 if self.similarity is None else self.similarity
        return not self.error, unlike, -self.warnings


def scan_page(
    report: ScanReport,
    at: tuple[float, float, float] | None = None,
    radiological: bool = False,
    limit: float | None = None,
) -> str:
    """The page of one scan, as HTML.

    Args:
        at, radiological, limit: as for `picture`.
    Raises:
        VolumeError: an edit is not on the scan's grid. UsageError: a position outside the scan.
    """
    for edit in report.edits:
        report.before.check_same_grid(edit.volume)
    edits = _sorted(report.edits)
    records = [record_of(edit.sidecar) for edit in edits]
    arrays = [to_ras(each.array, each.affine)[0] for each in (report.before, *(edit.volume for edit in edits))]
    mask = None if report.mask is None else to_ras(report.mask, report.before.affine)[0]
    scene = scene_of(report.before, arrays, at, radiological, limit, mask if mask is not None and mask.any() else None)
    labels = [_label(edit, record) for edit, record in zip(edits, records, strict=True)]
    shown = _most_changed(arrays)
    row = Row(
        name=report.name,
        edits=tuple(labels),
        similarity=report.similarity,
        warnings=len(report.warnings),
        before=thumbnail(scene, arrays[0]),
        after=thumbnail(scene, arrays[1 + shown]),
    )
    return _render(
        "report.html.j2",
        script="report.js",
        report=report,
        row=_row_facts(row),
        panels=panels(scene, arrays[0], arrays[1:], mask, report.to_mni),
        scene=scene,
        labels=labels,
        ticks=_ticks(records),
        shown=shown,
        source=_source(records),
        table=_volumes_table(report.volumes, [edit.volumes for edit in edits]),
        records=records,
        sidecars=[_pretty(edit.sidecar) for edit in edits],
        citations=list(dict.fromkeys(record.citation for record in records if record.citation)),
        paragraphs=paragraphs(records),
    )


def failure_page(name: str, error: str, command: str = "") -> str:
    """The page of a scan of which nothing came."""
    row = Row(name=name, error=error)
    return _render("failure.html.j2", name=name, error=error, command=command, row=_row_facts(row))


def index_page(folder: Path) -> str:
    """The index of all pages in a folder, worst first; files that are no pages of ours are left out."""
    rows = [row for path in sorted(folder.glob("*.html")) if (row := row_of(path)) is not None]
    rows.sort(key=lambda row: row.goodness)
    return _render("index.html.j2", script="index.js", rows=rows, failed=sum(bool(row.error) for row in rows))


def row_of(page: Path) -> Row | None:
    """What a page says of its scan; None for a file that is no page of ours."""
    try:
        found = _ROW.search(page.read_text(encoding="utf-8"))
        facts = json.loads(found[1]) if found else None
        if not isinstance(facts, dict):
            return None
        pictures = {key: facts[key] for key in ("before", "after") if _PICTURE.fullmatch(facts[key])}
        similarity = facts["similarity"]
        return Row(
            name=str(facts["name"]),
            page=page.name,
            edits=tuple(map(str, facts["edits"])),
            similarity=None if similarity is None else float(similarity),
            warnings=int(facts["warnings"]),
            error=str(facts["error"]),
            **pictures,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_report(path: Path) -> bool:
    """Whether a file is a page or an index that cftools wrote."""
    try:
        return b'<meta name="generator" content="cftools' in path.read_bytes()[:4096]
    except OSError:
        return False


def _row_facts(row: Row) -> dict[str, Any]:
    facts = asdict(row)
    del facts["page"]
    similarity = row.similarity
    return {**facts, "similarity": None if similarity is None or math.isnan(similarity) else round(similarity, 4)}


def _sorted(edits: Sequence[ReportedEdit]) -> list[ReportedEdit]:
    """By the number that alone they change, where there is one; else as they come."""
    numbers = _numbers([record_of(edit.sidecar) for edit in edits])
    if numbers is None:
        return list(edits)
    return [edits[place] for place in sorted(range(len(edits)), key=numbers.__getitem__)]


def _numbers(records: Sequence[Record]) -> list[float] | None:
    """What each edit made of the one number that all of them change; None where they change other things."""
    names = {tuple(record.changes) for record in records}
    values = [next(iter(record.changes.values()), (None, None))[1] for record in records]
    numbers = [value for value in values if isinstance(value, float)]
    return numbers if len(names) == 1 and len(next(iter(names))) == 1 and len(numbers) == len(values) else None


def _ticks(records: Sequence[Record]) -> list[str]:
    """Short marks for the slider; none where the edits have no numbers, or are too many for marks."""
    numbers = _numbers(records) or []
    return [f"{number:g}" for number in numbers] if len(numbers) <= 12 else []


def _label(edit: ReportedEdit, record: Record) -> str:
    if edit.label:
        return edit.label
    if record.target:
        return label_of(record)
    return edit.volume.path.name if edit.volume.path else "edit"


def _source(records: Sequence[Record]) -> list[str]:
    """What the scan was taken to be, once for each way in which it was."""
    said = []
    for record in records:
        if text := told(record.source):
            said.append(text + (f" ({', '.join(record.guessed)} guessed from the image)" if record.guessed else ""))
    return list(dict.fromkeys(said))


def _most_changed(arrays: Sequence[np.ndarray]) -> int:
    """Which edit is shown first."""
    return int(np.argmax([np.abs(array - arrays[0]).mean() for array in arrays[1:]]))


def _volumes_table(
    before: Mapping[str, float] | None, after: Sequence[Mapping[str, float] | None]
) -> dict[str, Any] | None:
    """Structures, their ml before, and for each edit ml and change in percent; None where nothing was measured."""
    if before is None or not any(after):
        return None
    rows = []
    for volumes in after:
        cells: list[tuple[str, str] | None] = []
        for name, reference in before.items():
            if volumes is None or name not in volumes:
                cells.append(None)
                continue
            change = f"{100 * (volumes[name] / reference - 1):+.1f} %" if reference else ""
            cells.append((f"{volumes[name]:.1f}", with_minus(change)))
        rows.append(cells)
    return {"names": list(before), "before": [f"{value:.1f}" for value in before.values()], "rows": rows}


def _pretty(sidecar: Mapping[str, Any]) -> str:
    return json.dumps(sidecar, indent=2, sort_keys=True, ensure_ascii=False) if sidecar else ""


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cftools", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figures"] = _figures
    return environment


def _figures(value: float) -> str:
    """A number to three figures, without an exponent where it can be done: 1640, not 1.64e+03."""
    return with_minus(f"{float(f'{value:.3g}'):g}")


def _render(template: str, script: str = "", **facts: Any) -> str:
    """A template with style and script within it, which alone may run: their hashes stand in the policy."""
    texts = {kind: _source_text(file) for kind, file in (("style", "style.css"), ("script", script)) if file}
    return (
        _environment()
        .get_template(template)
        .render(
            version=__version__,
            style=Markup(texts["style"]),
            style_hash=_hash(texts["style"]),
            script=Markup(texts.get("script", "")),
            script_hash=_hash(texts["script"]) if script else "",
            **facts,
        )
    )


@lru_cache
def _source_text(file: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, file)[0]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
