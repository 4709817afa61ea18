"""What of the settings for S3 cannot work, said before a request is sent: which variable or file, never its value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.configloader
import botocore.exceptions
import botocore.session

from jobs.storage.errors import Misconfigured

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN")
# As botocore does: the first that is set counts.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_PROFILES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")


def refuse_unusable(fs: Any) -> None:
    """Look at what an S3 file system goes by: its arguments, the environment, and the files that this names.

    Raises
    ------
    Misconfigured
        When it cannot work.
    """
    _refuse_endpoint("FSSPEC_S3_ENDPOINT_URL", fs.endpoint_url or fs.client_kwargs.get("endpoint_url"))
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        name = next((name for name in _ENDPOINTS if os.environ.get(name)), _ENDPOINTS[0])
        _refuse_endpoint(name, os.environ.get(name))
    given = {"FSSPEC_S3_KEY": fs.key, "FSSPEC_S3_SECRET": fs.secret, "FSSPEC_S3_TOKEN": fs.token}
    for name, value in {**{name: os.environ.get(name) for name in _KEYS}, **given}.items():
        _refuse_key(name, value)
    profile = _profile(fs.kwargs.get("profile"))
    if not fs.key and not os.environ.get(_KEYS[0]):
        for name in _KEYS[:3]:
            _refuse_key(f"{name.lower()} in the file of credentials", profile.get(name.lower()))


def _refuse_endpoint(name: str, value: str | None) -> None:
    if not value:
        return
    # Not quoted: who forgets http:// may have written a password. Raised here, as an error about it would quote it.
    problem = _problem_of_endpoint(value)
    if problem is not None:
        raise Misconfigured(f"{name} {problem}; write it as http(s)://host or http(s)://host:port")


def _problem_of_endpoint(value: str) -> str | None:
    if any(character.isspace() or not character.isprintable() for character in value):
        return "holds white space or a control character"
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        return "is no URL"
    if url.scheme not in ("http", "https"):
        return "does not begin with http:// or https://"
    if not url.hostname or port == 0:
        return "names no server"
    return "holds a user or a password, which S3 does not take" if "@" in url.netloc else None


def _refuse_key(name: str, value: str | None) -> None:
    if value and not all("!" <= character <= "~" for character in value):
        raise Misconfigured(
            f"{name} holds white space, a control character or one that is not ASCII, often a line end behind it; "
            "set it without"
        )


def _profile(given: str | None) -> dict[str, Any]:
    """Return what the files of settings say for the profile that is meant."""
    session = botocore.session.Session(profile=given)
    variables = {"AWS_SHARED_CREDENTIALS_FILE": "credentials_file", "AWS_CONFIG_FILE": "config_file"}
    for name, key in variables.items():
        path = Path(os.path.expandvars(session.get_config_variable(key))).expanduser()
        _refuse_file(name, path)
    try:
        return dict(session.get_scoped_config())
    except botocore.exceptions.ProfileNotFound:
        name = next((name for name in _PROFILES if os.environ.get(name)), _PROFILES[1])
        raise Misconfigured(
            f"{name} names a profile that is neither in AWS_CONFIG_FILE nor in AWS_SHARED_CREDENTIALS_FILE; "
            "correct it, or unset it"
        ) from None


def _refuse_file(name: str, path: Path) -> None:
    try:
        botocore.configloader.load_config(str(path))
    except botocore.exceptions.ConfigNotFound:
        return  # as botocore does: there may be none
    except botocore.exceptions.ConfigParseError:
        problem = "cannot be parsed; write [default], then a line for each key = value"
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); correct its permissions"
    else:
        return
    raise Misconfigured(f"{path}, which {name} names, {problem}")
