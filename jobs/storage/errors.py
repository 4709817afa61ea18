"""Turns what fsspec, s3fs, botocore and the operating system raise into errors that say URL, cause and remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.errors import (
    DaskyardError,
    InputError,
    StorageDeniedError,
    StorageError,
    StorageMissingError,
    StorageStalledError,
)
from jobs.storage.tries import Stalled

_BAD_CREDENTIALS = {
    "InvalidAccessKeyId": "storage does not know the access key; correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; fetch new ones",
    "ExpiredTokenException": "the credentials have expired; fetch new ones",
    "TokenRefreshRequired": "the credentials have expired; fetch new ones",
    "InvalidToken": "storage does not take the session token; correct AWS_SESSION_TOKEN, or unset it",
    "RequestTimeTooSkewed": "this machine's clock differs from that of the storage; set it",
    "RequestExpired": "this machine's clock differs from that of the storage; set it",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_MAY_NOT = {"AccessDenied", "403", "Forbidden"}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_MISSING = {"NoSuchKey", "404", "NoSuchUpload", "NotFound"}
_OTHER_REGION = {
    *("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "307", "AuthorizationHeaderMalformed"),
    "IllegalLocationConstraintException",
}
_CHANGED = {"PreconditionFailed", "412"}
_NOT_IMPLEMENTED = {"NotImplemented", "501"}
_FULL_STATUS = 507  # of WebDAV, which MinIO and others take when their disks are full
# Of the refusals that blame the request, those that the same request may not meet again.
_MAY_PASS = {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "SlowDown", "NoSuchUpload"}
_STATUS_MAY_PASS = {408, 409, 425, 429}
# Local disks and mounts that say no for good: another try would hear the same.
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG}
_USER_AND_PASSWORD = re.compile(r"[^\s:]+:\S+@")
_NOT_A_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP}


class Damaged(Exception):
    """What came is not what was stored; said without its URL."""


class Misconfigured(Exception):
    """A setting cannot work, whatever is asked; said without the URL of what was."""


class Untrusted(Exception):
    """The server's certificate is not one to trust; said without its URL."""


@contextmanager
def mapped(url: str) -> Iterator[None]:
    """Raise storage errors met inside as StorageError, StorageMissingError or StorageDeniedError about `url`.

    An object that changed under its reader is an InputError.
    """
    try:
        yield
    except (DaskyardError, FileExistsError):
        raise
    except Exception as error:
        translated = translate(url, error)
        if translated is None:
            raise
        raise translated from error


