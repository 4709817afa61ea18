"""One tree of errors. The class of an error decides what whoever started the job does next: its exit code says so.

Exit codes: 0 done, 2 the spec or the input is wrong (never retried), 75 worth another try (storage or workers
lost), 1 anything else. A message is one line: place, value, remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What stands between the slashes and the host of a URL. A secret key of S3 can have slashes, and no bucket a colon.
_USER_INFORMATION = re.compile(r"(\bs3a?://)[^\s/@:]*:[^\s@]*@|(\b[A-Za-z][\w+.-]*://)[^\s/@]+@")
_SIGNATURE = re.compile(
    r"([?&](?:X-(?:Amz|Goog)-(?:Signature|Security-Token|Credential)"
    r"|Signature|sig|(?:access_|id_|refresh_)?token|api_?key|passw(?:or)?d|secret)=)[^\s&#]+",
    re.IGNORECASE,
)


class DaskyardError(Exception):
    """Root of all errors that Daskyard raises on purpose. Passwords in URLs of a message are left out."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_passwords(each) if isinstance(each, str) else each for each in args))


class SpecError(DaskyardError):
    """The job spec is wrong: an unknown key, a wrong type, a value out of bounds."""

    exit_code = 2


class InputError(DaskyardError):
    """The input data is wrong: empty, unreadable, without the column that the spec names."""

    exit_code = 2


class OutputError(DaskyardError):
    """The output cannot be used: the run id was committed from another spec."""

    exit_code = 2


class StorageError(DaskyardError):
    """Storage did not answer, or not in time: worth another try."""

    exit_code = 75


class StorageStalledError(StorageError):
    """An operation moved too little for too long: waiting longer would not help, another run may."""


class StorageMissingError(StorageError):
    """No such bucket, folder or object."""

    exit_code = 2


class StorageDeniedError(StorageError):
    """Storage refused the credentials, or what they may do."""

    exit_code = 2


class WorkersLostError(DaskyardError):
    """Workers or the scheduler went away while the job ran: worth another try."""

    exit_code = 75


class OutOfMemoryError(WorkersLostError):
    """Workers were ended for the memory they took: worth another try with more of it, and not without."""


class PoisonTaskError(DaskyardError):
    """A task took down each worker that ran it: another attempt would end alike."""


class StoppedError(BaseException):
    """Somebody told the job to stop, such as Kubernetes moving its pod: worth another try.

    Like KeyboardInterrupt it is no Exception: it can strike anywhere, also where a library makes do without something
    that failed, and would be lost there.
    """

    exit_code = WorkersLostError.exit_code


def without_passwords(text: str) -> str:
    """Return a text whose URLs name neither user nor password, nor what signs them."""
    text = _USER_INFORMATION.sub(r"\1\2***@", text)
    return _SIGNATURE.sub(r"\1***", text) if "://" in text else text


def stop_of(error: BaseException) -> StoppedError | KeyboardInterrupt | None:
    """Return the stop that led to an error: a signal can strike where its exception is taken for a failure."""
    return next((each for each in _chain(error) if isinstance(each, (StoppedError, KeyboardInterrupt))), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]
