"""Turns what fsspec, s3fs, botocore and the operating system raise into errors that say URL, cause and remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import DaskyardError, StorageDeniedError, StorageError, StorageMissingError

_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthorizationHeaderMalformed",
    "RequestTimeTooSkewed",
}
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_MISSING = {"NoSuchKey", "404", "NoSuchUpload", "NotFound"}
# Local disks and mounts that say no for good: another try would hear the same.
_FULL_OR_READ_ONLY = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
_NOT_A_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP}


@contextmanager
def mapped(url: str) -> Iterator[None]:
    """Raise storage errors met inside as StorageError, StorageMissingError or StorageDeniedError about `url`."""
    try:
        yield
    except (DaskyardError, FileExistsError):
        raise
    except Exception as error:
        translated = translate(url, error)
        if translated is None:
            raise
        raise translated from error


def translate(url: str, error: BaseException) -> StorageError | None:
    """Return the StorageError that `error` amounts to, or None where it is no storage error."""
    code = s3_code(error)
    if code in _BAD_CREDENTIALS:
        return StorageDeniedError(
            f"{url}: storage does not accept the credentials ({code}); correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        )
    if code in _NO_BUCKET:
        return StorageMissingError(f"{url}: no such bucket; create it or correct the URL")
    if isinstance(error, PermissionError) or code in _DENIED:
        cause = code or error.__class__.__name__
        return StorageDeniedError(
            f"{url}: access denied ({cause}); grant these credentials access to it, or correct them"
        )
    if isinstance(error, FileNotFoundError) or code in _MISSING:
        return StorageMissingError(f"{url}: not found; correct the URL or put the data there")
    if _is_a(error, "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"):
        return StorageDeniedError(f"{url}: no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, OSError) and error.errno in _FULL_OR_READ_ONLY:
        return StorageDeniedError(f"{url}: cannot be written ({error.strerror}); free space or write elsewhere")
    if code is None and isinstance(error, OSError) and error.errno in _NOT_A_PLACE:
        return StorageMissingError(f"{url}: {error.strerror}; correct the URL")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return StorageMissingError(f"{url}: unknown kind of URL; use s3://, file:// or a path")
    if isinstance(error, ImportError) and "Install " in str(error):
        return StorageMissingError(f"{url}: {error}")
    if _is_a(error, "ParamValidationError"):
        return StorageMissingError(f"{url}: not a valid bucket name; correct the URL")
    if isinstance(error, (OSError, TimeoutError)) or _is_a(error, "HTTPClientError", "BotoCoreError", "ClientError"):
        cause = code or _first_line(error)
        return StorageError(f"{url}: storage did not answer as it should ({cause}); check the endpoint, then try again")
    return None


def s3_code(error: BaseException | None) -> str | None:
    """S3's own error code, from the botocore error that s3fs keeps as the cause."""
    for _ in range(5):
        if error is None:
            return None
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", "")) or None
        error = error.__cause__ or error.__context__
    return None


def _is_a(error: BaseException, *names: str) -> bool:
    """Whether a class of that name is among the bases: spares importing botocore for local files."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
