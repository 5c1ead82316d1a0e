"""Errors a user can cause, and the exit status each kind ends the program with."""

import enum
import tempfile
import traceback


class ExitStatus(enum.IntEnum):
    """What the program's exit status says."""

    DONE = 0
    INTERNAL = 1  # our own mistake; the traceback goes to a log file
    USAGE = 2
    INPUT = 3  # unreadable, damaged beyond use, or without video
    OUTPUT = 4  # refused or not writable, disk full
    MODEL = 5  # unknown model, weights, checksum
    DEVICE = 6  # device missing, out of memory
    DAMAGE = 7  # finished, but with damage under --strict
    BATCH = 8  # at least one file failed
    VERIFICATION = 9  # the output is not what was meant to be written
    INTERRUPTED = 130
    TERMINATED = 143


class VdeblurError(Exception):
    """Something the user can mend: one line saying what is wrong, and a hint saying what to do."""

    status = ExitStatus.INTERNAL
    code = "E_INTERNAL"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VdeblurError):
    """Options that do not go together."""

    status = ExitStatus.USAGE
    code = "E_USAGE"


class InputError(VdeblurError):
    """The input cannot be read."""

    status = ExitStatus.INPUT
    code = "E_INPUT"


class OutputError(VdeblurError):
    """The output cannot, or must not, be written."""

    status = ExitStatus.OUTPUT
    code = "E_OUTPUT"


class ModelError(VdeblurError):
    """A model or its weights cannot be used."""

    status = ExitStatus.MODEL
    code = "E_MODEL"


class DeviceError(VdeblurError):
    """The device is missing or too small."""

    status = ExitStatus.DEVICE
    code = "E_DEVICE"


class VerificationError(VdeblurError):
    """The finished output does not hold what was put into it."""

    status = ExitStatus.VERIFICATION
    code = "E_VERIFICATION"


class DamageError(VdeblurError):
    """It is done, but what came in was damaged, or something was left out, and that was not to be borne."""

    status = ExitStatus.DAMAGE
    code = "E_DAMAGE"


class BatchError(VdeblurError):
    """Some files of several failed."""

    status = ExitStatus.BATCH
    code = "E_BATCH"


class InterruptedRunError(VdeblurError):
    """A signal asked the program to stop."""

    code = "E_INTERRUPTED"

    def __init__(self, status: ExitStatus) -> None:
        super().__init__("stopped; nothing was written")
        self.status = status


def error_facts(error: BaseException) -> dict[str, object]:
    """Describe an error for the event of that name; of one that is our own mistake the traceback is kept in a file."""
    if isinstance(error, VdeblurError):
        return {"code": error.code, "exit": int(error.status), "message": error.message, "hint": error.hint}
    with tempfile.NamedTemporaryFile("w", prefix="vdeblur-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    hint = f"please report {file.name}"
    return {"code": VdeblurError.code, "exit": int(ExitStatus.INTERNAL), "message": message, "hint": hint}
