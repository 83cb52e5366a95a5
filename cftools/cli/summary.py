"""--summary: a table with a line for each scan of a cohort, written also when the work is interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cftools.cli.batch import Batch, Record
from cftools.errors import OutputError

NULL = "n/a"
FIRST = ("scan", "status", "seconds", "peak_mib")
#: How well a scan suits the model: of its registration, and of the model's own picture of it.
QUALITY = ("similarity", "reconstruction_db")
LAST = ("out_of_domain", "warnings", "error")


@contextmanager
def summarised(
    path: Path | None, quality: Sequence[str], jobs: Sequence[Any], done: Sequence[Any], force: bool, resume: bool
) -> Iterator[Batch[Any]]:
    """A batch to work through, whose records are written at the end, whatever that is.

    Args:
        path: of the table; None writes none.
        quality: columns that the command fills.
        jobs: all that are this process's, in order; done: those left out, their outputs being there.
        force: replace what is there; resume: replace an older summary, of which the lines of those left out stay.
    Raises:
        OutputError: there is something else, or it cannot be written.
    """
    columns = [*FIRST, *quality, *LAST]
    before = _read(path, columns, force, resume) if path else {}
    batch: Batch[Any] = Batch()
    for job in done:
        batch.skip(job, str(job))
    try:
        yield batch
    finally:
        if path:
            _write(path, columns, quality, [str(job) for job in jobs], batch, before, force or bool(before))


def cells(similarity: float, reconstruction: float | None) -> dict[str, str]:
    """QUALITY as text, without what there is not."""
    found = {"similarity": f"{similarity:.4f}"}
    return found if reconstruction is None else found | {"reconstruction_db": f"{reconstruction:.2f}"}


def _write(
    path: Path,
    columns: Sequence[str],
    quality: Sequence[str],
    order: Sequence[str],
    batch: Batch[Any],
    before: dict[str, list[str]],
    force: bool,
) -> None:
    from cftools.volume import write_atomic

    places = {name: place for place, name in enumerate(order)}
    records = sorted(batch.records, key=lambda record: places.get(record.name, len(places)))
    rows = [
        before[record.name] if record.status == "skipped" and record.name in before else _row(record, quality)
        for record in records
    ]
    lines = [columns, *rows]
    write_atomic(path, "".join("\t".join(line) + "\n" for line in lines).encode(errors="surrogateescape"), force=force)


def _row(record: Record[Any], quality: Sequence[str]) -> list[str]:
    worked = record.status != "skipped"
    first = [record.name, record.status, f"{record.seconds:.2f}" if worked else NULL, f"{record.peak_mib:.0f}"]
    domain = ("yes" if record.out_of_domain else "no") if worked else NULL
    last = [domain, "; ".join(record.warnings) or NULL, record.error or NULL]
    return [" ".join(cell.split()) for cell in (*first, *(record.quality.get(name, NULL) for name in quality), *last)]


def _read(path: Path, columns: Sequence[str], force: bool, resume: bool) -> dict[str, list[str]]:
    """The lines of an older summary by their scans."""
    if not path.exists() or force:
        return {}
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    if not resume or lines[:1] != [list(columns)]:
        raise OutputError(f"{path}: exists already: --force replaces it, and --skip-existing an older summary")
    # Its first line too, so that there is something to replace even when no scan is in it.
    return {line[0]: line for line in lines if len(line) == len(columns)}
