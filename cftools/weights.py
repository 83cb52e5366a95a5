"""Weights: safetensors files that say in their own metadata what they are, and an index of the bundled ones.

The metadata holds one key, "cftools", with the facts that training fixed, as JSON. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cftools.condition import Variable
from cftools.errors import OutputError, WeightsError
from cftools.facts import DiffusionFacts, GridFacts, SpaceFacts, TokenFacts
from cftools.schema import FrozenMapping, plain, read
from cftools.tensorfile import SUFFIX, TENSOR_NAME, Head, Origin, parse_json, read_head

if TYPE_CHECKING:
    import torch

Network = TypeVar("Network", bound="torch.nn.Module")

#: Version of the metadata; a file with a higher one was written by a newer cftools.
FORMAT = 1
INDEX = "index.toml"
METADATA_KEY = "cftools"
#: Names and shapes of ten thousand tensors need a tenth of this; what is longer is not one of ours.
LARGEST_HEADER = 8 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class TrainingFacts:
    """How the weights came about: the command that makes them, and what it was run with.

    Attributes:
        data: what they were trained on, with its licence; date: day, as 2026-01-31.
    """

    command: str
    data: str
    seed: int
    steps: int
    seconds: float
    date: str


@dataclass(frozen=True)
class Facts:
    """What training fixed, kept with the tensors.

    Attributes:
        architecture, architecture_arguments: what to build the network from.
        variables: conditions the network knows, by name, in the order in which it takes them.
        contrasts: BIDS suffixes of the scans it takes, such as T1w.
        intensity: the normalisation of its input, by the name `prepare` has for it.
        scores: how well it does, by name; "mean_absolute_error" of a model that reads a variable off a scan.
        licence: of these weights, as an SPDX name.
        space: what an autoencoder encodes to, or a denoiser or a transformer works in; diffusion: what a denoiser says;
            tokens: what a transformer draws. Else None.
    """

    architecture: str
    architecture_arguments: Mapping[str, Any]
    variables: Mapping[str, Variable]
    grid: GridFacts
    contrasts: tuple[str, ...]
    intensity: str
    training: TrainingFacts
    licence: str
    scores: Mapping[str, float] = FrozenMapping()
    skull_stripped: bool = True
    space: SpaceFacts | None = None
    diffusion: DiffusionFacts | None = None
    tokens: TokenFacts | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, variable in self.variables.items():
            if name != variable.name:
                raise ValueError(f"variables.{name}: its own name is {variable.name}")


@dataclass(frozen=True)
class Checkpoint:
    """Weights in memory: tensors by name (float32 where floating), their facts, and the file's sha256."""

    name: str
    tensors: dict[str, torch.Tensor]
    facts: Facts
    sha256: str

    def network(self, network: type[Network], architecture: type) -> Network:
        """The network that this describes, with its tensors, to be applied and not trained.

        Raises:
            WeightsError: the tensors do not fit.
        """
        arguments = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in plain(self.facts.architecture_arguments).items()
        }
        try:
            built = network(architecture(**arguments))
            built.load_state_dict({key: value.float() for key, value in self.tensors.items()})
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(f"{self.name}: the tensors do not fit the architecture ({reason})") from None
        return built.eval().requires_grad_(False)


@dataclass(frozen=True)
class Entry:
    """One row of the index: a file beside it, its sha256 and size in bytes, and the presets it serves."""

    file: str
    sha256: str
    size: int
    description: str
    serves: tuple[str, ...]

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or not self.file.endswith(SUFFIX):
            raise ValueError(f"file {self.file!r} must be the name of a {SUFFIX} file beside the index")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 must be 64 hexadecimal digits")


def bundled_dir() -> Path:
    """The folder of the bundled weights: inside the installed package, or at the top of a source checkout."""
    package = Path(__file__).parent
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def index(folder: Path | None = None) -> dict[str, Entry]:
    """The bundled weights by name, sorted; empty where there is no index.

    Raises:
        WeightsError: the index is damaged.
    """
    path = (folder or bundled_dir()) / INDEX
    if not path.is_file():
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # both kinds of decoding error are ValueErrors
        raise WeightsError(f"{path}: cannot be read ({_line(error)}): reinstall cftools") from None
    entries = {name: read(Entry, row, f"{path}: {name}", WeightsError) for name, row in table.items()}
    return dict(sorted(entries.items()))


def locate(name_or_path: str | Path, folder: Path | None = None) -> tuple[Path, Entry | None]:
    """Where weights lie, and their row of the index: a bundled name first, else one's own file.

    Raises:
        WeightsError: neither.
    """
    folder = folder or bundled_dir()
    entries = index(folder)
    name = str(name_or_path)
    if name in entries:
        path = folder / entries[name].file
        if not path.is_file():
            raise WeightsError(f"{path}: the file of bundled weights {name} is missing: reinstall cftools")
        return path, entries[name]
    path = Path(name_or_path)
    if not os.path.isfile(path):
        known = ", ".join(entries) or "none"
        raise WeightsError(f"{name}: neither bundled weights (there are: {known}) nor a file")
    return path, None


def installed(name_or_path: str | Path) -> bool:
    """Whether weights are bundled under this name, or are a file."""
    try:
        locate(name_or_path)
    except WeightsError:
        return False
    return True


