"""Errors for users, and the exit status of each kind."""

import enum
import tempfile
import traceback


class ExitStatus(enum.IntEnum):
    """Exit statuses of the command line; fixed, see docs/troubleshooting.md."""

    DONE = 0
    INTERNAL = 1  # a bug; the traceback goes to a log file
    USAGE = 2
    INPUT = 3  # unreadable, damaged beyond use, or without video
    OUTPUT = 4  # refused or not writable, disk full
    MODEL = 5  # model, weights, download, checksum
    DEVICE = 6  # device missing, out of memory
    DAMAGE = 7  # finished, but with damage under --on-damage fail, or warnings under --strict
    BATCH = 8  # at least one file failed
    VERIFICATION = 9  # the output failed its verification
    INTERRUPTED = 130
    TERMINATED = 143


class VdeblurError(Exception):
    """An error that a user can fix. message: what is wrong. hint: what to do; may be empty."""

    status = ExitStatus.INTERNAL
    code = "E_INTERNAL"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VdeblurError):
    """Options are wrong or exclude each other."""

    status = ExitStatus.USAGE
    code = "E_USAGE"


class InputError(VdeblurError):
    """The input is unreadable, damaged beyond use, or has no video."""

    status = ExitStatus.INPUT
    code = "E_INPUT"


class OutputError(VdeblurError):
    """The output cannot be written, or must not be replaced."""

    status = ExitStatus.OUTPUT
    code = "E_OUTPUT"


class ModelError(VdeblurError):
    """A model or its weights are unknown, missing, damaged or unsuitable."""

    status = ExitStatus.MODEL
    code = "E_MODEL"


class DeviceError(VdeblurError):
    """The device is missing, fails, or is out of memory."""

    status = ExitStatus.DEVICE
    code = "E_DEVICE"


class VerificationError(VdeblurError):
    """The finished output does not contain what was written to it."""

    status = ExitStatus.VERIFICATION
    code = "E_VERIFICATION"


class DamageError(VdeblurError):
    """The output is finished, but a warning counts as an error: --strict or --on-damage fail."""

    status = ExitStatus.DAMAGE
    code = "E_DAMAGE"


class BatchError(VdeblurError):
    """At least one of several files failed."""

    status = ExitStatus.BATCH
    code = "E_BATCH"


class InterruptedRunError(VdeblurError):
    """A signal stopped the run."""

    code = "E_INTERRUPTED"

    def __init__(self, status: ExitStatus) -> None:
        super().__init__("stopped; nothing was written")
        self.status = status


def error_facts(error: BaseException) -> dict[str, object]:
    """Return the payload of an `error` event, without `input`; for a bug, write the traceback to a log file."""
    if isinstance(error, VdeblurError):
        return {"code": error.code, "exit": int(error.status), "message": error.message, "hint": error.hint}
    with tempfile.NamedTemporaryFile("w", prefix="vdeblur-", suffix=".log", delete=False) as file:
        traceback.print_exception(error, file=file)
    message = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    hint = f"please report {file.name}"
    return {"code": VdeblurError.code, "exit": int(ExitStatus.INTERNAL), "message": message, "hint": hint}
