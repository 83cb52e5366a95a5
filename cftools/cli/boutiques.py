"""Boutiques descriptors: what a command takes, as JSON that CBRAIN, Nipype and others read (Glatard et al. 2018)."""

from __future__ import annotations

from typing import Any

from cftools import __version__
from cftools.cli.parameters import Interface, Parameter

SCHEMA_VERSION = "0.5"
TYPES = {"flag": "Flag", "text": "String", "file": "File", "integer": "Number", "number": "Number"}
ERRORS = {
    1: "Some subjects failed, or the work could not be finished; the other results are there.",
    2: "The command makes no sense as it is, or an output exists.",
    3: "Every input was refused.",
    130: "Interrupted.",
}


def descriptor(interface: Interface) -> dict[str, Any]:
    """One command as a Boutiques descriptor, schema 0.5."""
    written = [_output(each) for each in interface.parameters if each.writes]
    document: dict[str, Any] = {
        "name": interface.name,
        "description": interface.description,
        "tool-version": __version__,
        "schema-version": SCHEMA_VERSION,
        "command-line": " ".join([*interface.words, *(_key(each) for each in interface.parameters)]),
        "inputs": [_input(each) for each in interface.parameters],
        "output-files": written,
        "error-codes": [{"code": code, "description": text} for code, text in ERRORS.items()],
        "tags": {"domain": ["neuroinformatics", "mri"]},
    }
    return {key: value for key, value in document.items() if value != []}


def _input(parameter: Parameter) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": parameter.name,
        "name": parameter.name.replace("_", " "),
        "description": parameter.help or parameter.metavar,
        "type": TYPES[parameter.kind],
        "value-key": _key(parameter),
        "optional": not parameter.required,
    }
    if parameter.flag:
        document["command-line-flag"] = parameter.flag
    if parameter.several:
        document["list"] = True
        # An option is typed again before each of its values.
        document["list-separator"] = f" {parameter.flag} " if parameter.flag else " "
    if parameter.kind == "integer":
        document["integer"] = True
    if parameter.choices:
        document["value-choices"] = list(parameter.choices)
    bounds = {"minimum": parameter.low, "maximum": parameter.high, "default-value": parameter.default}
    return document | {key: value for key, value in bounds.items() if value is not None and value != ""}


def _output(parameter: Parameter) -> dict[str, Any]:
    return {
        "id": f"{parameter.name}_file",
        "name": parameter.name.replace("_", " "),
        "description": parameter.help or parameter.metavar,
        "path-template": _key(parameter),
        "optional": not parameter.required,
    }


def _key(parameter: Parameter) -> str:
    return f"[{parameter.name.upper()}]"
