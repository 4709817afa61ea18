"""Params of the recommender pipeline."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from jobs.spec.base import Params

Name = Annotated[str, Field(min_length=1)]


class RecommenderParams(Params):
    """Recommendations from interactions of users and items."""

    of_fit: ClassVar[frozenset[str]] = frozenset(
        {"rank", "regularization", "bias_regularization", "alpha", "n_iterations", "n_cg_steps"}
    )
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {
        "rmse": "min",
        "mae": "min",
        "ndcg": "max",
        "precision": "max",
        "recall": "max",
        "map": "max",
    }

    mode: Literal["explicit", "implicit"] = Field(
        "explicit", description="explicit: ratings are predicted; implicit: what a user will choose is."
    )
    user_column: Name = Field("user_id", description="Column of the users' ids, integers or text.")
    item_column: Name = Field("item_id", description="Column of the items' ids, integers or text.")
    rating_column: Name | None = Field(
        "rating",
        description="Column of ratings (explicit) or of counts above 0 (implicit); null counts each interaction as 1.",
    )
    timestamp_column: Name | None = Field(
        None,
        description="Column that says which of repeated ratings is the last: numbers or ISO 8601 dates, one of the two "
        "in all files; without it, the order of the rows.",
    )
    columns: tuple[Name, ...] | None = Field(
        None, min_length=2, description="Names of the columns, in order, of csv and tsv files without a header."
    )
    duplicates: Literal["last", "mean"] = Field(
        "last", description="What becomes of several ratings of one item by one user: the last stands, or their mean."
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of each user's interactions set aside to test on; unused with input.test_url.",
    )
    rank: int = Field(64, ge=1, le=1024, description="Length of the factor vectors.")
    regularization: float | None = Field(
        None, gt=0, le=1e12, description="L2 weight of the factors; null is 14 (explicit) or 30 (implicit)."
    )
    bias_regularization: float = Field(4.0, gt=0, le=1e12, description="L2 weight of the biases (explicit).")
    alpha: float = Field(
        2.0, gt=0, le=1e9, description="Confidence that one unit of value adds to the 1 of all pairs (implicit)."
    )
    n_iterations: int = Field(10, ge=1, le=1000, description="Iterations of alternating least squares.")
    n_cg_steps: int = Field(
        3, ge=0, le=100, description="Conjugate-gradient steps a half-iteration; 0 solves exactly (implicit)."
    )
    k: int = Field(10, ge=1, description="Length of the lists that precision, recall, nDCG and MAP look at.")
    top_n: int = Field(10, ge=1, description="Recommendations written for each user.")
    partition_bytes: int = Field(
        32 * 2**20,
        ge=64,
        description="Bytes of input that a worker reads at a time; has no bearing on the result. A csv file with line "
        "breaks within quotes is refused where it is longer.",
    )

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if self.mode == "explicit" and self.rating_column is None:
            raise ValueError(
                "rating_column is null, but mode explicit predicts ratings; name the column or set mode to implicit"
            )
        named = [c for c in (self.user_column, self.item_column, self.rating_column, self.timestamp_column) if c]
        twice = next((c for c in named if named.count(c) > 1), None)
        if twice is not None:
            raise ValueError(f"column {twice!r} is named for two purposes; name one column for each")
        if self.columns is not None:
            if len(set(self.columns)) < len(self.columns):
                raise ValueError("columns: a name stands twice; name each column once")
            missing = next((c for c in named if c not in self.columns), None)
            if missing is not None:
                raise ValueError(f"columns: {missing!r} is not among {', '.join(self.columns)}; correct one of them")
        return self
