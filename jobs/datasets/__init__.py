"""Public data sets, brought to any storage URL in a form that the pipelines read. Called by the CLI and the demo.

Nothing is shipped with Daskyard: every file comes from where its owner publishes it or from a package that carries
it, is checked by SHA-256, and is kept in the user's cache folder.
"""

from jobs.datasets.base import Dataset
from jobs.datasets.cache import fetch
from jobs.datasets.catalogue import DATASETS, find

__all__ = ["DATASETS", "Dataset", "fetch", "find"]
