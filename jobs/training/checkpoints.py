"""Checkpoints: the states of a training run in storage, so that a run that was cut off goes on from the last of them.

Layout: ``<url>/<start of the fingerprint>/step-<position>-<random>.state`` holds a state, ``latest.json`` beside it
names the last two, newest first. A state is written under a fresh name and becomes a checkpoint when latest.json, moved
by a conditional write, names it; so latest.json never names half a file, and never goes back to an earlier position,
whatever writers that were thought dead still do. The trainer calls this; what a state is, is its affair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs import storage
from jobs.errors import StorageError, StorageMissingError

LATEST = "latest.json"
N_KEPT = 2
# Each lost try is another writer's won one.
N_MOVES = 5
PAUSE_S = 0.1
# A byte may be spoilt on its way: what is read twice and is wrong both times is wrong in storage.
_N_READS = 2

_STATE = re.compile(r"step-(\d{12,})-[0-9a-f]{8}\.state")
_log = logging.getLogger("daskyard.training")


@dataclass(frozen=True)
class Checkpoint:
    """A state in storage: how far training had come, the file with its bytes and SHA-256, what the writer noted."""

    position: int
    n_bytes: int
    sha256: str
    file: str
    created_at: str
    notes: dict[str, Any]


@dataclass(frozen=True)
class _Latest:
    fingerprint: str
    checkpoints: list[Checkpoint]


_LATEST = TypeAdapter(_Latest)


class Checkpoints:
    """The checkpoints of one training run. Small: it is pickled to the ranks.

    Parameters
    ----------
    url : str
        Folder of the checkpoints.
    fingerprint : str
        SHA-256 in hex of all that must be the same for a state to be of use: params, data, seed.
    """

    def __init__(self, url: str, fingerprint: str) -> None:
        self.url = url
        self.fingerprint = fingerprint

    @property
    def folder(self) -> str:
        """URL of the folder of this fingerprint."""
        return storage.join(self.url, self.fingerprint[:16])

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none of this fingerprint."""
        checkpoints, _ = self._listed()
        return checkpoints[0] if checkpoints else None

    def read(self) -> tuple[Checkpoint, bytes] | None:
        """Return the newest checkpoint whose file is whole, and its state; tell of those passed over, strike them out.

        A listed one that cannot be read would keep all states out that training makes on its way back to its position.
        """
        checkpoints, version = self._listed()
        found, damage = self._newest_whole(checkpoints)
        if damage:
            # A writer may have moved on meanwhile and removed what was listed a moment ago.
            checkpoints, version_now = self._listed()
            if version_now != version:
                found, damage = self._newest_whole(checkpoints)
            version = version_now
        for what in damage:
            _log.warning("%s; the checkpoint before it is taken, if there is one", what)
        if damage:
            self._strike_out(checkpoints[: len(damage)], checkpoints, version)
        return found

    def _strike_out(self, damaged: Sequence[Checkpoint], listed: Sequence[Checkpoint], version: str | None) -> None:
        whole = [each for each in listed if each not in damaged]
        try:
            # Another version is another writer's doing, whose list is as good as ours.
            storage.replace(storage.join(self.folder, LATEST), self._content(whole), version)
        except StorageError as error:
            _log.warning("%s; the damaged checkpoints stay in the list", error)

    def write(self, position: int, state: bytes, notes: Mapping[str, Any]) -> bool:
        """Write a checkpoint; False where one of this position or a later one is there, which then stays.

        Also False where other writers were quicker several times in a row: the state is then not kept.

        Parameters
        ----------
        position : int
            How far training has come, such as the number of steps.
        state : bytes
            What training needs to go on.
        notes : mapping
            What else to keep beside it in latest.json, of JSON's types.
        """
        checkpoints, version = self._listed()
        if _is_behind(position, checkpoints):
            return False
        own = Checkpoint(
            position=position,
            n_bytes=len(state),
            sha256=hashlib.sha256(state).hexdigest(),
            file=f"step-{position:012d}-{secrets.token_hex(4)}.state",
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=json.loads(json.dumps(dict(notes))),  # fails before anything is written
        )
        storage.write_bytes(self._state_url(own.file), state)
        # Where storage fails from here on, the file stays: the move may have succeeded though its answer was lost.
        # If it is not listed after all, the next move removes it.
        for _ in range(N_MOVES):
            if self._move(own, checkpoints, version):
                return True
            time.sleep(PAUSE_S * random.uniform(0.5, 1.5))
            checkpoints, version = self._listed()
            # A move that seemed lost was not, if another writer stands on it already.
            if own.file in (each.file for each in checkpoints):
                return True
            if _is_behind(position, checkpoints):
                break
        storage.remove_tree(self._state_url(own.file))
        return False

    def remove(self) -> None:
        """Remove all checkpoints of this fingerprint."""
        storage.remove_tree(self.folder)

    def _state_url(self, file: str) -> str:
        return storage.join(self.folder, file)

    def _listed(self) -> tuple[list[Checkpoint], str | None]:
        """Return the checkpoints in force, newest first, and the version of latest.json, None where there is none.

        A list that cannot be read counts as empty: training begins anew, and the next state's list takes its place.
        """
        url = storage.join(self.folder, LATEST)
        try:
            content, version = storage.read_versioned(url)
        except StorageMissingError:
            return [], None
        try:
            latest = _LATEST.validate_json(content)
        except ValidationError:
            _log.warning("%s: not a list of checkpoints; it counts as empty, and training starts anew", url)
            return [], version
        return (latest.checkpoints if latest.fingerprint == self.fingerprint else []), version

    def _newest_whole(self, checkpoints: Sequence[Checkpoint]) -> tuple[tuple[Checkpoint, bytes] | None, list[str]]:
        """Return the newest checkpoint whose hash holds with its state, and what is wrong with those before it."""
        damage: list[str] = []
        for checkpoint in checkpoints:
            url = self._state_url(checkpoint.file)
            problem = "the content is not what was written (its SHA-256 is another)"
            for _ in range(_N_READS):
                try:
                    state = storage.read_bytes(url)
                except StorageMissingError:
                    problem = "the file is missing"
                    break
                if hashlib.sha256(state).hexdigest() == checkpoint.sha256:
                    return (checkpoint, state), damage
            damage.append(f"{url}: {problem}")
        return None, damage

    def _move(self, own: Checkpoint, checkpoints: Sequence[Checkpoint], version: str | None) -> bool:
        """Put `own` in front of latest.json, if that is still of `version`; then remove the files it pushed out."""
        kept = [own, *checkpoints][:N_KEPT]
        # Listed before the move: while latest.json is of `version` no file of an earlier position but these can be in
        # force or get there, so what a later run writes after a `remove` is never taken for a leftover.
        leftovers = self._files_up_to(own.position) - {each.file for each in kept}
        if storage.replace(storage.join(self.folder, LATEST), self._content(kept), version) is None:
            return False
        for file in leftovers:
            try:
                storage.remove_tree(self._state_url(file))
            except StorageError as error:
                # The checkpoint stands; the next move tries again.
                _log.warning("%s; an old state is left there", error)
        return True

    def _content(self, checkpoints: Sequence[Checkpoint]) -> bytes:
        return json.dumps(asdict(_Latest(self.fingerprint, list(checkpoints))), indent=2).encode()

    def _files_up_to(self, position: int) -> set[str]:
        """Names of the state files of `position` or before: listed ones, and those of writers that were cut off."""
        names: set[str] = set()
        with contextlib.suppress(StorageMissingError):
            names = {file.url.rsplit("/", 1)[-1] for file in storage.list_files(self.folder, suffixes=(".state",))}
        return {name for name in names if (match := _STATE.fullmatch(name)) and int(match[1]) <= position}


def _is_behind(position: int, checkpoints: Sequence[Checkpoint]) -> bool:
    return bool(checkpoints) and checkpoints[0].position >= position
