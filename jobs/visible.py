"""Makes visible what a terminal would obey, and a reader would not see, in text that comes from outside.

Names of files, columns and classes, manifests and messages may hold escape sequences, line breaks, marks that turn
the direction of writing, or halves of characters that no encoding takes. Called wherever text leaves: by the command
line and the report.
"""

from __future__ import annotations

import json
import re
from typing import Any

# C0, DEL and C1; soft hyphen; marks of no width and of direction; separators of lines; tags; halves of characters.
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)
_PATTERN = re.compile(f"[{_UNSEEN}]")
# Of a JSON document the line breaks are its own: within its text they are escaped already.
_IN_JSON = re.compile(f"[{_UNSEEN.replace(chr(0) + '-' + chr(0x1F), '')}]")


def visible(text: object) -> str:
    r"""Return text, in one line, with ``\x1b``, ``\n`` or ``\u202e`` in place of what is not seen."""
    return _PATTERN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def visible_lines(text: str) -> str:
    """Return text with its line breaks and tabs, and all else as `visible` does."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def visible_json(document: Any, indent: int | None = 2) -> str:
    r"""Return JSON that means the same and is plain to see: ``\u202e`` stands for what is not seen."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    return _IN_JSON.sub(lambda found: json.dumps(found[0])[1:-1], text)
