"""The house rules of every command, kept in one place: help, exit codes, errors, warnings, interruptions.

A command module is a function and one line:

    def edit(scans: Annotated[list[str], typer.Argument(...)], force: options.Force = False) -> int | None:
        '''Show a scan as it would be under another condition.

        Example:
            cf-edit --age +30 scan.nii.gz
        '''

    main = Command("cf-edit", edit)

The first line of the docstring is the summary, the block under `Example:` is printed last in the help, as it
stands. A returned int is the exit code. -h, -q and -v are added to every command.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from cftools.cli import completion, terminal
from cftools.cli.terminal import running
from cftools.errors import CftoolsError, CftoolsWarning, InputError

SOME_FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143
CLOSED_PIPE = 141

# The group of a command's help that comes last.
RUNNING = "Running"

# ClickException: typer's own copy of it, or click's, as the version has it.
_UsageFault: type[Exception] = typer.BadParameter.__mro__[2]


class Command:
    """One command of the shell: callable, takes the words after its name, returns the exit code.

    Args:
        name: as typed in a shell.
        work: the function to run, its parameters annotated for typer.
        actions: instead of work, several functions, each an action: `cf-weights list`.
        summary: one line for a command with actions; else the docstring's first line.
    """

    def __init__(
        self,
        name: str,
        work: Callable[..., Any] | None = None,
        actions: dict[str, Callable[..., Any]] | None = None,
        summary: str = "",
    ) -> None:
        self.name = name
        self.summary = summary or _docstring_parts(work)[0].partition("\n")[0]
        self.actions = tuple(actions or ())
        settings: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        # Plain help: half the start-up time of rich's, and it can be pasted into the docs as it is.
        app = typer.Typer(
            name=name,
            help=self.summary,
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_show_locals=False,
            context_settings=settings,
        )
        if work is not None:
            actions = {name: work}
        for action, function in (actions or {}).items():
            text, example = _docstring_parts(function)
            app.command(action, cls=_HouseCommand, help=text, epilog=example, context_settings=settings)(function)
        if self.actions:
            app.callback()(lambda: None)
        self.click_command = typer.main.get_command(app)

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        if (code := completion.answer(self.name, self.click_command)) is not None:
            return code
        running.name, running.verbosity, running.stdout_is_data = self.name, 0, False
        _open_what_is_closed()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # The names of files go out as the bytes they are, be they UTF-8 or not.
            sys.stdout.reconfigure(errors="surrogateescape")
        _stop_cleanly_when_terminated()
        logging.basicConfig(format=f"{self.name}: %(message)s", level=logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            # What is to be said of one scan is also to be said of the next.
            warnings.simplefilter("always", CftoolsWarning)
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            words = list(sys.argv[1:] if arguments is None else arguments)
            running.words = tuple(words)
            return self._run(words if words or not self.actions else ["--help"])

    def _run(self, arguments: list[str]) -> int:
        try:
            with self.click_command.make_context(self.name, arguments) as context:
                code = self.click_command.invoke(context)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except typer.Exit as exit_:
            return exit_.exit_code
        except (KeyboardInterrupt, typer.Abort):
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more as it ends: let that go nowhere, without a complaint.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED_PIPE
        except Exception as fault:
            return report_fault(fault)


def report_fault(fault: Exception, subject: str = "") -> int:
    """Print a fault as one line on stderr, with a traceback only under -vv.

    Args:
        fault: what was raised.
        subject: whom it happened to, when several are worked on.
    Returns:
        the exit code that goes with it.
    """
    if running.verbosity >= 2:
        traceback.print_exception(fault)
    code, text = describe_fault(fault)
    terminal.error(f"{subject}: {text}" if subject and subject not in text else text)
    return code


class _HouseCommand(TyperCommand):
    """Adds -q and -v, refuses nan and inf, prints options by group and the example as it was written."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        quiet = TyperOption(
            param_decls=["-q", "--quiet"],
            is_flag=True,
            default=False,
            expose_value=False,
            callback=_be_quiet,
            rich_help_panel=RUNNING,
            help="Say nothing but errors.",
        )
        verbose = TyperOption(
            param_decls=["-v", "--verbose"],
            type=int,
            count=True,
            default=0,
            expose_value=False,
            callback=_be_verbose,
            rich_help_panel=RUNNING,
            help="Say more; -vv also shows tracebacks.",
        )
        self.params += [quiet, verbose]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, float) and not math.isfinite(number):
                    raise typer.BadParameter(f"{number} is not a finite number.", ctx=ctx, param=parameter)
        return rest

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [each for each in self.params if each.param_type_name == "argument"]
        return ["[OPTIONS]", *(each.metavar or str(each.name).upper() for each in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            kind = RUNNING if parameter.name == "help" else kind
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        groups[RUNNING] = groups.pop(RUNNING, [])
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


def _be_quiet(ctx: object, parameter: object, value: bool) -> None:
    if value:
        running.verbosity = -1


def _be_verbose(ctx: object, parameter: object, value: int) -> None:
    if value:
        running.verbosity = value
        logging.getLogger().setLevel(logging.WARNING if value == 1 else logging.INFO)


def _docstring_parts(function: Callable[..., Any] | None) -> tuple[str, str]:
    """The docstring before `Example:`, and the block from there on."""
    text, mark, example = (inspect.getdoc(function) or "").partition("\nExample:\n")
    return text.strip(), (mark + example).strip()


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    if issubclass(category, CftoolsWarning):
        terminal.warning(message)
    elif running.verbosity >= 1:
        # Other people's warnings are about their code, not about the scan: they wait for -v.
        terminal.warning(f"{filename}:{lineno}: {category.__name__}: {message}")


def describe_fault(fault: Exception) -> tuple[int, str]:
    """Exit code and words for whatever was raised."""
    if isinstance(fault, CftoolsError):
        return fault.exit_code, str(fault)
    if isinstance(fault, CftoolsWarning):
        return InputError.exit_code, f"{fault} (an error because of --strict)"
    if isinstance(fault, _UsageFault):
        return USAGE, f"{fault.format_message()} See {running.name} --help."  # type: ignore[attr-defined]
    if isinstance(fault, MemoryError):
        return SOME_FAILED, "not enough memory"
    if isinstance(fault, OSError) and fault.strerror:
        where = f": {os.fspath(fault.filename)!s}" if fault.filename is not None else ""
        return SOME_FAILED, f"{fault.strerror}{where}"
    return SOME_FAILED, f"{type(fault).__name__}: {fault} (this is a bug: -vv shows where)"


def _open_what_is_closed() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) the null device instead."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _stop_cleanly_when_terminated() -> None:
    """Let SIGTERM (a cluster's `scancel`) unwind the stack, so that temporary files go."""

    def stop(*_: object) -> None:
        sys.exit(TERMINATED)

    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Only the main thread may set handlers; a command called from another one does without.
        return
