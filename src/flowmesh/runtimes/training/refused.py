"""Why a training does not start, or does not go on."""


class Refused(Exception):
    """The data, the model or the settings are at fault; the message is for the user."""


class Diverged(Refused):
    """The loss or the gradient is no number any more."""


class Unfinished(Exception):
    """The trainer came back before its time, and nobody had asked it to."""
