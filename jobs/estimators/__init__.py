"""Estimators under scikit-learn's contract: arrays in, arrays out; no storage, no command line.

`from jobs.estimators import KMeans` imports that one's module alone, so nobody waits for what is not asked for.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "ExplicitALS": "als",
    "ImplicitALS": "als",
    "InteractionBlocks": "als_blocks",
    "KMeans": "kmeans",
    "LinearRegression": "linear_regression",
    "LinearSVM": "linear_svm",
    "LogisticRegression": "logistic_regression",
    # They use the trainer, which this package must not import: a full name is looked up where it says.
    "MLPClassifier": "jobs.training.mlp_estimators",
    "MLPRegressor": "jobs.training.mlp_estimators",
    "NMF": "nmf",
    "Ridge": "ridge",
    "TfidfVectorizer": "tfidf",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Import an estimator when it is asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(module if "." in module else f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    """List the estimators too."""
    return sorted({*globals(), *_MODULES})
