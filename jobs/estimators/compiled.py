"""Whether numba may keep compiled code on disk: it spares each new worker process seconds of compiling.

Asked for a cache, numba fails at import where it finds no folder to write to, as in a container with a read-only
file system; so it is asked only where there is one: that of NUMBA_CACHE_DIR, or `__pycache__` beside the code.
"""

from __future__ import annotations

import os
from pathlib import Path

IS_CACHED = bool(os.environ.get("NUMBA_CACHE_DIR")) or os.access(Path(__file__).parent, os.W_OK)
