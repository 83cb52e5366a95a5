"""What a sidecar records, read back, and told as the methods paragraph of a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cftools.condition import Value, cell
from cftools.errors import CftoolsError
from cftools.preset import load_preset

#: How a preset's method edits, by its kind; the sampling's values fill the gaps.
METHODS = {
    "flow": "A network predicted, from the scan on this grid, a stationary velocity field and a change of intensity "
    "for the change of condition; the field was exponentiated to a diffeomorphism (steps: {steps}).",
    "diffusion": "The scan was edited by a diffusion model (start: {start}; solver: {solver}; steps: {steps}; "
    "guidance: {guidance}; network in {dtype}).",
}
CARRIES = {
    "field": "Deformation and change of intensity were applied once, to the scan at its own resolution.",
    "residual": "What differed between the scan decoded under the new and under its own condition was resampled to "
    "the scan's own grid and added to it.",
    "warp": "The scan decoded under its own condition was registered to the one decoded under the new condition "
    "(diffeomorphic demons), and the scan itself was moved by that deformation.",
    "replace": "The decoded image was resampled to the scan's own grid and put in place of the brain.",
    "region": "The decoded image was resampled to the scan's own grid and pasted inside a mask; outside it the scan "
    "was kept voxel for voxel.",
}
_REGISTRATION = (
    "The scan was brought onto the MNI152 2009a nonlinear symmetric template (Fonov et al. 2011) by an affine "
    "registration that maximises mutual information (Mattes et al. 2003{software}{similarity}), and resampled to the "
    "network's grid."
)


@dataclass(frozen=True)
class Record:
    """What a sidecar says of an image; what it does not say, or says in another form, is empty.

    Attributes:
        source, target: conditions before and after.
        preset, method, carry: how it was edited; sampling: the preset's values.
        weights: (role, name, sha256) each.
        versions: of software.
        guessed: variables that a model read off the scan.
        similarity: of the registration.
    """

    command: str = ""
    source: Mapping[str, Value] = field(default_factory=dict)
    target: Mapping[str, Value] = field(default_factory=dict)
    preset: str = ""
    method: str = ""
    carry: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[tuple[str, str, str], ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    guessed: tuple[str, ...] = ()
    similarity: float | None = None

    @property
    def changes(self) -> dict[str, tuple[Value, Value]]:
        """Variables whose value changed, with their values before and after."""
        pairs = {name: (self.source.get(name), value) for name, value in self.target.items()}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    @property
    def citation(self) -> str:
        """What to cite for its preset; empty where that is not one of ours."""
        try:
            return load_preset(self.preset).citation if self.preset else ""
        except CftoolsError:
            return ""


def record_of(sidecar: Mapping[str, Any]) -> Record:
    """What a sidecar says, as `Provenance.document` writes it; nothing in it is trusted to be of the right kind."""
    own = _table(sidecar.get("cftools"))
    condition, details, preset = (_table(own.get(key)) for key in ("condition", "details", "preset"))
    weights = [(role, _table(used)) for role, used in _table(own.get("weights")).items()]
    similarity = _table(details.get("registration")).get("similarity")
    seed = own.get("seed")
    return Record(
        command=_text(own.get("command")),
        source=_values(condition.get("source")),
        target=_values(condition.get("target")),
        preset=_text(preset.get("name")),
        method=_text(preset.get("method")),
        carry=_text(preset.get("carry")),
        sampling=_table(preset.get("sampling")),
        weights=tuple((role, _text(used.get("name")), _text(used.get("sha256"))) for role, used in weights),
        versions={name: _text(version) for name, version in _table(own.get("versions")).items()},
        seed=seed if isinstance(seed, int) else None,
        guessed=tuple(_table(details.get("guessed"))),
        similarity=float(similarity) if isinstance(similarity, (int, float)) else None,
    )


def told(condition: Mapping[str, Value]) -> str:
    """A condition in words: `age 49, sex F`; what is unknown is left out."""
    return ", ".join(f"{name} {cell(value)}" for name, value in condition.items() if value is not None)


def label_of(record: Record) -> str:
    """What an edit changed, in words: `age 79 (+30)`."""
    parts = []
    for name, (before, after) in record.changes.items():
        difference = f" ({after - before:+g})" if isinstance(before, float) and isinstance(after, float) else ""
        parts.append(f"{name} {cell(after)}{with_minus(difference)}")
    return ", ".join(parts) or "nothing changed"


def with_minus(text: str) -> str:
    """Numbers with a minus sign for a hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def paragraphs(records: Sequence[Record]) -> list[str]:
    """A methods paragraph for each way in which images were edited."""
    ways: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.preset:
            sampling = tuple((name, str(value)) for name, value in sorted(record.sampling.items()))
            ways.setdefault((record.preset, record.carry, record.weights, sampling), []).append(record)
    return [_paragraph(same) for same in ways.values()]


def _paragraph(records: Sequence[Record]) -> str:
    first = records[0]
    weights = "; ".join(f"{role} weights {name}, sha256 {digest[:12]}" for role, name, digest in first.weights)
    itk = first.versions.get("SimpleITK")
    software = f"; SimpleITK {itk}" if itk else ""
    similarity = f"; similarity {first.similarity:.2f}" if first.similarity is not None else ""
    method = METHODS.get(first.method, "").format_map(_Gaps(first.sampling))
    made = ", ".join(label_of(record) for record in records)
    source = told(first.source) or "a condition that was not known"
    guess = f" ({', '.join(first.guessed)} estimated from the image by a network)" if first.guessed else ""
    torch = f" on PyTorch {first.versions['torch']}" if first.versions.get("torch") else ""
    seed = f", seed {first.seed}" if first.seed is not None else ""
    parts = [
        f"Counterfactual images were made with cftools {first.versions.get('cftools', '')}{torch} "
        f"(preset {first.preset}; {weights}{seed}).",
        _REGISTRATION.format(software=software, similarity=similarity),
        method,
        CARRIES.get(first.carry, ""),
        f"The scan was taken to show {source}{guess}, and was edited to {made}.",
    ]
    return " ".join(part for part in parts if part)


class _Gaps(dict[str, Any]):
    """Values for a sentence; what is missing is said to be."""

    def __missing__(self, key: str) -> str:
        return "not recorded"


def _table(value: object) -> Mapping[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _values(value: object) -> dict[str, Value]:
    """A condition, its numbers as floats."""
    kept: dict[str, Value] = {}
    for name, item in _table(value).items():
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            kept[name] = float(item)
        elif item is None or isinstance(item, str):
            kept[name] = item
    return kept
