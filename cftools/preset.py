"""Presets: each published method as a choice of parts, one flat TOML file with these dataclasses as schema.

What training fixed is not here: it lives in the weights' own metadata. A flag beats a preset's value for the
weights in use ([tuned]), which beats its own value, which beats the default below. docs/design.md walks all
presets through.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from cftools.errors import PresetError
from cftools.recipe import Recipe, Size, require
from cftools.schema import FrozenMapping, plain, read

MethodName = Literal["flow", "diffusion", "generator", "token", "reader", "space"]
Task = Literal["edit", "synth", "translate", "read", "encode"]
Carry = Literal["field", "residual", "warp", "replace", "region"]

#: What weights can be for, by method; the first is what --weights picks, and no preset goes without it.
ROLES: dict[MethodName, tuple[str, ...]] = {
    "flow": ("flow",),
    "diffusion": ("denoiser", "partner", "space", "text"),
    "generator": ("generator",),
    "token": ("transformer", "space"),
    "reader": ("reader",),
    "space": ("space",),
}
#: Solvers that return a zero std: noise would be drawn for nothing.
DETERMINISTIC = ("ddim", "euler", "heun", "fireflow", "dpm++2m", "bdia")
#: Those of them that can be run backwards and then come back the same way.
INVERTIBLE = ("ddim", "euler", "heun", "fireflow", "bdia")
#: What of a sampling can differ where new scans are made.
PRIOR = ("solver", "steps", "noise", "guidance", "end_time")
#: No preset is longer than this; a file that is was named by mistake.
LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class FlowSampling:
    """How a flow is applied: steps, network evaluations; 1 is one shot, more integrate in the condition."""

    steps: int = 1

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps must be 1 or more")


@dataclass(frozen=True)
class DiffusionSampling:
    """How a diffusion model is run.

    Attributes:
        start: what the loop starts from where there is a scan (without one it is the prior): the prior; the
            scan noised to start_time; the scan inverted up to it; the end of its recorded chain.
        start_time: how far up, in (0, 1]; 1 is all noise.
        solver, steps: how to come down, in how many moves from start_time.
        end_time: where, coming from the prior, the last move begins and goes all the way to the estimate of the clean
            image: finer detail, which so much noise still hides, is left out. 0: as evenly as the others.
        noise: what the loop adds std times: zero, fresh draws, the recorded tape, or the partner's codes.
        guidance: classifier-free scale; 1 is the plain conditional. Inversions always run at 1.
        constraint: paste the known voxels, or repaint (noise them to each time, and go up and down again).
        dilation: side k of the kernel that dilates the lesion mask into the region to repaint, in voxels.
        resample: passes U over each move, 1 without going up again.
        inversion_iterations, inversion_tolerance: fixed-point iterations a move at most (1 is the papers'
            first-order inversion), and the relative residual of a subject's latent at which they stop.
        window_overlap: share of a patch that neighbours share, for weights trained on patches.
        window_blend: blend the windows at every step, or finished patches.
        runs: samples averaged into the result.
        dtype: of the network's convolutions and products: bfloat16, where the device has instructions for it, and
            float32 elsewhere. The run itself, and the way between images and latents, are in float32 always.
    """

    start: Literal["prior", "noised", "inverted", "recorded"]
    solver: Literal["ddpm", "ddim", "euler", "heun", "fireflow", "dpm++2m", "bdia"]
    steps: int
    noise: Literal["zero", "fresh", "tape", "paired"]
    start_time: float = 1.0
    end_time: float = 0.0
    guidance: float = 1.0
    constraint: Literal["none", "paste", "repaint"] = "none"
    dilation: int = 0
    resample: int = 1
    inversion_iterations: int = 1
    inversion_tolerance: float = 0.0
    window_overlap: float = 0.0
    window_blend: Literal["step", "finished"] = "step"
    runs: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "resample", "inversion_iterations", "runs"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more")
        for name in ("dilation", "inversion_tolerance", "guidance"):
            require(getattr(self, name) >= 0, f"{name} must not be negative")
        require(0 < self.start_time <= 1, "start_time must be above 0 and at most 1")
        require(0 <= self.window_overlap < 1, "window_overlap must be 0 or more and below 1")
        whole_way = self.start_time == 1
        require(whole_way or self.start != "prior", "start_time does not go with start prior")
        require(0 <= self.end_time < 1, "end_time must be 0 or more and below 1")
        require(self.steps > 1 or not self.end_time, "end_time needs two steps or more")
        require(self.start == "prior" or not self.end_time, f"end_time does not go with start {self.start}")
        deterministic = self.solver in DETERMINISTIC
        fits = (self.noise == "zero") == deterministic
        require(fits, f"solver {self.solver} does not go with noise {self.noise}")
        inverts = self.start == "inverted"
        require(self.solver in INVERTIBLE or not inverts, f"solver {self.solver} cannot be inverted")
        plays = self.noise == "tape"
        require((self.start == "recorded") == plays, "start recorded and noise tape go together")
        once = self.dilation == 0 and self.resample == 1
        require(once or self.constraint == "repaint", "dilation and resample go with constraint repaint")
        first_order = self.inversion_iterations == 1 and self.inversion_tolerance == 0
        require(first_order or inverts, "inversion_iterations and _tolerance go with start inverted")

    def without_scan(self) -> DiffusionSampling:
        """The same way down, from pure noise: how new scans are made by a preset that else starts from one."""
        return replace(
            self,
            start="prior",
            start_time=1.0,
            noise="zero" if self.solver in DETERMINISTIC else "fresh",
            inversion_iterations=1,
            inversion_tolerance=0.0,
        )


@dataclass(frozen=True)
class GeneratorSampling:
    """What a one-shot generator is fed: the scan, its encoding, or, as always without a scan, the prior."""

    start: Literal["scan", "encoded", "prior"]
    window_overlap: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.window_overlap < 1, "window_overlap must be 0 or more and below 1")


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn one after the other: temperature, and the top_k likeliest alone (0: all)."""

    temperature: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature must be above 0")
        require(self.top_k >= 0, "top_k must not be negative")


