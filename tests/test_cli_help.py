"""What every command promises: help with an example, a quick start, and the same manners."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
import typer

from cftools.cli import options, terminal
from cftools.cli.app import Command
from cftools.cli.batch import for_each
from cftools.cli.main import COMMANDS
from cftools.errors import CftoolsWarning, VolumeError

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
HEAVY = (
    "PIL",
    "jinja2",
    "matplotlib",
    "monai",
    "nibabel",
    "nilearn",
    "nipype",
    "numpy",
    "pandas",
    "scipy",
    "SimpleITK",
    "torch",
    "rich",
)


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_help_has_an_example_and_loads_nothing_heavy(name: str) -> None:
    module, _, entry = PROJECT["scripts"][name].partition(":")
    code = (
        f"import sys; from {module} import {entry} as command\n"
        "status = command(['--help'])\n"
        f"print('loaded:', *sorted(set({HEAVY}) & set(sys.modules)))\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, loaded = done.stdout.split("loaded:")
    assert loaded.split() == []
    assert f"Usage: {name} " in text
    actions = getattr(import_module(module), entry).actions
    if not actions:
        assert f"Example:\n    {name}" in text


def test_every_action_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    command = import_module("cftools.cli.weights").main
    for action in command.actions:
        assert command([action, "-h"]) == 0
        assert f"Example:\n    cf-weights {action}" in capsys.readouterr().out


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"cf-{name}" for name in COMMANDS} | {"cftools"} == set(PROJECT["scripts"])
    assert import_module("cftools.cli.main").main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [len(line.split()) > 2 for line in lines] == [True] * len(COMMANDS)


def work(
    scans: Annotated[list[str], typer.Argument(metavar="SCAN...")],
    age: Annotated[list[str] | None, typer.Option("--age")] = None,
    size: Annotated[list[float] | None, typer.Option("--size")] = None,
    threads: options.Threads = None,
    strict: options.Strict = False,
    json: options.Json = None,
) -> int:
    """Say what was understood.

    Example:
        cf-test --age -30 a.nii
    """

    def one(scan: str) -> None:
        if scan.startswith("warn"):
            import warnings

            warnings.warn("odd\nscan", CftoolsWarning, stacklevel=1)
        if scan.startswith("bad"):
            raise VolumeError(f"{scan}: is damaged")
        if scan == "odd":
            raise KeyError("x")
        if scan == "stop":
            raise KeyboardInterrupt
        terminal.result(f"{scan} {age} {size} {threads}")

    return for_each(scans, one)


command = Command("cf-test", work)


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = command(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_options_go_anywhere_and_take_negative_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--age", "-30", "a", "--age=+2", "-", "--threads", "3", "--size", "-1e2", capsys=capsys)
    assert (code, out) == (0, "a ['-30', '+2'] [-100.0] 3\n- ['-30', '+2'] [-100.0] 3\n")


@pytest.mark.parametrize("words", [["--size", "nan"], ["--size", "1", "--size", "-inf"], ["--threads", "0"], ["--no"]])
def test_what_makes_no_sense_is_one_line_and_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("a", *words, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("cf-test: error: ")


@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [
        (["bad1"], 3, ["error: bad1: is damaged"]),
        (
            ["bad1", "bad2"],
            3,
            ["error: bad1: is damaged", "error: bad2: is damaged", "error: 2 of 2 failed: bad1, bad2"],
        ),
        (["bad1", "good"], 1, ["error: bad1: is damaged", "error: 1 of 2 failed: bad1"]),
        (["bad1", "good", "-q"], 1, ["error: bad1: is damaged", "error: 1 of 2 failed: bad1"]),
        (["warn"], 0, ["warning: warn: odd scan"]),
        (["warn", "-q"], 0, []),
        (["warn", "-v", "--strict"], 3, ["error: warn: odd scan (an error because of --strict)"]),
        (["odd"], 1, ["error: odd: KeyError: 'x' (this is a bug: -vv shows where)"]),
        (["stop"], 130, []),
    ],
)
def test_exit_codes(words: list[str], code: int, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found, _, err = run(*words, capsys=capsys)
    assert (found, err.splitlines()) == (code, [f"cf-test: {line}" for line in lines])


def test_traceback_only_under_vv(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" not in run("odd", "-v", capsys=capsys)[2]
    assert "Traceback" in run("odd", "-vv", capsys=capsys)[2]


def test_json_on_stdout_owns_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a", "--json", "-", capsys=capsys)[:2] == (0, "")


def test_closed_pipe_is_quiet() -> None:
    code = (
        "from cftools.cli.app import Command\n"
        "def work():\n    '''Print much.'''\n    for line in range(100_000):\n        print(line)\n"
        "raise SystemExit(Command('cf-test', work)([]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_progress_in_a_log_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LOG_LINES", 0.0)
    monkeypatch.setattr(terminal, "running", terminal.Running("cf-test"))
    with terminal.progress("training") as report:
        report(1, 4, note="loss 0.5")
    assert capsys.readouterr().err == "cf-test: training 1/4 (25%) loss 0.5\n"
