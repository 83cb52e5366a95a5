"""The shape of the package, read from its source: imports point down, and the design's other rules hold."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cftools"

# Lowest first; a name stands for the module or for all modules of the package.
FLOORS = (
    {
        "cftools",
        "cftools.diffusion",
        "cftools.errors",
        "cftools.schema",
        "cftools.preset",
        "cftools.recipe",
        "cftools.condition",
        "cftools.facts",
    },
    {
        "cftools.nifti",
        "cftools.volume",
        "cftools.field",
        "cftools.tensorfile",
        "cftools.latent",
        "cftools.diffusion.path",
        "cftools.diffusion.moves",
    },
    {
        "cftools.diffusion.denoiser",
        "cftools.diffusion.noise",
        "cftools.diffusion.solver",
        "cftools.diffusion.inversion",
    },
    {"cftools.nets"},
    {"cftools.weights", "cftools.provenance", "cftools.described"},
    {
        "cftools.diffusion.integrate",
        "cftools.diffusion.guidance",
        "cftools.diffusion.windows",
        "cftools.diffusion.constraint",
        "cftools.diffusion.start",
    },
    {
        "cftools.space",
        "cftools.itk",
        "cftools.bias",
        "cftools.register",
        "cftools.prepare",
        "cftools.heads",
        "cftools.carry",
    },
    {"cftools.phantom", "cftools.sampling"},
    {"cftools.methods", "cftools.diffuse", "cftools.generate", "cftools.autoregress", "cftools.volumes"},
    {"cftools.train", "cftools.score"},
    {
        *("cftools.slices", "cftools.panels", "cftools.paragraph", "cftools.picture", "cftools.report"),
        *("cftools.charts", "cftools.cohort", "cftools.imagesets", "cftools.setscores"),
    },
    {"cftools.planning"},
    {"cftools.editing", "cftools.piping"},
    {"cftools.cli"},
    {"cftools.interfaces"},
)
STANDARD_LIBRARY_ONLY = FLOORS[0]
# Bare packages on the ground floor do not take their modules there.
BARE = {"cftools", "cftools.diffusion"}


def module_name(path: Path) -> str:
    parts = ("cftools", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports when it runs, wherever in it; not what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield member if member in SOURCES else node.module
        else:
            yield from imported(node)


def floor(module: str) -> int:
    for height, names in enumerate(FLOORS):
        if module in names or any(module.startswith(f"{name}.") for name in names - BARE):
            return height
    return -1


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert floor(module) >= 0, f"{module} stands on no floor: add it to FLOORS"
    for other in imported(TREES[module]):
        if other.partition(".")[0] == "cftools":
            assert floor(other) <= floor(module), f"{module} imports {other}, which stands above it"


def test_no_circle() -> None:
    unfinished = {
        name: {other for other in imported(tree) if other in SOURCES} - {name} for name, tree in TREES.items()
    }
    while free := [name for name, needs in unfinished.items() if not needs & unfinished.keys()]:
        for name in free:
            del unfinished[name]
    assert not unfinished, f"these import each other in a circle: {sorted(unfinished)}"


@pytest.mark.parametrize("module", sorted(STANDARD_LIBRARY_ONLY & SOURCES.keys()))
def test_ground_floor_needs_the_standard_library_alone(module: str) -> None:
    roots = {name.partition(".")[0] for name in imported(TREES[module])}
    assert roots <= sys.stdlib_module_names | {"cftools"}


def test_only_nets_import_monai_networks() -> None:
    for module, tree in TREES.items():
        if not module.startswith("cftools.nets"):
            assert not [name for name in imported(tree) if name.startswith("monai.networks")], module


def test_below_the_commands_nothing_prints() -> None:
    for module, tree in TREES.items():
        if module.startswith("cftools.cli"):
            continue
        roots = {name.partition(".")[0] for name in imported(tree)}
        assert not roots & {"typer", "click", "rich", "tqdm"}, module
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], module


def test_no_branch_on_a_presets_name() -> None:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Compare, ast.Match)):
                continue
            sides = [node.subject] if isinstance(node, ast.Match) else [node.left, *node.comparators]
            words = {ast.unparse(side) for side in sides}
            assert not {word for word in words if word.endswith("preset.name")}, f"{module}:{node.lineno}"
            has_text = isinstance(node, ast.Match) or any(
                isinstance(side, ast.Constant) and side.value for side in sides
            )
            assert not ("preset" in words and has_text), f"{module}:{node.lineno}"


def test_files_are_short_and_named_for_what_they_hold() -> None:
    for name, path in SOURCES.items():
        assert len(path.read_text().splitlines()) <= 400, f"{name} is over 400 lines"
        assert path.name not in {"utils.py", "helpers.py", "misc.py"}
