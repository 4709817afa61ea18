"""What a URL of data must have, whoever reads it: the job file's models and storage say the same of it."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_LOCAL = ("file", "local")
_WITHOUT_A_PLACE = ("memory",)  # its root is a folder as any other


def problem_of(url: str) -> str | None:
    """Return what is wrong with a URL, with its remedy, or None; a path without a scheme is a URL as well."""
    found = _SCHEME.match(url)
    if found is None or ("::" in url and "://" in url and not found[2]):
        return None  # a path, or a chain of URLs
    scheme, rest = found[1].lower(), url[found.end() :]
    if not found[2]:
        return f"{found[1]}: begins no URL without //; write {found[1]}://…, or ./{found[0]}… for a file of that name"
    if scheme in ("s3", "s3a") and not rest.partition("/")[0].partition("?")[0]:
        return f"names no bucket; write {scheme}://bucket/folder"
    if scheme not in _LOCAL and not rest.strip("/") and scheme not in _WITHOUT_A_PLACE:
        return f"names no place; write what comes after {scheme}://"
    if scheme in _LOCAL and not rest:
        return f"names no place; write {scheme}:///…"
    host = rest.partition("/")[0]
    if scheme in _LOCAL and host and host.lower() != "localhost":
        return f"names the host {host!r}, whose files cannot be reached; write {scheme}:///… or a path"
    if scheme in _LOCAL and host and "/" not in rest:
        return f"names no place; write {scheme}:///…"
    return None


def without_host(url: str) -> str:
    """Return the URL of a local file without this machine's name, which fsspec takes for a folder."""
    return re.sub(r"^(file|local)://localhost/", r"\1:///", url, flags=re.IGNORECASE)


def join(url: str, *parts: str) -> str:
    """Append path parts to a URL."""
    scheme, separator, path = url.rpartition("://")
    return "/".join([f"{scheme}{separator}{path.rstrip('/')}", *(part.strip("/") for part in parts)])
