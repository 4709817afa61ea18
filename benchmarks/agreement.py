"""Did both sides do the same work? Each check looks at what was found and says so in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from jobs.estimators.ranking import ranking_sums

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Agreement:
    """Whether a check held, and what was seen."""

    holds: bool
    seen: str


def same_clusters(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Labels equal, inertia to 1e-6."""
    n_other = int((ours["labels"] != theirs["labels"]).sum())
    gap = _gap(ours["inertia"], theirs["inertia"])
    return Agreement(
        n_other == 0 and gap <= 1e-6, f"{_iterations(ours, theirs)}; {n_other} labels differ, inertia by {gap:.1e}"
    )


def wrong_clusters(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """For a peer whose inertia is known to be wrong: the labels alone."""
    n_other = int((ours["labels"] != theirs["labels"]).sum())
    gap = _gap(ours["inertia"], theirs["inertia"])
    return Agreement(
        n_other == 0, f"{_iterations(ours, theirs)}; {n_other} labels differ; the peer's inertia is off by {gap:.0%}"
    )


def as_good_clusters(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Inertia at most 1 % above the peer's."""
    excess = float(ours["inertia"] / theirs["inertia"] - 1)
    return Agreement(excess <= 0.01, f"inertia {excess:+.2%} against the best of its 10 starts")


def same_line(ours: Found, theirs: Found, folder: Path, tolerance: float = 1e-10) -> Agreement:
    """Coefficients to 1e-10 of the largest."""
    gap = float(np.abs(ours["coef"] - theirs["coef"]).max() / np.abs(theirs["coef"]).max())
    return Agreement(gap <= tolerance, f"coefficients differ by {gap:.1e} of the largest")


def near_line(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """For a peer that iterates: coefficients to 1e-3 of the largest."""
    return same_line(ours, theirs, folder, tolerance=1e-3)


def same_loss(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """The objective of both solutions, computed here by one function, to 1e-6."""
    name = folder / "rows.npy"
    rows = np.load(name) if name.exists() else sparse.load_npz(folder / "rows.npz")
    target = np.load(folder / "target.npy")
    first, second = (_objective(rows, target, found["coef"], found["intercept"]) for found in (ours, theirs))
    gap = _gap(first, second)
    return Agreement(gap <= 1e-6, f"loss {first:.8g} and {second:.8g}: differs by {gap:.1e}")


def same_documents(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Stored weights to 1 in 1,000 and each document's sum of weights to 1 in 10,000."""
    gap = _gap(ours["n_stored"], theirs["n_stored"])
    sums = float(np.max(np.abs(ours["sums"] - theirs["sums"]) / np.maximum(theirs["sums"], 1)))
    return Agreement(
        gap <= 1e-3 and sums <= 1e-4, f"stored weights differ by {gap:.1e}, a document's sum by {sums:.1e}"
    )


def same_factors(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """The objective of our factors at most 1 % above that of theirs, whose start is another."""
    matrix = sparse.load_npz(folder / "interactions.npz")
    first, second = (_implicit_objective(matrix, found["users"], found["items"]) for found in (ours, theirs))
    return Agreement(first <= 1.01 * second, f"objective {first:.6g}, theirs {second:.6g}")


def as_good_lists(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Objective as above, and nDCG@10 over all unseen items of at least 0.444."""
    seen, relevant = (sparse.load_npz(folder / f"{name}.npz") for name in ("interactions", "relevant"))
    first, second = (
        ranking_sums(
            np.asarray(found["users"], dtype=float), np.asarray(found["items"], dtype=float), seen, relevant, 10
        ).metrics(10)["ndcg@10"]
        for found in (ours, theirs)
    )
    factors = same_factors(ours, theirs, folder)
    return Agreement(factors.holds and first >= 0.444, f"nDCG@10 {first:.4f}, theirs {second:.4f}; {factors.seen}")


def same_groups(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Every value of every group to 1e-9 of the column's largest, and no worker lost on our side."""
    scale = np.nanmax(np.abs(theirs["groups"]), axis=0)
    gap = float(np.nanmax(np.abs(ours["groups"] - theirs["groups"]) / scale))
    what = f"{len(ours['groups']):,} groups, values differ by {gap:.1e} of the largest"
    return Agreement(gap <= 1e-9 and not ours["n_lost"], f"{what}; {_costs(ours, theirs)}")


def same_coefficients(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Coefficients to 0.005: ours are fitted on four fifths of the rows; and no worker lost on our side."""
    gap = float(np.abs(ours["coef"] - theirs["coef"]).max())
    return Agreement(gap <= 0.005 and not ours["n_lost"], f"coefficients differ by {gap:.1e}; {_costs(ours, theirs)}")


def _costs(ours: Found, theirs: Found) -> str:
    lost = [f"{int(side['n_lost'])} workers lost" for side in (ours, theirs)]
    return (
        f"{float(ours['seconds']):.0f} s, {lost[0]}, {float(ours['spilled']):,.0f} MiB to disk; "
        f"theirs {float(theirs['seconds']):.0f} s, {lost[1]}"
    )


def nothing_more(ours: Found, theirs: Found, folder: Path) -> Agreement:
    """Where the value that is compared is itself what was found."""
    return Agreement(True, "each model its own, on the same folds")


def _iterations(ours: Found, theirs: Found) -> str:
    return f"{int(ours['n_iter'])} and {int(theirs['n_iter'])} iterations"


def _gap(a: Any, b: Any) -> float:
    return abs(float(a) / float(b) - 1)


def _objective(rows: Any, target: Any, coef: Any, intercept: Any) -> float:
    """½‖W‖² + Σ cross entropy."""
    scores = np.asarray(rows @ coef.T + intercept)
    classes, numbers = np.unique(target, return_inverse=True)
    if len(classes) == 2:
        scores = np.hstack([np.zeros_like(scores), scores])
    losses = logsumexp(scores, axis=1) - scores[np.arange(len(scores)), numbers]
    return float(0.5 * np.sum(coef**2) + losses.sum())


def _implicit_objective(matrix: Any, users: Any, items: Any, alpha: float = 2.0, regularization: float = 30.0) -> float:
    """Hu, Koren and Volinsky's: over all pairs by Gram matrices, and the rest over the stored ones."""
    users, items = np.asarray(users, dtype=float), np.asarray(items, dtype=float)
    pairs = matrix.tocoo()
    scores = np.einsum("ij,ij->i", users[pairs.row], items[pairs.col])
    everywhere = float(np.sum((users.T @ users) * (items.T @ items)))
    stored = float(np.sum((1 + alpha * pairs.data) * (1 - scores) ** 2 - scores**2))
    return everywhere + stored + regularization * float(np.sum(users**2) + np.sum(items**2))
