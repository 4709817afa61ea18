"""Params of the pipeline `text_mining`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from jobs.spec.base import Params


class TextMiningParams(Params):
    """TF-IDF, a linear classifier where there are labels, topics, terms and keyphrases."""

    of_fit: ClassVar[frozenset[str]] = frozenset({"classifier", "C", "class_weight", "max_iter", "topic_iterations"})
    directions: ClassVar[dict[str, Literal["max", "min"]]] = {
        "accuracy": "max",
        "macro_f1": "max",
        "topic_coherence": "max",
        "topic_error": "min",
    }

    text_column: str = Field("text", min_length=1, description="Column that holds the documents.")
    label_column: str | None = Field(
        "label",
        min_length=1,
        description="Column that holds the classes; null for topics only. Of folders of text files the folder's name "
        "is the class.",
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the documents set aside where the input has no test set."
    )
    partition_mib: float | None = Field(
        None, gt=0, le=1024, description="MiB that a task reads; by default some tasks a worker. Changes no result."
    )
    vectorizer: Literal["exact", "hashed"] = Field(
        "exact", description="How terms become columns: by a vocabulary, or by a hash that needs none."
    )
    max_ngram: Literal[1, 2] = Field(1, description="1: single words; 2: pairs of neighbouring words as well.")
    min_token_length: int = Field(1, ge=1, le=100, description="Characters that a word has at least.")
    stop_words: Literal["none", "english"] = Field("english", description="Words to leave out.")
    min_df: int = Field(2, ge=1, description="Documents in which a term occurs at least; of the exact vectorizer.")
    max_df: float = Field(
        0.5, gt=0, le=1, description="Share of the documents in which a term occurs at most; of the exact vectorizer."
    )
    max_features: int | None = Field(
        None, ge=1, description="Terms at most, those that occur most often; of the exact vectorizer."
    )
    n_hashed: int = Field(2**18, ge=16, le=2**24, description="Columns of the hashed vectorizer.")
    sublinear_tf: bool = Field(True, description="Weigh a term that occurs n times by 1 + ln n in place of n.")
    classifier: Literal["svm", "logistic"] = Field(
        "svm", description="Linear support vector machine, or multinomial logistic regression."
    )
    C: float = Field(1.0, gt=0, le=1e6, description="Weight of the classifier's loss against its penalty.")
    class_weight: Literal["none", "balanced"] = Field(
        "none", description="balanced: a class weighs as much as another, however many documents it has."
    )
    max_iter: int = Field(100, ge=1, le=10000, description="Newton steps of the classifier at most.")
    n_topics: int = Field(0, ge=0, le=1000, description="Topics to find; 0: none.")
    topic_iterations: int = Field(200, ge=1, le=10000, description="Iterations of the topics at most.")
    n_top: int = Field(10, ge=2, le=1000, description="Terms and keyphrases shown for each class and topic.")

    @model_validator(mode="after")
    def _has_something_to_do(self) -> TextMiningParams:
        if self.label_column is None and self.n_topics == 0:
            raise ValueError("label_column is null and n_topics 0: nothing to do; set one of them")
        return self
