import numpy as np
import pytest
from scipy import sparse

from jobs.estimators.keyphrases import keyphrases
from jobs.estimators.tfidf import TfidfVectorizer
from jobs.estimators.topic_coherence import topic_coherence

TEXTS = ["new york is big", "in new york now", "new york again", "old new car york", "red wine", "red wine is red wine"]
GROUPS = np.array([0, 0, 0, 0, 1, 1])


def test_phrases_of_a_group_are_those_that_three_of_its_documents_hold() -> None:
    vectorizer = TfidfVectorizer().fit(TEXTS)
    of_places, of_wine = keyphrases([TEXTS], [GROUPS], 2, vectorizer, n_best=5)
    assert [(phrase.phrase, phrase.n_documents) for phrase in of_places] == [("new york", 3)]
    assert of_wine == []  # two documents only, however often they say it


def test_the_score_is_npmi_times_documents_times_share_of_the_group() -> None:
    vectorizer = TfidfVectorizer().fit(TEXTS)
    phrase = keyphrases([TEXTS], [np.array([0, 0, 0, 1, 1, 1])], 2, vectorizer, n_best=5)[0][0]
    npmi = np.log(3 * 6 / (4 * 4)) / -np.log(3 / 6)
    assert phrase.score == pytest.approx(npmi * 3 * 3 / 3)


@pytest.mark.parametrize("mode", ["exact", "hashed"])
def test_phrases_do_not_depend_on_how_documents_are_cut(mode: str) -> None:
    random = np.random.default_rng(0)
    texts = [f"w{random.integers(30)} left{k} right{k} w{random.integers(30)}" for k in random.integers(0, 5, 60)]
    groups = random.integers(0, 3, 60)
    vectorizer = TfidfVectorizer(mode=mode, n_hashed=2**20).fit(texts)  # type: ignore[arg-type]
    whole = keyphrases([texts], [groups], 3, vectorizer, n_best=8)
    cut = keyphrases([texts[:7], texts[7:50], texts[50:]], [groups[:7], groups[7:50], groups[50:]], 3, vectorizer, 8)
    assert cut == whole
    assert all(phrase.phrase[:4] == "left" for phrases in whole for phrase in phrases)
    assert all(whole)


def test_hashed_phrases_are_those_of_the_vocabulary_where_no_columns_are_shared() -> None:
    exact = keyphrases([TEXTS], [GROUPS], 2, TfidfVectorizer().fit(TEXTS), n_best=5)
    hashed = keyphrases([TEXTS], [GROUPS], 2, TfidfVectorizer(mode="hashed", n_hashed=2**22).fit(TEXTS), n_best=5)
    assert hashed == exact


def test_coherence_is_one_for_terms_always_together_and_minus_one_for_those_that_never_are() -> None:
    x = sparse.csr_array(np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32))
    assert topic_coherence([x], np.array([[0, 1], [2, 3]])).tolist() == pytest.approx([1, -1])


def test_coherence_is_mean_npmi_by_brute_force_however_rows_are_cut() -> None:
    random = np.random.default_rng(3)
    x = sparse.csr_array((random.random((40, 6)) < 0.4).astype(np.float32))
    dense = x.toarray() > 0
    scores = []
    for i, j in ((0, 2), (0, 5), (2, 5)):
        together = np.mean(dense[:, i] & dense[:, j])
        scores.append(np.log(together / dense[:, i].mean() / dense[:, j].mean()) / -np.log(together))
    found = topic_coherence([x[:13], x[13:]], np.array([[0, 2, 5]]))
    assert found.tolist() == pytest.approx([np.mean(scores)])
