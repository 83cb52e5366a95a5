"""The pages that are made: one a command, of its help, and one a preset, of its TOML; and a Boutiques descriptor each.

    python docs/pages.py            writes docs/commands, docs/presets and docs/boutiques
    python docs/pages.py --check    says which of them are not what would be written

A test runs the check, so what the pages say is what the commands do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from importlib import import_module
from pathlib import Path

from cftools.cli.boutiques import descriptor
from cftools.cli.main import COMMANDS
from cftools.cli.parameters import interfaces
from cftools.preset import Preset, list_presets, load_preset, presets_folder
from cftools.recipe import Recipe

DOCS = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Every made page, by its path."""
    made = {DOCS / "commands" / "index.md": _commands_index(), DOCS / "presets" / "index.md": _presets_index()}
    for name in ("cftools", *(f"cf-{command}" for command in COMMANDS)):
        made[DOCS / "commands" / f"{name}.md"] = _command_page(name)
    for name in list_presets():
        made[DOCS / "presets" / f"{name}.md"] = _preset_page(name)
    for each in interfaces():
        made[DOCS / "boutiques" / f"{each.name}.json"] = (
            json.dumps(descriptor(each), indent=2, ensure_ascii=False) + "\n"
        )
    return made


def help_of(name: str, *words: str) -> str:
    """What `name words... --help` prints, a hundred columns wide."""
    command = import_module(f"cftools.cli.{'main' if name == 'cftools' else name.removeprefix('cf-')}").main
    os.environ["COLUMNS"] = "100"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command([*words, "--help"])
    return out.getvalue().strip()


def _command_page(name: str) -> str:
    command = import_module(f"cftools.cli.{'main' if name == 'cftools' else name.removeprefix('cf-')}").main
    parts = [f"# {name}", "", command.summary, "", "```text", help_of(name), "```", ""]
    for action in command.actions:
        parts += [f"## {name} {action}", "", "```text", help_of(name, action), "```", ""]
    return "\n".join(parts)


def _commands_index() -> str:
    rows = [f"| [cf-{name}](cf-{name}.md) | {_summary(f'cf-{name}')} |" for name in COMMANDS]
    rows.append(f"| [cftools](cftools.md) | {_summary('cftools')} |")
    return "\n".join(["# Commands", "", "| command | job |", "|---|---|", *rows, ""])


def _summary(name: str) -> str:
    return import_module(f"cftools.cli.{'main' if name == 'cftools' else name.removeprefix('cf-')}").main.summary


def _presets_index() -> str:
    rows = [f"| [{name}]({name}.md) | {load_preset(name).title} |" for name in list_presets()]
    head = ["# Presets", "", "A preset is a method as a choice of parts: one TOML file.", "", "| preset | what it is |"]
    return "\n".join([*head, "|---|---|", *rows, ""])


def _preset_page(name: str) -> str:
    preset = load_preset(name)
    weights = [f"{role}: {', '.join(f'`{one}`' for one in names)}" for role, names in preset.weights.items()]
    rows = [
        ("tasks", ", ".join(preset.tasks)),
        ("method", preset.method),
        ("weights", "; ".join(weights)),
        ("carry", preset.carry or "none: nothing is edited"),
        ("cite", preset.citation),
    ]
    parts = [f"# {name}", "", preset.title + ".", "", "| | |", "|---|---|"]
    parts += [f"| {key} | {value} |" for key, value in rows]
    parts += ["", *_recipes(preset), "## The file", "", "```toml"]
    parts += [(presets_folder() / f"{name}.toml").read_text(encoding="utf-8").strip(), "```", ""]
    return "\n".join(parts)


def _recipes(preset: Preset) -> list[str]:
    if not preset.recipe:
        return []
    parts = ["## Training", ""]
    for recipe in preset.recipe:
        parts += [f"{_title(recipe)}: `{_train(preset, recipe)}`", ""]
    return parts


def _title(recipe: Recipe) -> str:
    return "The bundled size" if recipe.size == "bundled" else "The published size"


def _train(preset: Preset, recipe: Recipe) -> str:
    size = "" if recipe.size == "bundled" else f" --size {recipe.size}"
    return f"cf-train --preset {preset.name}{size} --out runs/{preset.name}"


def main() -> int:
    """Write, or check; the exit code."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    made = {path.name for path in pages()}
    folders = ("commands", "presets", "boutiques")
    stale += [path for folder in folders for path in (DOCS / folder).glob("*.*") if path.name not in made]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(DOCS)} is not what its source says: python docs/pages.py")
        return 1 if stale else 0
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
