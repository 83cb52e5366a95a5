"""What other systems are told of the commands: Boutiques descriptors, Nipype interfaces, completion in a shell."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_view import ball

from cftools.cli.boutiques import descriptor
from cftools.cli.completion import variable
from cftools.cli.main import COMMANDS
from cftools.cli.main import main as cftools
from cftools.cli.parameters import Interface, Parameter, interface, interfaces

BIN = Path(sys.executable).parent
EVERY = tuple(interfaces())


def named(name: str) -> Interface:
    found = interface(name)
    assert found is not None
    return found


def parameter(command: str, name: str) -> Parameter:
    return next(each for each in named(command).parameters if each.name == name)


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)


def test_every_command_and_action_has_an_interface() -> None:
    names = {each.words[0] for each in EVERY}
    assert names == {f"cf-{name}" for name in COMMANDS}
    assert {"cf-weights-list", "cf-weights-add"} <= {each.name for each in EVERY}
    for each in EVERY:
        assert len({found.name for found in each.parameters}) == len(each.parameters), each.name
        assert all(found.help for found in each.parameters), each.name


def test_parameters_are_what_the_command_says() -> None:
    age = parameter("cf-edit", "age")
    assert (age.flag, age.kind, age.several, age.required) == ("--age", "text", True, False)
    scans = parameter("cf-edit", "scans")
    assert (scans.flag, scans.kind, scans.several, scans.required) == ("", "file", True, True)
    assert parameter("cf-edit", "region").kind == "file" and not parameter("cf-edit", "region").writes
    assert parameter("cf-edit", "steps").low == 1 and parameter("cf-edit", "steps").kind == "integer"
    assert parameter("cf-edit", "preset").default == "twin"
    assert parameter("cf-train", "no_template").flag == "--no-template"
    assert parameter("cf-train", "dtype").choices == ("bfloat16", "float32")
    written = {(each.name, found.name) for each in EVERY for found in each.parameters if found.writes}
    for pair in (
        *(("cf-edit", name) for name in ("output", "volumes", "report", "json", "uncertainty")),
        *(("cf-prep", name) for name in ("output", "transform", "save_mask")),
        *(("cf-phantom", "out"), ("cf-train", "out"), ("cf-view", "html"), ("cf-decode", "output")),
    ):
        assert pair in written
    assert not {pair for pair in written if pair[1] in ("scans", "scan", "data", "truth", "region", "force")}


@pytest.mark.parametrize("each", EVERY, ids=lambda each: each.name)
def test_boutiques_finds_the_descriptor_sound(each: Interface, tmp_path: Path) -> None:
    pytest.importorskip("boutiques", reason="boutiques is not installed: pip install -e .[dev]")
    path = tmp_path / "descriptor.json"
    path.write_text(json.dumps(descriptor(each)))
    done = subprocess.run([BIN / "bosh", "validate", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    path.write_text(json.dumps({**descriptor(each), "inputs": [{"id": "no good"}]}))
    assert subprocess.run([BIN / "bosh", "validate", path], capture_output=True).returncode != 0


def test_boutiques_writes_the_command_line_that_one_would_type(tmp_path: Path) -> None:
    pytest.importorskip("boutiques", reason="boutiques is not installed: pip install -e .[dev]")
    (tmp_path / "edit.json").write_text(json.dumps(descriptor(named("cf-edit"))))
    scans = [str(tmp_path / name) for name in ("a.nii", "b.nii")]
    for scan in scans:
        ball().save(scan)
    values = {"age": ["-30", "+10"], "from": ["age=49"], "steps": 2, "force": True, "output": "out/", "scans": scans}
    (tmp_path / "values.json").write_text(json.dumps(values))
    words = [str(BIN / "bosh"), "exec", "simulate", "edit.json", "-i", "values.json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "cf-edit" in line)
    found = shlex.split(line[line.index("cf-edit") :])
    expected = ["cf-edit", "--age", "-30", "--age", "+10", "--from", "age=49", "--steps", "2", "--output", "out/"]
    # Whatever has a default is said too.
    assert [word for word in found if word in expected] == expected
    assert "--force" in found and found[-2:] == scans


def test_cftools_prints_a_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cftools(["--boutiques", "cf-view"]) == 0
    assert json.loads(capsys.readouterr().out) == descriptor(named("cf-view"))
    assert cftools(["--boutiques", "cf-nothing"]) == 2
    assert "cf-weights-verify" in capsys.readouterr().err


@pytest.fixture
def nipype(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NIPYPE_NO_ET", "1")
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    pytest.importorskip("nipype", reason="nipype is not installed: pip install -e .[nipype]")
    from cftools import interfaces as made

    return made


def test_nipype_has_a_class_for_every_command(nipype: Any) -> None:
    assert set(dir(nipype)) == {each.name.title().replace("-", "") for each in EVERY}
    for name in dir(nipype):
        assert getattr(nipype, name)().inputs is not None
    with pytest.raises(AttributeError):
        _ = nipype.CfNothing
    # Nipype's own processes unpickle what they run.
    kept = pickle.dumps(nipype.CfEdit(age=["+30"], scans=[__file__]))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).cmdline)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=kept, capture_output=True, cwd=Path(__file__).parent.parent
    )
    assert "--age +30" in done.stdout.decode(), done.stderr.decode()


def test_nipype_writes_the_command_line_that_one_would_type(nipype: Any, tmp_path: Path) -> None:
    scan = tmp_path / "a scan; of mine.nii"
    ball().save(scan)
    edit = nipype.CfEdit(age=["-30", "+10"], from_=["age=49"], steps=2, guidance=1.5, force=True, scans=[str(scan)])
    words = shlex.split(edit.cmdline)
    assert words[0] == "cf-edit" and words[-1] == str(scan)
    text = " ".join(words)
    for part in ("--age -30 --age +10", "--from age=49", "--steps 2", "--guidance 1.5", "--force"):
        assert f" {part} " in text
    with pytest.raises(Exception, match="existing"):
        nipype.CfEdit(scans=["no such file.nii"])
    with pytest.raises(ValueError, match="scans"):
        _ = nipype.CfEdit().run()


def test_nipype_runs_a_command_and_finds_what_it_wrote(nipype: Any, tmp_path: Path) -> None:
    from nipype import Node

    scan = tmp_path / "a scan.nii"
    ball().save(scan)
    node = Node(nipype.CfView(dpi=30, output="of it.png"), name="picture", base_dir=str(tmp_path))
    node.inputs.scans = [str(scan)]
    outputs = node.run().outputs
    assert outputs.out_files == [str(tmp_path / "picture" / "of it.png")]
    assert Path(outputs.out_files[0]).read_bytes().startswith(b"\x89PNG")


def test_a_shell_completes_options_without_loading_anything_heavy() -> None:
    code = (
        "import sys; from cftools.cli.edit import main\n"
        "status = main([])\n"
        "print('loaded:', *sorted({'torch', 'numpy', 'nibabel', 'monai', 'matplotlib'} & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    asked = {"_CF_EDIT_COMPLETE": "complete_bash", "COMP_WORDS": "cf-edit --part", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["--participant-label", "loaded:"]


def test_bash_completes_what_the_script_turns_on() -> None:
    """The function that bash calls when Tab is pressed, called as bash does."""
    ask = """
        eval "$(cftools --completion bash)"
        complete -p cf-edit cf-weights
        COMP_WORDS=(cf-edit --skip) COMP_CWORD=1
        _cf_edit_completion cf-edit && echo "${COMPREPLY[@]}"
        COMP_WORDS=(cf-weights v) COMP_CWORD=1
        _cf_weights_completion cf-weights && echo "${COMPREPLY[@]}"
    """
    done = shell(ask)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "-F _cf_edit_completion cf-edit" in lines[0] and "-o default" in lines[0]
    assert lines[2:] == ["--skip-existing", "verify"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_completion_script_is_for_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cftools(["--completion", name]) == 0
    script = capsys.readouterr().out
    for command in ("cftools", *(f"cf-{each}" for each in COMMANDS)):
        assert f"{variable(command)}=complete_{name}" in script
    if shutil.which(name):
        assert subprocess.run([name, "-n"], input=script, text=True, capture_output=True).returncode == 0
    assert cftools(["--completion", "tcsh"]) == 2
