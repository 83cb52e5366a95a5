"""Every error a user can meet, each with the exit code its command ends with.

An error's text is one line: what is wrong, with which file, and what to do about it.
"""

from __future__ import annotations


class CftoolsError(Exception):
    """Something failed while working on a subject."""

    exit_code = 1


class UsageError(CftoolsError):
    """The command was asked for something that makes no sense, whatever the input holds."""

    exit_code = 2


class ConditionError(UsageError):
    """A condition cannot be read, is out of range, or is unknown to the weights."""


class PresetError(UsageError):
    """A preset is unknown, malformed, or does not go with the weights."""


class PathError(UsageError):
    """A noise path, schedule or solver is asked for what it cannot give, such as more steps than training times."""


class OutputError(UsageError):
    """An output exists already, or cannot be written."""


class InputError(CftoolsError):
    """An input file is refused: it is damaged, or of a kind that cannot be used."""

    exit_code = 3


class VolumeError(InputError):
    """An image file cannot be read, or holds what no brain scan holds."""


class LatentError(InputError):
    """A latent is damaged, of another kind or of other weights, or not of the scan at hand."""


class RegistrationError(InputError):
    """A scan could not be brought onto the template."""


class WeightsError(InputError):
    """A checkpoint is missing, damaged, or not the one the index promises."""


class Stopped(CftoolsError):
    """A signal asked for an end, and what was done until then is kept; the code is what a shell gives SIGTERM."""

    exit_code = 143


class CftoolsWarning(UserWarning):
    """Something the user should know about a result that was nevertheless made."""


class DomainWarning(CftoolsWarning):
    """A scan is unlike what the weights were made for: its result is to be looked at before it is used."""
