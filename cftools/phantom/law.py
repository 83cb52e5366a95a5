"""The law of ageing the simulator follows: how large each structure is at an age, for a sex.

A law is one TOML file of knots: per structure and sex the volume at a constant intracranial volume, relative
to 25 years, with its spread between people and the publications it was read from. `laws/normative.toml` is
healthy ageing as published; `laws/altered.toml` is invented: what is learned on one is tested on the other.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from cftools.errors import ConditionError, UsageError

#: The ages a law covers, in years, and the one its ratios refer to.
YOUNGEST, OLDEST, REFERENCE = 5.0, 100.0, 25.0

#: What every law describes. Fluid grows with age, tissue shrinks; `sulci` is the fluid of the cortical sulci.
STRUCTURES = (
    "lateral_ventricles",
    "third_ventricle",
    "sylvian_fissure",
    "sulci",
    "hippocampus",
    "cortex",
    "white_matter",
    "deep_grey",
    "brain",
)
#: The fluid of the basal cisterns and the posterior fossa has no curve: it grows half as fast as that of the sulci.
CISTERNS, CISTERNS_SHARE = "cisterns", 0.5
#: The white-to-grey ratio of T1w intensity: a curve like the others, of no structure.
CONTRAST = "white_grey_contrast"


@dataclass(frozen=True)
class Curve:
    """One quantity over age: values of F and M at the law's ages, its spread, and where it comes from.

    Attributes:
        female, male: positive values at the knots, in any unit; only their ratios count.
        log_sd: standard deviation of the log between healthy people of one age and sex.
        sources: publications, and what was taken from each.
    """

    female: tuple[float, ...]
    male: tuple[float, ...]
    log_sd: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class AgeingLaw:
    """How the structures of the healthy brain change with age.

    Attributes:
        name, description: as in the file.
        ages: knots in years, rising from 5 to 100.
        curves: a Curve per structure, and one for `white_grey_contrast`.
    """

    name: str
    description: str
    ages: tuple[float, ...]
    curves: Mapping[str, Curve]

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures this law describes."""
        return tuple(name for name in self.curves if name != CONTRAST)

    def ratio(self, structure: str, age: float, sex: str | None = None) -> float:
        """Volume at `age` relative to 25 years, at a constant intracranial volume.

        exp(p(age) - p(25)), p the monotone cubic (PCHIP, Fritsch and Butland 1984) through the knots' logs.

        Args:
            structure: one of `structures`, or "cisterns".
            age: years, 5 to 100.
            sex: "F", "M", or None for the geometric mean of both.
        Raises:
            ConditionError: the age is outside 5-100 years, or the sex is neither F, M nor None.
            UsageError: the law has no such structure.
        """
        if structure == CISTERNS:
            return 1 + CISTERNS_SHARE * (self.ratio("sulci", age, sex) - 1)
        curve = self._curve(structure)
        if not YOUNGEST <= age <= OLDEST:  # also False for not-a-number
            raise ConditionError(f"age {age:g}: the ageing law covers {YOUNGEST:g} to {OLDEST:g} years")
        if sex not in ("F", "M", None):
            raise ConditionError(f"sex {sex!r}: the ageing law knows F and M")
        knots = {"F": (curve.female,), "M": (curve.male,), None: (curve.female, curve.male)}[sex]
        logs = [_log_curve(self.ages, values)([REFERENCE, age]) for values in knots]
        reference, wanted = np.mean(logs, axis=0)
        return math.exp(wanted - reference)

    def log_sd(self, structure: str) -> float:
        """Standard deviation of the log volume between healthy people of one age and sex.

        Raises:
            UsageError: the law has no such structure.
        """
        if structure == CISTERNS:
            return CISTERNS_SHARE * self.log_sd("sulci")
        return self._curve(structure).log_sd

    def contrast(self, age: float, sex: str | None = None) -> float:
        """White-to-grey ratio of T1w intensity relative to 25 years; arguments and errors as `ratio`."""
        return self.ratio(CONTRAST, age, sex)

    def _curve(self, structure: str) -> Curve:
        if structure not in self.curves:
            known = ", ".join(self.structures)
            raise UsageError(f"law {self.name}: no structure {structure!r}; it has {known}")
        return self.curves[structure]


@lru_cache(maxsize=64)
def _log_curve(ages: tuple[float, ...], values: tuple[float, ...]) -> PchipInterpolator:
    return PchipInterpolator(ages, np.log(values))


def built_in_laws() -> tuple[str, ...]:
    """Names of the laws that come with cftools."""
    files = (resources.files("cftools.phantom") / "laws").iterdir()
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml")))


def load_law(name_or_path: str | Path) -> AgeingLaw:
    """Read a law by the name of a built-in one, else from a TOML file.

    Raises:
        UsageError: there is no such law, or its file is not one: the message names the file and the mistake.
    """
    name = str(name_or_path)
    if name in built_in_laws():
        file = resources.files("cftools.phantom") / "laws" / f"{name}.toml"
        return _read(file.read_bytes(), f"{name}.toml")
    try:
        data = Path(name_or_path).read_bytes()
    except OSError as error:
        known = ", ".join(built_in_laws())
        raise UsageError(
            f"{name}: no such ageing law ({error.strerror}); name one of {known}, or a TOML file"
        ) from error
    return _read(data, name)


def _read(data: bytes, file: str) -> AgeingLaw:
    """The law in the bytes of a TOML file; `file` is only for messages."""
    try:
        table = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not a TOML file: {error}") from error
    names = (*STRUCTURES, CONTRAST)
    _check_keys(table, ("name", "description", "ages", *names), file)
    ages = _numbers(table["ages"], f"{file}: ages")
    if ages[:1] != (YOUNGEST,) or ages[-1:] != (OLDEST,) or any(np.diff(ages) <= 0):
        raise UsageError(f"{file}: ages must rise from {YOUNGEST:g} to {OLDEST:g} years")
    curves = {name: _read_curve(table[name], len(ages), f"{file}: {name}") for name in names}
    return AgeingLaw(
        name=_text(table["name"], f"{file}: name"),
        description=_text(table["description"], f"{file}: description"),
        ages=ages,
        curves=curves,
    )


def _read_curve(table: Any, length: int, where: str) -> Curve:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: must be a table of F, M, log_sd and sources")
    _check_keys(table, ("F", "M", "log_sd", "sources"), where)
    values = {sex: _numbers(table[sex], f"{where}: {sex}") for sex in ("F", "M")}
    for sex, numbers in values.items():
        if len(numbers) != length:
            raise UsageError(f"{where}: {sex} has {len(numbers)} values for {length} ages")
    sources = table["sources"]
    if not isinstance(sources, list) or not sources:
        raise UsageError(f"{where}: sources must be a list of at least one text")
    return Curve(
        female=values["F"],
        male=values["M"],
        log_sd=_numbers([table["log_sd"]], f"{where}: log_sd")[0],
        sources=tuple(_text(source, f"{where}: sources") for source in sources),
    )


def _check_keys(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UsageError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    missing = [key for key in known if key not in table]
    if missing:
        raise UsageError(f"{where}: {', '.join(missing)} missing")


def _numbers(values: Any, where: str) -> tuple[float, ...]:
    """A list of positive finite numbers; a bool is none."""
    if not isinstance(values, list):
        raise UsageError(f"{where}: must be a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"{where}: {value!r} is not a positive number")
    return tuple(float(value) for value in values)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{where}: must be a text")
    return value