@dataclass(frozen=True)
class NoSampling:
    """A network that reads a variable off a scan, or encodes it, has nothing to choose."""


SAMPLINGS: dict[MethodName, type] = {
    "flow": FlowSampling,
    "diffusion": DiffusionSampling,
    "generator": GeneratorSampling,
    "token": TokenSampling,
    "reader": NoSampling,
    "space": NoSampling,
}


@dataclass(frozen=True)
class Preset:
    """One method, ready to be told its weights.

    Attributes:
        title: one line for lists; citation: what to cite.
        tasks: what it can do; without being told, a command does the first it shares with the preset.
        weights: names by role, by preference; the first whose facts go with the scan and the task is taken.
        sampling: the keys of the method's own table.
        carry: how an edit is brought to the scan's own grid; None where nothing is edited.
        tuned: sampling and carry keys that hold when certain weights have the main role.
        prior: those of PRIOR that hold where a diffusion makes new scans; they beat what is tuned.
        recipe: how its weights are trained.
    """

    name: str
    title: str
    citation: str
    method: MethodName
    tasks: tuple[Task, ...]
    weights: Mapping[str, tuple[str, ...]]
    sampling: FlowSampling | DiffusionSampling | GeneratorSampling | TokenSampling | NoSampling
    carry: Carry | None = None
    tuned: Mapping[str, Mapping[str, Any]] = FrozenMapping()
    prior: Mapping[str, Any] = FrozenMapping()
    recipe: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        roles = ROLES[self.method]
        require(bool(self.tasks), "tasks: name one at least")
        require(len(set(self.tasks)) == len(self.tasks), "tasks: name each once")
        for role, names in self.weights.items():
            require(role in roles, f"weights.{role}: a {self.method} method has {', '.join(roles)}")
            require(bool(names) and all(names), f"weights.{role}: name one at least")
        require(roles[0] in self.weights, f"weights.{roles[0]} is missing")
        require(
            (self.carry is None) == (set(self.tasks) <= {"synth", "read", "encode"}),
            "carry goes with edit and translate",
        )
        paired = getattr(self.sampling, "noise", None) == "paired"
        require(paired == ("partner" in self.weights), "noise paired and weights.partner go together")
        known = [name for names in self.weights.values() for name in names]
        for name in self.tuned:
            require(name in known, f"tuned.{name}: no role names these weights")
        makes = isinstance(self.sampling, DiffusionSampling) and "synth" in self.tasks
        require(makes or not self.prior, "prior goes with a diffusion that makes new scans")
        for name in self.prior:
            require(name in PRIOR, f"prior.{name}: must be one of {', '.join(PRIOR)}")
        made = [(recipe.role, recipe.size, recipe.objective) for recipe in self.recipe]
        require(len(set(made)) == len(made), "two recipes have the same role, size and objective")
        for recipe in self.recipe:
            require(recipe.role in roles, f"recipe.role {recipe.role}: must be one of {', '.join(roles)}")

    @property
    def main_role(self) -> str:
        """The role that --weights picks for."""
        return ROLES[self.method][0]

    def override(self, **values: Any) -> Preset:
        """The preset with sampling keys or carry set by flags, checked like the file; None means: not given.

        Raises:
            PresetError: there is no such key in this preset's method, or the value is refused.
        """
        given = {name: value for name, value in values.items() if value is not None}
        table = plain(self)
        for name, value in given.items():
            if name != "carry" and name not in table["sampling"]:
                raise PresetError(f"preset {self.name}: a {self.method} method has no {name}")
            (table if name == "carry" else table["sampling"])[name] = value
        return _build(table, f"preset {self.name}")

    def with_weights(self, name: str) -> Preset:
        """The preset with one choice of weights for its main role, and the values tuned for them."""
        table = plain(self)
        table["weights"][self.main_role] = [name]
        table["tuned"] = {}
        return _build(table, f"preset {self.name}").override(**self.tuned.get(name, {}))

    def without_scan(self) -> Preset:
        """The preset as it makes new scans: from the prior, and as `prior` says.

        Raises:
            PresetError: a key of it is none of a diffusion's, or does not go with the others.
        """
        if not isinstance(self.sampling, DiffusionSampling):
            return self
        sampling = {**asdict(self.sampling.without_scan()), **self.prior}
        return _build({**plain(self), "sampling": sampling, "prior": {}}, f"preset {self.name}")

    def recipe_for(self, size: Size = "bundled", role: str | None = None, objective: str | None = None) -> Recipe:
        """The one recipe for a role (the main one unless told) and size.

        Raises:
            PresetError: there is none, or there are several and `objective` does not choose.
        """
        role = role or self.main_role
        found = [
            recipe
            for recipe in self.recipe
            if (recipe.role, recipe.size) == (role, size) and objective in (None, recipe.objective)
        ]
        if len(found) != 1:
            objectives = ", ".join(recipe.objective for recipe in found)
            reason = f"has several recipes, name one: {objectives}" if found else "has no recipe"
            raise PresetError(f"preset {self.name} {reason} for {role}, {size} size")
        return found[0]

    def table(self) -> dict[str, dict[str, Any]]:
        """The preset without its recipes and what is tuned, in plain tables, as `from_table` takes it back."""
        whole = plain(self)
        for name in ("recipe", "tuned", "prior"):
            del whole[name]
        return {"weights": whole.pop("weights"), "sampling": whole.pop("sampling"), "preset": whole}

    def resolved(self) -> dict[str, Any]:
        """What decides a result, as plain values for the provenance: all but how the weights were made."""
        left_out = ("recipe", "tuned", "prior", "title", "citation")
        return {key: value for key, value in plain(self).items() if key not in left_out}


