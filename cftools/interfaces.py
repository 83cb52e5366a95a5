"""Nipype interfaces of the commands, made of what the commands say of themselves: `pip install cftools[nipype]`.

    from nipype import Node
    from cftools.interfaces import CfEdit

    edit = Node(CfEdit(age=["+30"], output="edited/"), name="edit")
    edit.inputs.scans = ["sub-01_T1w.nii.gz"]
    edit.run().outputs.out_files

A class a command, named as it: CfEdit is cf-edit, CfWeightsList is cf-weights list. Inputs are named as the options
are; one for whose name Python or Nipype has a use itself ends in _, such as from_. `out_files` are the files whose
paths the command prints.
"""

from __future__ import annotations

import keyword
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cftools.cli.parameters import Interface, Parameter, interfaces

if TYPE_CHECKING:
    from nipype.interfaces.base import CommandLine

#: What the names of a class's specifications end in.
INPUT, OUTPUT = "Input", "Output"


def __dir__() -> list[str]:
    return [_class_name(each) for each in interfaces()]


def __getattr__(name: str) -> type[CommandLine]:
    command = name.removesuffix(INPUT).removesuffix(OUTPUT)
    found = next((each for each in interfaces() if _class_name(each) == command), None)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # All stay under their names, so that Nipype's processes can unpickle them.
    made = _made(found)
    globals().update({each.__name__: each for each in (made, made.input_spec, made.output_spec)})
    return globals()[name]


def _class_name(interface: Interface) -> str:
    return interface.name.title().replace("-", "")


def _made(interface: Interface) -> type[CommandLine]:
    # Importing it asks its makers' server for news, unless told not to; cftools never uses the network.
    os.environ.setdefault("NIPYPE_NO_ET", "1")
    from nipype.interfaces import base

    arguments = [each for each in interface.parameters if not each.flag]
    inputs: dict[str, Any] = {}
    for parameter in interface.parameters:
        # Counted from the end, which is where arguments stand.
        place = {} if parameter.flag else {"position": arguments.index(parameter) - len(arguments)}
        inputs[_input_name(parameter, base.CommandLineInputSpec)] = _trait(parameter, **place)
    outputs = {"out_files": base.traits.List(base.File(exists=True), desc="What the command wrote.")}
    name, here = _class_name(interface), {"__module__": __name__}
    members = {
        "_cmd": " ".join(interface.words),
        "input_spec": type(name + INPUT, (base.CommandLineInputSpec,), inputs | here),
        "output_spec": type(name + OUTPUT, (base.TraitedSpec,), outputs | here),
        "_format_arg": _format_arg,
        "aggregate_outputs": _aggregate_outputs,
        "__doc__": interface.description,
    }
    return type(name, (base.CommandLine,), members | here)


def _input_name(parameter: Parameter, spec: type) -> str:
    taken = keyword.iskeyword(parameter.name) or hasattr(spec, parameter.name)
    return f"{parameter.name}_" if taken else parameter.name


def _trait(parameter: Parameter, **facts: Any) -> Any:
    """How Nipype checks a parameter and writes it on a command line."""
    from nipype.interfaces.base import Directory, File, InputMultiObject, traits

    kinds = {"flag": traits.Bool, "integer": traits.Int, "number": traits.Float}
    value = "" if parameter.kind == "flag" else {"integer": "%d", "number": "%g"}.get(parameter.kind, "%s")
    # "..." has the option typed again before each value.
    again = "..." if parameter.several and parameter.flag else ""
    facts |= {"argstr": f"{parameter.flag} {value}".strip() + again, "desc": parameter.help}
    if parameter.required:
        facts["mandatory"] = True
    if parameter.choices:
        return traits.Enum(*parameter.choices, **facts)
    if parameter.kind in kinds:
        return kinds[parameter.kind](**facts)
    # What is read may be a folder too: a BIDS dataset.
    is_file = parameter.kind == "file"
    if parameter.several:
        one = traits.Either(File(exists=True), Directory(exists=True)) if is_file else traits.Str
        return InputMultiObject(one, **facts)
    return traits.Either(File(exists=True), Directory(exists=True), **facts) if is_file else traits.Str(**facts)


def _format_arg(self: Any, name: str, spec: Any, value: Any) -> Any:
    """As Nipype does, but safe in the shell that it starts: names of files may have spaces."""
    from nipype.interfaces.base import CommandLine

    if isinstance(value, str):
        value = shlex.quote(value)
    elif isinstance(value, list):
        value = [shlex.quote(each) for each in value]
    return CommandLine._format_arg(self, name, spec, value)


def _aggregate_outputs(self: Any, runtime: Any = None, needed_outputs: Any = None) -> Any:
    """The files whose paths stand on stdout, a line each."""
    outputs = self.output_spec()
    lines = [Path(runtime.cwd, line) for line in runtime.stdout.splitlines()]
    outputs.out_files = [str(path) for path in lines if path.is_file()]
    return outputs
