"""Why a training does not start, or does not go on."""

from flowmesh.runtimes.base import FailureKind


class Refused(Exception):
    """The data, the model or the settings are at fault; the message is for the user."""


class Diverged(Refused):
    """The loss or the gradient is no number any more."""


class Unfinished(Exception):
    """The trainer came back before its time, and nobody had asked it to."""


class LaunchFailed(Exception):
    """The processes of a training on several devices failed, or ended without a word.

    `detail` is the end of what they printed, or a traceback.
    """

    def __init__(self, kind: FailureKind, message: str, detail: str) -> None:
        super().__init__(message)
        self.kind, self.detail = kind, detail
