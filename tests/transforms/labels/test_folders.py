"""What the names of folders say about an image, however the folders or files were given."""

import pytest

from transforms.declared import check
from transforms.errors import UsageError
from transforms.labels.folders import Place, by_pattern, partition_label, partition_value, read_folders, side_of
from transforms.shards.fields import Fields

SPLIT_FIRST = ["/d/train/ants", "/d/train/bees", "/d/val/ants", "/d/val/bees"]
TINY = ["/d/train/n01/images", "/d/train/n02/images", "/d/val/images", "/d/test/images"]


def stated(rule, *given):
    """Returns {folder: (label, split)}; given are folders, or (folder that was given, folder with images)."""
    places = [Place(each[1], each[0]) if isinstance(each, tuple) else Place(each, None) for each in given]
    return {place.folder: (found.label, found.split) for place, found in read_folders(rule, places).items()}


def below(root, folders):
    return [(root, folder) for folder in folders]


def alone(folders):
    return [(folder, folder) for folder in folders]


def test_split_first_then_class():
    expected = dict(
        zip(
            SPLIT_FIRST,
            [("ants", "train"), ("bees", "train"), ("ants", "validation"), ("bees", "validation")],
            strict=True,
        )
    )
    assert stated("folder", *below("/d", SPLIT_FIRST)) == expected
    # As a shell expands d/* and d/*/*, and the files of d/*/*/*.
    halves = below("/d/train", SPLIT_FIRST[:2]) + below("/d/val", SPLIT_FIRST[2:])
    assert stated("folder", *halves) == expected
    assert stated("folder", *alone(SPLIT_FIRST)) == expected
    assert stated("folder", *SPLIT_FIRST) == expected
    for rule in ("parent",):
        assert stated(rule, *below("/d", SPLIT_FIRST)) == expected


def test_folders_as_a_shell_expands_them_label_as_the_one_above():
    folders = ["/p/cats", "/p/dogs"]
    expected = {"/p/cats": ("cats", None), "/p/dogs": ("dogs", None)}
    assert stated("folder", *below("/p", folders)) == expected
    assert stated("folder", *alone(folders)) == expected
    # With the files that lie beside the folders: they have no label either way.
    assert stated("folder", *below("/p", ["/p", *folders])) == {**expected, "/p": (None, None)}
    assert stated("folder", *alone(folders), "/p") == {**expected, "/p": (None, None)}


def test_a_folder_by_itself_is_no_class():
    assert stated("folder", ("/p/cats", "/p/cats")) == {"/p/cats": (None, None)}
    # Nor are folders that have nothing to do with each other.
    assert stated("folder", *alone(["/p/cats", "/q/dogs"])) == {"/p/cats": (None, None), "/q/dogs": (None, None)}
    assert stated("parent", ("/p/cats", "/p/cats")) == {"/p/cats": ("cats", None)}


def test_tiny_imagenet():
    train = {TINY[0]: ("n01", "train"), TINY[1]: ("n02", "train")}
    whole = {**train, TINY[2]: (None, "validation"), TINY[3]: (None, "test")}
    assert stated("folder", *below("/d", TINY)) == whole
    assert stated("folder", *[(f"/d/{folder.split('/')[2]}", folder) for folder in TINY]) == whole
    # train/*, train/*/images, and the files of train/*/images/*
    assert stated("folder", *[(folder.removesuffix("/images"), folder) for folder in TINY[:2]]) == train
    assert stated("folder", *alone(TINY[:2])) == train
    assert stated("folder", *TINY[:2]) == train
    assert stated("grandparent", *below("/d", TINY[:2])) == train


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["/d/bus", "/d/car", "/d/train"], ["bus", "car", "train"]),
        (["/d/images/cats", "/d/images/dogs"], ["cats", "dogs"]),
        (["/d/data", "/d/cats"], ["data", "cats"]),
        (["/d/cats/train", "/d/dogs/train"], ["cats", "dogs"]),
        (["/d/label=cat", "/d/label=dog%20"], ["cat", "dog "]),
        (["/d/train2017", "/d/test_set"], [None, None]),
        (["/d/images"], [None]),
        (["/d/cats/deep/down"], ["cats"]),
    ],
)
def test_the_first_folder_that_may_be_a_class(folders, labels):
    assert [label for label, _ in stated("folder", *below("/d", folders)).values()] == labels


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["/d/cats", "/d/deep/dogs"], [("cats", None), ("dogs", None)]),
        (["/d/train", "/d/test"], [(None, "train"), (None, "test")]),
        (["/d/train", "/d/bus"], [("train", None), ("bus", None)]),
        (["/me/images"], [(None, None)]),
        (["/d/n01/images", "/d/n02/images"], [("n01", None), ("n02", None)]),
        (["/test/me/photos"], [("photos", None)]),
        ([""], [(None, None)]),
    ],
)
def test_named_files_have_the_folder_that_they_lie_in(folders, expected):
    assert list(stated("folder", *folders).values()) == expected


def test_none_keeps_the_sides():
    assert stated("none", *below("/d", SPLIT_FIRST))["/d/val/ants"] == (None, "validation")
    assert stated("none", ("/test/me", "/test/me/p")) == {"/test/me/p": (None, None)}


def test_patterns():
    assert by_pattern(r"regex:([a-z]+)_\d+\.jpg$", "/d/dog_12.jpg") == "dog"
    assert by_pattern(r"regex:/(?P<year>\d+)/(?P<label>\w+)/", "/d/2020/cat/1.jpg") == "cat"
    assert by_pattern("regex:cat|dog", "/d/dog_12.jpg") == "dog"
    assert by_pattern("regex:cat()", "/d/cat") is None
    assert by_pattern("regex:(x)?cat", "/d/cat") is None
    assert by_pattern("regex:bird", "/d/cat") is None


@pytest.mark.parametrize("rule", ["", "folders", "regex:", "regex:(", "Parent"])
def test_a_rule_that_cannot_be(rule):
    with pytest.raises(UsageError, match=r"--label-from .*folder, parent"):
        check(Fields(label_from=rule))


def test_sides():
    names = ["train", "Training", "train2017", "training_set", "VAL", "valid", "val-images", "dev", "test1", "testing"]
    assert [side_of(name) for name in names] == ["train"] * 4 + ["validation"] * 4 + ["test"] * 2
    assert [side_of(name) for name in ("trains", "value", "testament", "train_and_val", "")] == [None] * 5


def test_partitions():
    assert partition_label("/t/label=cat/part.parquet") == "cat"
    assert partition_label("/t/Category=c%2Fd/x=1/part.parquet") == "c/d"
    assert partition_label("/t/label=__HIVE_DEFAULT_PARTITION__/label=.parquet") is None
    assert partition_value("/t/label=cat/part.parquet", "species") is None
