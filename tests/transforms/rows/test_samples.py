"""Images of one sample are known by their keys, and names with dots are no samples of many images."""

import pyarrow as pa

from transforms.rows.samples import sample_numbers


def groups(*names, shard="/x/a.tar"):
    """Returns the sets of names that are of one sample."""
    keys = [f"{shard}#{name}" for name in names]
    numbers = sample_numbers(pa.chunked_array([keys[:1], keys[1:]], pa.string())).tolist()
    sets = {}
    for name, number in zip(names, numbers, strict=True):
        sets.setdefault(name if number < 0 else number, set()).add(name)
    return sorted(map(sorted, (some for some in sets.values() if len(some) > 1)))


def test_a_photo_and_what_belongs_to_it():
    assert groups("7.jpg", "7.seg.png", "8.jpg", "8.seg.png") == [["7.jpg", "7.seg.png"], ["8.jpg", "8.seg.png"]]
    assert groups("7.jpg", "7.odd.png", "8.jpg") == [["7.jpg", "7.odd.png"]]
    assert groups("d/7.jpg", "e/7.jpg", "7.JPG", "7.png") == [["7.JPG", "7.png"]]
    assert groups("7.jpg", "7.png", shard="gs://b/x.TGZ") == [["7.jpg", "7.png"]]


def test_views_without_a_photo_of_their_own():
    names = [f"{i}.{view}.jpg" for i in range(3) for view in ("left", "right")]
    assert groups(*names) == [sorted(names[i : i + 2]) for i in (0, 2, 4)]


def test_names_with_dots_are_images_of_their_own():
    assert groups(*(f"{kind}.{i}.jpg" for kind in ("cat", "dog") for i in range(50))) == []
    assert (
        groups(*(f"{kind}.{i}(F).jpg" for kind in ("F.pergan", "F.other") for i in range(50)), "1.jpg", "2.jpg") == []
    )


def test_only_tars_have_samples():
    assert groups("7.jpg", "7.seg.png", shard="/x/a.parquet") == []
    assert sample_numbers(pa.chunked_array([["/x/7.jpg", "/x/7.seg.png"]])).tolist() == [-1, -1]
    assert sample_numbers(pa.chunked_array([], pa.string())).tolist() == []
    assert groups("README", "LICENSE") == groups("README", "1.jpg", "1.jpg") == []
