"""What budgetnet raises when the mistake is not its own.

Every message is one line that says what was found, what was expected and what to do; the command line prints it
and exits with 1. Anything else that escapes is a bug and keeps its traceback.
"""

_LONGEST = 2_000


class BudgetnetError(Exception):
    """A mistake that the user can fix.

    Args:
        message: what is wrong. Whatever of a file it repeats, it ends as one line of at most 2,000 characters (the
            middle is left out) that can be printed: line ends and control characters, which could change what a
            terminal shows, become escapes.
    """

    def __init__(self, message: str = "") -> None:
        message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST * 3 // 4]} ... {message[-_LONGEST // 5 :]}"
        super().__init__(message)


class ConfigError(BudgetnetError):
    """An option is unknown, mistyped, out of range, or at odds with another."""


class DataError(BudgetnetError):
    """Data is missing, damaged, hostile, or not what it was said to be."""


class WriteError(DataError):
    """A file cannot be written: the disk is full, the folder is read-only or gone."""


class BudgetError(BudgetnetError):
    """A network has more trainable parameters than the budget allows."""


class CheckpointError(BudgetnetError):
    """A checkpoint or model file is missing, damaged, or belongs to another network."""


class DamagedError(CheckpointError):
    """A checkpoint is not what was written: the checksum over its content does not hold."""


class TrainingError(BudgetnetError):
    """A training cannot go on: the loss is not finite, or the run folder cannot be written."""


class FolderError(TrainingError):
    """A run's folder cannot be used: another process has it, or it is full, read-only or gone."""


class Interrupted(Exception):  # noqa: N818  it ends a run that can go on, like KeyboardInterrupt
    """The run was asked to stop, and its state is saved."""


def reason(error: OSError) -> str:
    """What the operating system says is wrong, as part of a sentence."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def one_line(error: BaseException) -> str:
    """All that somebody else's exception says, in one line, as part of a sentence; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """What it says first, at most 300 characters, where further lines are details, such as another language's stack."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 300 else line[:297] + "..."
