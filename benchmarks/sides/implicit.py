"""Alternating least squares as the library `implicit` does it, by conjugate gradients in float32."""

from __future__ import annotations

from pathlib import Path

from implicit.als import AlternatingLeastSquares
from scipy import sparse

from benchmarks.sides.serve import Work, serve


def implicit_als(folder: Path, rank: int, regularization: float, alpha: float, n_iterations: int) -> Work:
    matrix = sparse.load_npz(folder / "interactions.npz").astype("float32")

    def fit() -> AlternatingLeastSquares:
        # Its confidence of a stored value v is alpha · v, where ours, as in the paper, is 1 + alpha · v; v is 1 here.
        model = AlternatingLeastSquares(
            factors=rank,
            regularization=regularization,
            alpha=1 + alpha,
            iterations=n_iterations,
            use_cg=True,
            num_threads=2,
            random_state=0,
        )
        model.fit(matrix, show_progress=False)
        return model

    return fit, lambda model: {"users": model.user_factors, "items": model.item_factors}


if __name__ == "__main__":
    serve([implicit_als], ["implicit", "numpy", "scipy"])
