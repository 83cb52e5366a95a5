"""cf-weights: what the bundled weights are, and whether they are whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.batch import for_each
from cftools.cli.jobs import check_tables
from cftools.errors import UsageError, WeightsError


def list_weights(json: options.Json = None, force: options.Force = False) -> None:
    """List the bundled weights.

    Example:
        cf-weights list
        cf-weights list --json - | jq -r 'keys[]'
    """
    check_tables([json], [], force)
    from cftools.schema import plain
    from cftools.weights import index

    entries = index()
    rows = [
        (name, f"{entry.size / 2**20:.1f} MiB", ", ".join(entry.serves), entry.description)
        for name, entry in entries.items()
    ]
    terminal.table(("weights", "size", "for", "what they are"), rows)
    if json:
        terminal.write_json({name: plain(entry) for name, entry in entries.items()}, json, force)


def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Bundled weights, or a .safetensors file.")],
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Show all that a weights file says of itself.

    Network, conditions and their ranges, grid, training data, scores, licence.

    Example:
        cf-weights info twin-age-2mm
        cf-weights info runs/mine.safetensors --json facts.json
    """
    check_tables([json], [name], force)
    from cftools.schema import plain
    from cftools.weights import facts_of, locate

    facts = plain(facts_of(name))
    path, entry = locate(name)
    known: dict[str, Any] = {"file": str(path)}
    if entry is not None:
        known |= {"description": entry.description, "sha256": entry.sha256, "serves": list(entry.serves)}
    known |= facts
    for key, value in _lines(known):
        terminal.result(f"{key}: {value}")
    if json:
        terminal.write_json(known, json, force)


def verify_weights(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Bundled weights; all of them by default.")
    ] = None,
) -> int:
    """Compare weights with what the index promises.

    Reads each file in full: sha256, format, facts, every number finite.

    Example:
        cf-weights verify
        cf-weights verify twin-age-2mm
    """
    from cftools.weights import bundled_dir, index, verify

    def check(name: str) -> None:
        verify(name)
        terminal.result(f"{name}: as the index says")

    wanted = names or list(index())
    if not wanted:
        raise WeightsError(f"{bundled_dir()}: no bundled weights there: reinstall cftools")
    return for_each(wanted, check)


def add(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Weights, as cf-train leaves them.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call them: small letters, digits, -.")],
    description: Annotated[str, typer.Option(metavar="TEXT", help="One line for lists.")],
    serves: Annotated[list[str], typer.Option(metavar="PRESET", help="Which preset; repeatable.")],
    score: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A figure measured since, for their record; repeatable."),
    ] = None,
    force: options.Force = False,
) -> None:
    """Put weights among the bundled ones of this installation.

    The file is copied beside the index, with the scores in its record.

    Example:
        cf-weights add runs/mine/weights.safetensors twin-mine --description "my cohort" --serves twin
    """
    from dataclasses import replace

    from cftools.condition import parse_assignments
    from cftools.schema import FrozenMapping
    from cftools.weights import SUFFIX, add_to_index, bundled_dir, is_name, load, save

    scores = {change.name: change.value for change in parse_assignments(score or [])}
    if not all(isinstance(value, float) for value in scores.values()):
        raise UsageError("--score: a score is a number, such as truth_ratio=0.31")
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name weights: small letters, digits and hyphens only")
    checkpoint = load(file)
    measured = FrozenMapping({**checkpoint.facts.scores, **{k: float(str(v)) for k, v in scores.items()}})
    path = bundled_dir() / f"{name}{SUFFIX}"
    save(path, checkpoint.tensors, replace(checkpoint.facts, scores=measured), force=force)
    add_to_index(name, path, description, tuple(serves))
    terminal.result(path)


def _lines(table: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested facts as `key.key` and a value on one line."""
    lines: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _lines(value, f"{above}{key}.")
        elif value is not None:
            nested = isinstance(value, list) and any(isinstance(item, list) for item in value)
            text = ", ".join(map(str, value)) if isinstance(value, list) and not nested else str(value)
            lines.append((f"{above}{key}", text))
    return lines


main = Command(
    "cf-weights",
    actions={"list": list_weights, "info": info, "verify": verify_weights, "add": add},
    summary="List, describe, verify and add bundled weights.",
)
