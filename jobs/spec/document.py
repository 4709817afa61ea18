"""Reads YAML that users write: job files, MLJobs, the values of --set. Called by `jobs.spec.job` and the command line.

A few hundred bytes of YAML can stand for gigabytes, by aliases of aliases, so what a document amounts to is counted
before anything is made of it. What comes out is what JSON can say: text, numbers, true, false, null, lists and
mappings with keys of text; nothing of it is shared between two places.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import SpecError

# Kubernetes' store takes about as much for a whole MLJob.
MOST_BYTES = 1 << 20
# Values and characters, once each alias is written out.
MOST_EXPANDED = 4 << 20
LONGEST_NUMBER = 20_000
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
DEEPEST = 64
_MERGE = "tag:yaml.org,2002:merge"
_ON_ITS_OWN = {_MERGE, "tag:yaml.org,2002:value"}
_SHOWN = 60


def read(source: str | Path) -> tuple[Any, str]:
    """Return what a YAML file holds, or standard input for ``-``, and what to call it in messages.

    Raises
    ------
    SpecError
        When it cannot be read, is longer than `MOST_BYTES` or is no YAML; see `parsed` for the rest.
    """
    is_stdin = str(source) == "-"
    place = "standard input" if is_stdin else str(source)
    try:
        if is_stdin:
            data = getattr(sys.stdin, "buffer", sys.stdin).read(MOST_BYTES + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{place}: cannot be read ({error.strerror}); name a job file") from error
    except ValueError as error:
        raise SpecError(f"{place!r}: cannot be read ({error}); name a job file") from error
    if len(data) > MOST_BYTES:
        raise SpecError(f"{place}: longer than {MOST_BYTES >> 20} MiB; name a job file, it only says where the data is")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{place}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    return parsed(text, place), place


def parsed(text: str, place: str) -> Any:
    """Return what YAML says.

    Raises
    ------
    SpecError
        When it is no YAML, has a key twice, amounts to more than `MOST_EXPANDED` or nests deeper than `DEEPEST`, or
        holds what JSON has no word for.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SpecError(f"{place}:{line} not valid YAML ({problem}); mend the syntax") from error
    except RecursionError as error:
        raise SpecError(f"{place}: nested too deep; {DEEPEST} levels at most") from error
    return plain(content, place)


def plain(value: Any, place: str) -> Any:
    """Return a copy of what JSON can say.

    Raises
    ------
    SpecError
        When it is anything else: a date, bytes, a key that is no text, a number beyond 64 bits, half a character.
    """
    return _plain(value, place, ())


def _plain(value: Any, place: str, path: tuple[str, ...]) -> Any:
    if len(path) > DEEPEST:
        raise SpecError(f"{place}: {'.'.join(path[:3])}…: nested too deep; {DEEPEST} levels at most")
    match value:
        case None | bool():
            return value
        case str():
            return _whole_text(value, place, path)
        case int():
            if not -(2**63) <= value < 2**63:
                # Not the number itself: Python does not write one of more than 4,300 digits.
                raise _refusal(place, path, "a number beyond 64 bits; write a smaller one")
            return value
        case float():
            if not math.isfinite(value):
                raise _refusal(place, path, f"{value} is no number to compute with; write a finite one")
            return value
        case list() | tuple():
            return [_plain(each, place, (*path, str(at))) for at, each in enumerate(value)]
        case Mapping():
            copy = {}
            for key, each in value.items():
                if not isinstance(key, str):
                    raise _refusal(place, path, f"the key {_short(key)} is no text; write it in quotes")
                copy[_whole_text(key, place, path)] = _plain(each, place, (*path, key))
            return copy
    kind = type(value).__name__
    raise _refusal(place, path, f"{_short(value)} is a {kind}; quote dates and other values that are meant as text")


def _whole_text(text: str, place: str, path: tuple[str, ...]) -> str:
    if "\0" in text:
        raise _refusal(place, path, f"{ascii(text)[:_SHOWN]} holds a NUL, which no name has; correct it")
    if text.isascii():
        return text
    try:
        # JSON writes a character beyond 16 bits as two halves, which YAML leaves as they are.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _refusal(place, path, f"{ascii(text)[:_SHOWN]} holds half a character; correct it") from None


def _refusal(place: str, path: tuple[str, ...], what: str) -> SpecError:
    return SpecError(": ".join(part for part in (place, ".".join(path), what) if part))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML's silent last-one-wins hides mistakes. Counts what aliases stand for."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = 0
        # Of each node that is whole: values and characters, and levels, with what its aliases stand for.
        self._extents: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and refuse it where it amounts to too much."""
        mark = self.peek_event().start_mark
        self._level += 1
        if self._level > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST} levels", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is not None and is_alias and node not in self._extents:
            raise yaml.composer.ComposerError(None, None, "an alias within what it stands for", mark)
        if node is not None and not is_alias:
            self._extents[node] = self._extent(node, mark)
        return node

    def _extent(self, node: yaml.Node, mark: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1 + len(node.value), 1
        children = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        extents = [self._extents[child] for child in children]
        size = 1 + sum(size for size, _ in extents)
        levels = 1 + max((levels for _, levels in extents), default=0)
        if size > MOST_EXPANDED:
            raise yaml.composer.ComposerError(None, None, f"its aliases stand for over {MOST_EXPANDED:,} values", mark)
        if levels > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"aliases nested deeper than {DEEPEST} levels", mark)
        return size, levels

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; what is none, such as ``!!int x`` or a number of 5,000 digits, is named."""
        try:
            if node.tag in _NUMBERS and len(node.value) > LONGEST_NUMBER:
                raise ValueError  # to the base of 60, 1:2:3 and so on, it would take time by the square
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
            kind = node.tag.rsplit(":", 1)[-1]
            raise yaml.constructor.ConstructorError(
                None, None, f"{_short(node.value)} is not of type {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping of distinct keys; what is merged into it may have them as well."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag in _ON_ITS_OWN or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.2 takes 1e-4 for a number; PyYAML, which reads YAML 1.1, for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)
