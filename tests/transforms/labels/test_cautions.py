"""Labels that look wrong are said; those that look right aren't."""

import unicodedata

import pytest

from transforms.labels.cautions import cautions


def counts(*labels):
    return dict.fromkeys(labels, 5)


@pytest.mark.parametrize(
    "labels",
    [
        ("ants", "bees"),
        ("bus", "car", "train"),
        tuple("0123456789"),
        ("n01440764", "n01443537"),
        ("000", "cat"),
        (*"0123456789", *"abc"),
        ("cat", "catfish", None),
        (None,),
        (),
    ],
)
def test_usual_labels_pass(labels):
    assert cautions(counts(*labels)) == []


@pytest.mark.parametrize(
    ("labels", "caution"),
    [
        (("train", "val"), "names of sides"),
        (("Test", "Training", "validation"), "names of sides"),
        (("train2017", "val2017"), "names of sides"),
        (("images",), "names of folders that hold images"),
        (("data", "imgs"), "names of folders that hold images"),
        (("00000", "00001", "00002"), "numbers of shards"),
        (("shard-000", "shard-001"), "numbers of shards"),
        (("cat",), "only one class"),
        (("cat", "cat "), "'cat' and 'cat '"),
        (("cat", "dog", "Dog"), "'Dog' and 'dog'"),
        (("0", "00", "1", "1.0", "1e0"), "'0' and '00'; '1' and '1.0' and '1e0'"),
        (("dog", "caf\u00e9", "cafe\u0301"), "'cafe\\u0301' and 'caf\u00e9'"),
        (("0", "1", "cat", "dog"), "0', '1'"),
        (("-1", "0", "1"), "'-1' is a label"),
        (("NaN", "N/A", "cat", "dog"), "'N/A', 'NaN' are labels"),
    ],
)
def test_each_kind_is_reported_once(labels, caution):
    lines = cautions(counts(*labels))
    assert len(lines) == 1
    assert caution in lines[0]


def test_a_look_does_not_say_what_more_rows_may_disprove():
    assert cautions({"cat": 300}, whole=False) == []
    assert len(cautions({"train": 300}, whole=False)) == 1


def test_labels_without_rows_do_not_count():
    assert len(cautions({"cat": 5, "Cat": 0})) == 1
    assert "one class" in cautions({"cat": 5, "Cat": 0})[0]


def test_hostile_labels_are_short_lines():
    lines = cautions(counts("1e999999999", "1e1000000000", "a" * 10_000, "A" * 10_000, "a\nb", "A b"))
    assert all(len(line) < 500 and "\n" not in line for line in lines)


def test_forms_are_compared_after_folding():
    decomposed = unicodedata.normalize("NFD", "\u00c5ngstr\u00f6m")
    assert len(cautions(counts(decomposed, "\u00e5ngstr\u00f6m", "x"))) == 1
