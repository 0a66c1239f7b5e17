"""Which rows belong together, against the rules in words; and a plain loop for the ends of paths."""

import hashlib
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.properties import examples
from transforms.rows.matching import Ambiguity, match_rows


def match(keys, file_keys, *, sha256=None, file_sha256=None):
    def chunked(values, kind):
        return None if values is None else pa.chunked_array([values[:2], values[2:]], kind)

    digests = chunked(file_sha256, pa.string() if file_sha256 and isinstance(file_sha256[0], str) else pa.binary())
    return match_rows(
        chunked(keys, pa.string()), chunked(sha256, pa.binary()), chunked(file_keys, pa.string()), digests
    )


PHOTOS = ["/data/train/cat/1.jpg", "/data/train/cat/2.b.png", "/data/train/dog/3.jpg", "/data/train/x.jpg"]


@pytest.mark.parametrize(
    ("file_keys", "rule", "found"),
    [
        ([PHOTOS[2], PHOTOS[0], "/elsewhere/1.jpg"], "full key", [1, -1, 0, -1]),
        (["cat/1.jpg", "./train/x.jpg", "bird/3.jpg"], "path suffix", [0, -1, -1, 1]),
        (["cat\\1.jpg", "dog\\3.jpg"], "path suffix", [0, -1, 1, -1]),
        (["/mnt/train/dog/3.jpg", "/mnt/train/x.jpg"], "path suffix, below mnt/train of the file", [-1, -1, 0, 1]),
        (["3.jpg", "4.jpg", "1.jpg"], "file name", [2, -1, 0, -1]),
        (["D:\\a\\3.jpg", "E:\\b\\1.jpg"], "file name", [1, -1, 0, -1]),
        (["1", "2.b", "3"], "stem", [0, 1, 2, -1]),
        (["1.JPEG", "3.png"], "stem", [0, -1, 1, -1]),
    ],
)
def test_the_first_rule_that_finds_something(file_keys, rule, found):
    matched = match(PHOTOS, file_keys)
    assert matched.rule == rule
    assert matched.found.tolist() == found


def test_members_of_shards():
    keys = ["/data/a.tar#n1/cat.jpg", "/data/a.tar#n2/dog.jpg", "/data/b.tar#n1/elk.jpg"]
    assert match(keys, ["n1/elk.jpg", "a.tar/n2/dog.jpg"]).found.tolist() == [-1, 1, 0]
    assert match(keys, ["b.tar#n1/elk.jpg"]).found.tolist() == [-1, -1, 0]
    assert match(keys, ["dog", "cat"]).rule == "stem"


def test_the_place_of_a_row_is_no_name():
    """Ids count from 1, places from 0: all but one would have a label, and none its own."""
    keys = [f"/data/a.parquet#{i}" for i in range(4)]
    assert match(keys, ["1", "2", "3", "4"]) is None
    assert match(keys, ["a.parquet#2"]).found.tolist() == [-1, -1, 0, -1]


def test_shorter_keys_of_the_features():
    assert match(["cat/1.jpg", "x.jpg"], ["/a/x.jpg", "/a/cat/1.jpg"]).found.tolist() == [1, 0]


def test_unicode_forms():
    keys = [unicodedata.normalize("NFD", f"/photos/{name}.jpg") for name in ("café", "thé", "plain")]
    file_keys = [unicodedata.normalize("NFC", key) for key in reversed(keys)]
    assert match(keys, file_keys).found.tolist() == [2, 1, 0]
    # Two files of names that look the same.
    twins = [unicodedata.normalize(form, "/photos/é.jpg") for form in ("NFC", "NFD")]
    matched = match([*twins, "/photos/a.jpg"], [twins[1], "/photos/a.jpg", twins[0]])
    assert (matched.rule, matched.found.tolist()) == ("full key, letter by letter", [2, 0, 1])


def test_a_key_that_the_features_have_twice():
    assert match(["/a.jpg", "/b.jpg", "/a.jpg"], ["/a.jpg"]).found.tolist() == [0, -1, 0]


def test_relative_paths_where_a_name_is_also_below():
    matched = match(["/data/1.jpg", "/data/sub/1.jpg"], ["1.jpg", "sub/1.jpg"])
    assert (matched.rule, matched.found.tolist()) == ("relative path", [0, 1])


def test_ambiguous_rows_are_named():
    keys = ["/data/a/1.jpg", "/data/b/1.jpg", "/data/b/2.jpg"]
    assert match(keys, ["2", "1"]) == Ambiguity("stem", 1, ("1",), tuple(keys[:2]))
    assert match(keys, ["u/2.jpg", "v/2.jpg"]) == Ambiguity("file name", 2, ("u/2.jpg", "v/2.jpg"), (keys[2],))
    # What nobody asks for may be there twice.
    assert match(keys, ["2"]).found.tolist() == [-1, -1, 0]


def test_content():
    digests = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    # Copies of one content have one label.
    keys, sha256 = ["k", "l", "m"], [digests[1], digests[0], digests[1]]
    for given_digests in ([d.hex() for d in digests], [d.hex().upper() for d in digests], digests):
        matched = match(keys, list("pqrs"), sha256=sha256, file_sha256=given_digests)
        assert (matched.rule, matched.found.tolist()) == ("sha256", [1, 0, 1])
    assert match(keys, [digests[1].hex(), "no digest"], sha256=sha256).found.tolist() == [0, -1, 0]
    # Plain Parquet may hold them as text.
    assert match(keys, [digests[1].hex()], sha256=[d.hex().encode() for d in sha256]).found.tolist() == [0, -1, 0]
    twice = match(keys, ["p", "q"], sha256=sha256, file_sha256=[digests[0].hex()] * 2)
    assert twice == Ambiguity("sha256", 2, ("p", "q"), ())
    assert match(keys, ["p"], sha256=sha256) is match(keys, ["p"]) is None


PATHS = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), min_size=1, max_size=8, unique=True
)


@examples(200)
@given(PATHS, PATHS)
def test_ends_of_paths_as_a_loop_finds_them(keys, file_keys):
    keys = [f"/{key}" for key in keys]

    ends = [(i, j, key, f"/{name}") for i, key in enumerate(keys) for j, name in enumerate(file_keys)]
    pairs = [(i, j) for i, j, key, name in ends if key.endswith(name) or name.endswith(key)]
    matched = match(keys, file_keys)
    is_certain = len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    if pairs and is_certain:
        assert matched.rule in ("path suffix", "file name")
        assert {i: j for i, j in enumerate(matched.found.tolist()) if j >= 0} == dict(pairs)
    elif matched and pairs:
        # `/a` isn't `a` as a full key.
        assert isinstance(matched, Ambiguity) or matched.rule not in ("full key", "path suffix")