def translate(url: str, error: BaseException) -> StorageError | InputError | None:
    """Return the error of ours that `error` amounts to, or None where it is no storage error."""
    code = s3_code(error)
    if isinstance(error, Stalled):
        return StorageStalledError(f"{url}: {error}; check the endpoint and the network, then try again")
    if isinstance(error, Damaged):
        return StorageError(f"{url}: damaged on its way or in storage ({error}); put it there again if it stays so")
    if isinstance(error, Misconfigured):
        return StorageDeniedError(f"{url}: {error}")
    if isinstance(error, Untrusted):
        return StorageDeniedError(
            f"{url}: the server's certificate is not trusted ({_first_line(error)}); "
            "name the file of the authority that signed it in AWS_CA_BUNDLE"
        )
    if code is not None:
        return _of_code(url, code, error)
    if isinstance(error, PermissionError):
        return _denied(url, type(error).__name__)
    if isinstance(error, FileNotFoundError):
        return StorageMissingError(f"{url}: not found; correct the URL or put the data there")
    if _is_a(error, "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return StorageDeniedError(f"{url}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if _is_a(error, "NoRegionError", "InvalidRegionError", "EndpointProviderError", "UnknownEndpointError"):
        return StorageDeniedError(f"{url}: no region that fits ({_first_line(error)}); set AWS_DEFAULT_REGION")
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        return StorageDeniedError(f"{url}: cannot be written ({error.strerror}); free space or write elsewhere")
    if isinstance(error, OSError) and error.errno in _NOT_A_PLACE:
        return StorageMissingError(f"{url}: {error.strerror}; correct the URL")
    if _is_a(error, "ParamValidationError"):
        return StorageMissingError(f"{url}: not a valid bucket name; correct the URL")
    if isinstance(error, ValueError) and "Invalid endpoint" in str(error):
        return StorageDeniedError(
            f"{url}: {_first_line(error)} is no URL; correct AWS_ENDPOINT_URL or AWS_DEFAULT_REGION"
        )
    if isinstance(error, (OSError, TimeoutError)) or _is_a(error, "HTTPClientError", "BotoCoreError", "ClientError"):
        return _unwell(url, _first_line(error))
    return None


def _of_code(url: str, code: str, error: BaseException) -> StorageError | InputError:
    """Return what a refusal by S3 amounts to."""
    if code in _BAD_CREDENTIALS:
        return StorageDeniedError(f"{url}: access denied ({code}): {_BAD_CREDENTIALS[code]}")
    if code in _OTHER_REGION:
        region = s3_region(error)
        where = f"set AWS_DEFAULT_REGION={region}" if region else "set AWS_DEFAULT_REGION to it"
        return StorageDeniedError(f"{url}: the bucket is in {region or 'another region'} ({code}); {where}")
    if code in _NO_BUCKET:
        return StorageMissingError(f"{url}: no such bucket; create it or correct the URL")
    if code in _DENIED or isinstance(error, PermissionError):
        return _denied(url, code)
    if code in _MISSING:
        return StorageMissingError(f"{url}: not found; correct the URL or put the data there")
    if code in _CHANGED:
        return changed(url)
    if code in _NOT_IMPLEMENTED:
        return StorageDeniedError(
            f"{url}: this store does not implement what was asked of it ({code}); use a store that has conditional "
            "writes (PUT with If-None-Match), such as AWS S3, MinIO or SeaweedFS of this year"
        )
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == _FULL_STATUS:
        return StorageDeniedError(f"{url}: cannot be written ({code}); free space or write elsewhere")
    if 400 <= status < 500 and status not in _STATUS_MAY_PASS and code not in _MAY_PASS:
        said = _answer(error).get("Error", {}).get("Message") or code
        return StorageDeniedError(f"{url}: storage refused the request ({code}: {said[:200]}); correct what it names")
    return _unwell(url, code)


def changed(url: str) -> InputError:
    """Return the error about an input that is another than it was."""
    return InputError(f"{url}: changed while it was read; run the job again when it is complete")


def is_forbidden(error: BaseException) -> bool:
    """Whether an error of ours says that known credentials may not do this, and not that something else is wrong."""
    code = s3_code(error.__cause__)
    return isinstance(error.__cause__, PermissionError) if code is None else code in _MAY_NOT


def is_damage(error: BaseException) -> bool:
    """Whether an error of ours says that what came is not what was stored."""
    return isinstance(error.__cause__, Damaged)


def _denied(url: str, cause: str) -> StorageDeniedError:
    return StorageDeniedError(f"{url}: access denied ({cause}); grant these credentials access to it, or correct them")


def _unwell(url: str, cause: str) -> StorageError:
    return StorageError(f"{url}: storage did not answer as it should ({cause}); check the endpoint, then try again")


def s3_code(error: BaseException | None) -> str | None:
    """S3's own error code, from the botocore error that s3fs keeps as the cause."""
    return str(_answer(error).get("Error", {}).get("Code", "")) or None


def s3_header(error: BaseException | None, name: str) -> str | None:
    """Return a header, in lower case, of the answer by which S3 refused."""
    value = _answer(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name)
    return None if value is None else str(value)


def s3_region(error: BaseException | None) -> str | None:
    """Return the region that S3 says the bucket is in."""
    return s3_header(error, "x-amz-bucket-region") or _answer(error).get("Error", {}).get("Region")


def _answer(error: BaseException | None) -> dict[str, Any]:
    for _ in range(5):
        if error is None:
            break
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__ or error.__context__
    return {}


def _is_a(error: BaseException, *names: str) -> bool:
    """Whether a class of that name is among the bases: spares importing botocore for local files."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    """Return what a library says, without what may be a user and a password, in a URL or not."""
    return _USER_AND_PASSWORD.sub("***@", (str(error).strip() or type(error).__name__).splitlines()[0])[:200]