def from_table(table: Mapping[str, Mapping[str, Any]], where: str) -> Preset:
    """A preset by what `Preset.table` gave.

    Raises:
        PresetError: it does not keep to the schema.
    """
    return _build({**table.get("preset", {}), **{key: table.get(key, {}) for key in ("weights", "sampling")}}, where)


def presets_folder() -> Path:
    """Where the shipped presets lie."""
    return Path(__file__).parent / "presets"


def list_presets() -> tuple[str, ...]:
    """Names of the shipped presets, sorted."""
    return tuple(sorted(path.stem for path in presets_folder().glob("*.toml")))


def load_preset(name: str | Path) -> Preset:
    """A shipped preset by name, or one's own by the path of its .toml file.

    Raises:
        PresetError: there is none, or it does not keep to the schema.
    """
    shipped = list_presets()
    if str(name) in shipped:
        return read_preset(presets_folder() / f"{name}.toml")
    if Path(name).suffix == ".toml":
        return read_preset(Path(name))
    close = get_close_matches(str(name), shipped, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(shipped)}, or give a .toml file"
    raise PresetError(f"{str(name)!r} is no preset: {hint}")


def read_preset(path: Path) -> Preset:
    """One preset file.

    Raises:
        PresetError: missing, no TOML, or against the schema.
    """
    try:
        if not path.is_file():
            raise PresetError(f"{path}: no such file")
        if path.stat().st_size > LARGEST_FILE:
            raise PresetError(f"{path}: too large to be a preset")
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PresetError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise PresetError(f"{path}: not TOML ({reason[:120]})") from None
    except ValueError as error:  # digits beyond what Python converts
        raise PresetError(f"{path}: not TOML ({error})") from None
    preset = _build(table, str(path))
    for name in preset.tuned:
        preset.with_weights(name)
    if preset.prior:
        preset.without_scan()
    return preset


def _build(table: Mapping[str, Any], where: str) -> Preset:
    method = table.get("method")
    if not isinstance(method, str) or method not in ROLES:
        raise PresetError(f"{where}: method must be one of {', '.join(ROLES)}")
    sampling = table.get("sampling", {})
    if not isinstance(sampling, Mapping):
        raise PresetError(f"{where}: sampling must be a table")
    kind = next(kind for name, kind in SAMPLINGS.items() if name == method)
    sampling = read(kind, sampling, f"{where}: sampling", PresetError)
    return read(Preset, {**table, "sampling": sampling}, where, PresetError)