def load(name_or_path: str | Path, expect: str | None = None, folder: Path | None = None) -> Checkpoint:
    """Weights by bundled name, checked against the index, or by the path of one's own file.

    Args:
        expect: the architecture they must be of.
        folder: another folder with an index instead of the bundled one.
    Raises:
        WeightsError: missing, damaged, not what the index promises, or of another architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    path, entry = locate(name_or_path, folder)
    data = _bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if entry and (entry.sha256, entry.size) != (sha256, len(data)):
        raise WeightsError(f"{path}: its sha256 is not the one in the index: reinstall cftools")
    facts = _facts(path, read_head(data, _origin(path), LARGEST_HEADER))
    if expect is not None and facts.architecture != expect:
        raise WeightsError(f"{path}: holds a {facts.architecture} network where a {expect} one is needed")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: damaged ({_line(error)}): get the file anew") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
            if not tensor.isfinite().all():
                raise WeightsError(f"{path}: tensor {name} holds NaN or infinity: get the file anew")
    return Checkpoint(path.stem if entry is None else str(name_or_path), tensors, facts, sha256)


def facts_of(name_or_path: str | Path, folder: Path | None = None) -> Facts:
    """The facts alone, from the head of the file: quick, and without torch; its sha256 is not checked.

    Raises:
        WeightsError: missing, no safetensors, or without facts.
    """
    path, _ = locate(name_or_path, folder)
    head = read_head(_bytes(path, 8 + LARGEST_HEADER), _origin(path), LARGEST_HEADER, path.stat().st_size)
    return _facts(path, head)


def verify(name: str, folder: Path | None = None) -> Entry:
    """Load bundled weights in full: sha256, format, facts, every number finite.

    Raises:
        WeightsError: they are not in the index, or not what it promises.
    """
    _, entry = locate(name, folder)
    if entry is None:
        raise WeightsError(f"{name}: is a file and not in the index; there are: {', '.join(index(folder))}")
    load(name, folder=folder)
    return entry


def save(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    facts: Facts,
    dtype: Literal["half", "float"] = "half",
    force: bool = False,
) -> str:
    """Write weights whole or not at all; the same tensors and facts give the same bytes.

    Args:
        tensors: of any layout and device; floating ones are stored as dtype.
        force: replace what is there.
    Returns:
        The file's sha256.
    Raises:
        WeightsError: a number is not finite (or too large for half precision), or a name has odd characters.
        OutputError: the name does not end in .safetensors, exists already, or cannot be written.
    """
    import torch
    from safetensors.torch import save as save_tensors

    from cftools.volume import write_atomic

    path = Path(path)
    if path.suffix != SUFFIX:
        raise OutputError(f"{path}: weights are {SUFFIX} files: give it that ending")
    stored = {}
    for name, tensor in tensors.items():
        if not TENSOR_NAME.fullmatch(name):
            raise WeightsError(f"{path}: {name!r} cannot name a tensor")
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float16 if dtype == "half" else torch.float32)
            if not tensor.isfinite().all():
                raise WeightsError(f"{path}: tensor {name} is not finite in {dtype} precision: not written")
        # safetensors takes neither views of one memory nor other layouts: each tensor gets its own.
        stored[name] = tensor.clone(memory_format=torch.contiguous_format)
    text = json.dumps(plain(facts), ensure_ascii=True, allow_nan=False)
    read(Facts, json.loads(text), str(path), WeightsError)
    data = save_tensors(stored, {METADATA_KEY: text})
    write_atomic(path, data, force=force)
    return hashlib.sha256(data).hexdigest()


def is_name(text: str) -> bool:
    """Whether weights can be called so: small letters, digits and hyphens."""
    return _NAME.fullmatch(text) is not None


def add_to_index(name: str, path: str | Path, description: str, serves: tuple[str, ...]) -> Entry:
    """Put weights, once they load, into the index beside them: added or replaced, sorted by name.

    Raises:
        WeightsError: the file or the name is none. OutputError: the index cannot be written.
    """
    from cftools.volume import write_atomic

    path = Path(path)
    if not is_name(name):
        raise WeightsError(f"{name!r} cannot name weights: small letters, digits and hyphens only")
    data = _bytes(path)
    load(path, folder=path.parent)
    row = {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "description": " ".join(description.split()),
        "serves": list(serves),
    }
    entry = read(Entry, row, f"{path.parent / INDEX}: {name}", WeightsError)
    entries = sorted({**index(path.parent), name: entry}.items())
    lines = ["# Written by `cftools.weights.add_to_index`: one table for each file, sorted by name."]
    for key, item in entries:
        lines += ["", f"[{key}]", *(f"{field} = {_toml(value)}" for field, value in plain(item).items())]
    write_atomic(path.parent / INDEX, ("\n".join(lines) + "\n").encode(), force=True)
    return entry


def _bytes(path: Path, most: int = -1) -> bytes:
    try:
        # A FIFO or a device would block, or never end.
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        with open(path, "rb") as stream:
            return stream.read(most)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from None


def _origin(path: Path) -> Origin:
    return Origin(str(path), "get the file anew", WeightsError)


def _facts(path: Path, head: Head) -> Facts:
    text = head.metadata.get(METADATA_KEY)
    if text is None:
        raise WeightsError(f"{path}: no cftools metadata in it: it was not written by cftools")
    table = parse_json(text, _origin(path), "metadata")
    version = table.get("format") if isinstance(table, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise WeightsError(f"{path}: written by a newer cftools (format {version}): update cftools")
    return read(Facts, table, f"{path}: metadata", WeightsError)


def _toml(value: Any) -> str:
    # A JSON string, number or list of them is TOML too, as long as no character needs a surrogate pair.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
