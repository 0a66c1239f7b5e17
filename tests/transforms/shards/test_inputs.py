"""From what the user names to shards and files: folders, globs, braces, lists; by content as well as by name."""

import gzip
import os
import random
import zipfile
from pathlib import Path

import pytest

from tests.support.factories import fake_items, shared_data, tar_bytes, write_parquet, write_tar, write_tfrecord
from transforms import shards
from transforms.errors import FeaturemillError
from transforms.shards import Fields, find
from transforms.shards.names import UNREAD_EXTENSIONS, count_by_ending

JPEG = b"\xff\xd8\xff\xe0 not much of a photo"


def make(folder, *names, data=JPEG):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def files_of(found, folder):
    """Returns {path relative to the folder: label}."""
    return {os.path.relpath(listed.file.uri, folder): listed.label for listed in found.files}


def skipped_of(found, folder):
    """Returns {path relative to the folder: reason}."""
    return {os.path.relpath(each.file.uri, folder): each.reason for each in found.skipped}


def names_of(found):
    return [(Path(shard.file.uri).name, shard.format, shard.compression) for shard in found.shards]


def test_a_folder_is_walked_and_its_sub_folders_are_the_labels(tmp_path):
    make(tmp_path, "top.jpg", "cat/a.JPEG", "cat/deep/b.png", "dog/c.webp", "dog/notes.txt")
    make(tmp_path, "LICENSE", data=b"MIT")
    make(tmp_path, ".DS_Store", "cat/._a.jpg", ".cache/x.jpg", "cat/.git/y.jpg", "__MACOSX/z.jpg")
    write_tar(tmp_path / "dog" / "more.tar", fake_items(2))
    found = find([str(tmp_path)])
    assert files_of(found, tmp_path) == {
        "top.jpg": None,
        "cat/a.JPEG": "cat",
        "cat/deep/b.png": "cat",
        "dog/c.webp": "dog",
    }
    assert names_of(found) == [("more.tar", "tar", "")]
    by_name, hidden = "neither image nor shard by its name", "hidden"
    assert skipped_of(found, tmp_path) == {
        ".DS_Store": hidden,
        ".cache/x.jpg": hidden,
        "LICENSE": "neither image nor shard by its first bytes",
        "__MACOSX/z.jpg": hidden,
        "cat/._a.jpg": hidden,
        "cat/.git/y.jpg": hidden,
        "dog/notes.txt": by_name,
    }
    assert count_by_ending(found.skipped) == {"hidden": 5, ".txt": 1, "no ending": 1}


def test_the_whole_of_a_find_is_sorted_and_each_file_comes_once(tmp_path, monkeypatch):
    make(tmp_path, "b/2.jpg", "a/1.jpg")
    write_tar(tmp_path / "z.tar", fake_items(2))
    write_tar(tmp_path / "y.tar", fake_items(2))
    monkeypatch.chdir(tmp_path)
    found = find(["z.tar", str(tmp_path), "b/*.jpg", "./a/../a/1.jpg", "*.tar", "~/../" + str(tmp_path / "z.tar")])
    assert files_of(found, tmp_path) == {"a/1.jpg": "a", "b/2.jpg": "b"}
    assert [listed.file.uri for listed in found.files] == sorted(listed.file.uri for listed in found.files)
    assert [name for name, *_ in names_of(found)] == ["y.tar", "z.tar"]


def test_globs_and_braces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        write_tar(tmp_path / f"shard-{i:03}.tar", fake_items(1))
    make(tmp_path, "p/cat/1.jpg", "p/cat/2.png", "p/dog/deep/3.jpg", "q/cat/4.jpg")
    assert len(find(["shard-*.tar"]).shards) == 12
    assert len(find([str(tmp_path / "shard-00?.tar")]).shards) == 10
    assert len(find(["shard-{000..011}.tar"]).shards) == 12
    assert [name for name, *_ in names_of(find(["shard-{001,01*}.tar"]))] == [f"shard-{i:03}.tar" for i in (1, 10, 11)]
    assert files_of(find(["p/**/*.jpg"]), tmp_path) == {"p/cat/1.jpg": "cat", "p/dog/deep/3.jpg": "deep"}
    assert files_of(find(["{p,q}"]), tmp_path) == {
        "p/cat/1.jpg": "cat",
        "p/cat/2.png": "cat",
        "p/dog/deep/3.jpg": "dog",
        "q/cat/4.jpg": "cat",
    }
    assert files_of(find(["p/cat/[1].jpg"]), tmp_path) == {"p/cat/1.jpg": "cat"}


def test_a_missing_shard_of_a_brace_range_is_named(tmp_path):
    for i in (0, 1, 3):
        write_tar(tmp_path / f"s{i}.tar", fake_items(1))
    with pytest.raises(FeaturemillError, match=r"no match for .*s2\.tar: there is no .*did you mean s\d\.tar\?"):
        find([str(tmp_path / "s{0..3}.tar")])


def test_more_braces_than_the_library_allows_by_itself(tmp_path):
    write_tar(tmp_path / "s00000.tar", fake_items(1))
    with pytest.raises(FeaturemillError, match=r"s00001\.tar"):
        find([str(tmp_path / "s{00000..04999}.tar")])
    with pytest.raises(FeaturemillError, match="stands for over 1000000 paths; use a glob"):
        find([str(tmp_path / "s{0..9999999}.tar")])


def test_braces_longer_than_a_file_name(tmp_path):
    names = [f"a-shard-with-a-rather-long-name-{i:03}" for i in range(10)]
    for name in names:
        write_tar(tmp_path / f"{name}.tar", fake_items(1))
    assert len(find([f"{tmp_path}/{{{','.join(names)}}}.tar"]).shards) == 10


def test_a_link_to_itself_is_accounted_for(tmp_path):
    make(tmp_path, "a.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    found = find([str(tmp_path)])
    assert set(files_of(found, tmp_path)) == {"a.jpg", "loop.jpg"}
    [unit] = shards.slice_files(found.files, 10)
    assert [getattr(row, "error", None) for row in shards.read(unit)] == [None, "unreadable"]
    with pytest.raises(FeaturemillError, match=r"no match for .*loop\.jpg"):
        find([str(tmp_path / "loop.jpg")])


def test_what_exists_as_written_wins_over_its_reading_as_a_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a[1].jpg", "a1.jpg", "{x,y}.jpg", "d[2]/b.jpg")
    assert files_of(find(["a[1].jpg"]), tmp_path) == {"a[1].jpg": tmp_path.name}
    assert files_of(find(["{x,y}.jpg"]), tmp_path) == {"{x,y}.jpg": tmp_path.name}
    # The folder that a pattern is relative to is no pattern itself.
    monkeypatch.chdir(tmp_path / "d[2]")
    assert files_of(find(["*.jpg"]), tmp_path) == {"d[2]/b.jpg": "d[2]"}


def test_a_list(tmp_path):
    make(tmp_path, "data/cat/1.jpg", "data/dog/2.jpg", "data/dog/3.jpg", "other/bee/4.jpg")
    write_tar(tmp_path / "data/s1.tar", fake_items(1))
    lines = ["\ufeff# photos", "", "cat/1.jpg", "  dog/*.jpg  ", str(tmp_path / "other"), "s{1,1}.tar"]
    (tmp_path / "data/list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    found = find([f"@{tmp_path}/data/list.txt"])
    expected = {"data/cat/1.jpg": "cat", "data/dog/2.jpg": "dog", "data/dog/3.jpg": "dog", "other/bee/4.jpg": "bee"}
    assert files_of(found, tmp_path) == expected
    assert len(found.shards) == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda paths: "\r\n".join(paths).encode("utf-16"),
        lambda paths: "\n".join(paths).encode("utf-16-le"),
        lambda paths: "\n".join(paths).encode("utf-32"),
        lambda paths: "\0".join([*paths, ""]).encode(),
        lambda paths: "\n".join(f'"{path}"' for path in paths).encode(),
        lambda paths: "\n".join(f"'{path}'" for path in paths).encode(),
        lambda paths: "\n".join(f"FOLDER/{path}" for path in paths).encode(),
        lambda paths: "\n".join(f"file://FOLDER/{path}".replace(" ", "%20") for path in paths).encode(),
        lambda paths: "\n".join(f"file://localhost/FOLDER/{path}" for path in paths).encode(),
    ],
)
def test_lists_as_other_tools_write_them(tmp_path, write):
    paths = ["a/1.jpg", "a/b 2.jpg", "#1/käfer.jpg", "a/[3].jpg"]
    make(tmp_path, *paths)
    data = write(paths).replace(b"localhost/FOLDER", b"localhostFOLDER").replace(b"FOLDER", str(tmp_path).encode())
    (tmp_path / "list.txt").write_bytes(data)
    assert set(files_of(find([f"@{tmp_path}/list.txt"]), tmp_path)) == set(paths)


def test_lists_of_something_else_are_refused(tmp_path, monkeypatch):
    make(tmp_path, "a/1.jpg", "lists/x.jpg")
    monkeypatch.chdir(tmp_path)
    for text in ("a/1.jpg 0\n", "path,label\na/1.jpg,0\n", "a/1.jpg\t0\n"):
        Path("list.txt").write_text(text)
        with pytest.raises(
            FeaturemillError, match=r"@list.txt is no list of paths: .*nothing behind it.*train --labels"
        ):
            find(["@list.txt"])
    Path("lists/list.txt").write_text("a/1.jpg\n")
    with pytest.raises(FeaturemillError, match=r"no match for a/1\.jpg.*relative to its folder, .*/lists: write"):
        find(["@lists/list.txt"])
    Path("list.txt").write_bytes("käfer.jpg\n".encode("latin-1"))
    with pytest.raises(FeaturemillError, match="isn't in UTF-8, save that as UTF-8"):
        find(["@list.txt"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n\n", "list.txt names no file; write one path a line"),
        ("@more.txt\n", "names another list: @more.txt"),
        ("a.jpg\nb.jpg\n", "no match for b.jpg"),
    ],
)
def test_a_bad_list_is_refused(tmp_path, text, message):
    make(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(FeaturemillError, match=message):
        find([f"@{tmp_path}/list.txt"])
    with pytest.raises(FeaturemillError, match=r"cannot read @.*gone.*No such file"):
        find([f"@{tmp_path}/gone.txt"])


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("x.tfrecord", "tfrecord", ""),
        ("train.tfrecord-00000-of-00010", "tfrecord", ""),
        ("train-00000-of-01024", "tfrecord", ""),
        ("x.tfrecords.gz", "tfrecord", "gzip"),
        ("x.tfrec", "tfrecord", ""),
        ("x.tgz", "tar", "gzip"),
        ("x.tar.gz", "tar", "gzip"),
        ("x.tar", "tar", ""),
        ("x.parquet", "parquet", ""),
        # The content decides where the name says otherwise, or nothing.
        ("wrong.tar", "tfrecord", ""),
        ("wrong.tfrecord", "tar", ""),
        ("wrong.tfrecord", "parquet", ""),
        ("wrong.tar", "tar", "gzip"),
        ("wrong.tar.gz", "tar", ""),
        ("wrong.parquet", "tar", ""),
    ],
)
def test_shards_are_recognised_by_content(tmp_path, name, kind, compression):
    path = tmp_path / name
    writer = {"tfrecord": write_tfrecord, "tar": write_tar, "parquet": write_parquet}[kind]
    writer(path, fake_items(3), **({"gzip": True} if compression else {}))
    for given in (str(path), str(tmp_path), f"{tmp_path}/*"):
        found = find([given])
        assert names_of(found) == [(name, kind, compression)]
        assert sum(1 for unit in shards.split(found.shards[0], 1 << 20) for _ in shards.read(unit)) == 3


def test_a_name_without_meaning_is_looked_into_if_it_was_named(tmp_path):
    write_tar(tmp_path / "data.bin", fake_items(3))
    make(tmp_path, "photo", data=JPEG)
    make(tmp_path, "picture.dat", data=b"RIFF\0\0\0\0WEBPVP8 ")
    found = find([f"{tmp_path}/data.bin", f"{tmp_path}/p*"])
    assert names_of(found) == [("data.bin", "tar", "")]
    assert files_of(found, tmp_path) == {"photo": tmp_path.name, "picture.dat": tmp_path.name}
    # On a disk also where it is only met, which costs no request.
    make(tmp_path, "x.jpg")
    make(tmp_path, "y.dat", "z", "zz.bin", data=b"neither")
    os.symlink("nowhere", tmp_path / "broken")
    for inputs in ([str(tmp_path)], [str(tmp_path), str(tmp_path / "data.bin")]):
        found = find(inputs)
        assert (len(found.shards), len(found.files)) == (1, 3)
        assert set(skipped_of(found, tmp_path)) == {"y.dat", "z", "zz.bin", "broken"}


def test_images_are_recognised_by_name_alone(tmp_path, monkeypatch):
    make(tmp_path, *(f"{i}.jpg" for i in range(20)))
    make(tmp_path, "empty.png", data=b"")

    def refuse(uri):
        raise AssertionError(f"opened {uri}")

    monkeypatch.setattr("transforms.storage.open_read", refuse)
    assert len(find([str(tmp_path)]).files) == 21
    assert len(find([f"{tmp_path}/*.jpg", f"{tmp_path}/empty.png"]).files) == 21


def test_names_with_something_behind_the_ending_are_images(tmp_path):
    names = ["d.jpg?width=400", "e.jpg_large", "f.jpg.1", "g.jpg ", "h.JPEG!small", "i.png:orig", "j.jpg (1)", "k.jpg~"]
    others = ["a.jpg.txt", "b.png_info.json", "c.jpgx", "d.jpg.xmp", "jpg.1"]
    make(tmp_path, *names)
    make(tmp_path, *others, data=b"no image")
    found = find([str(tmp_path)])
    assert set(files_of(found, tmp_path)) == set(names)
    assert set(skipped_of(found, tmp_path)) == set(others)


def test_images_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    make(tmp_path, "5f3a", "Mr. Smith", "2021.05.03", "a.img")
    make(tmp_path, "heic", data=b"\0\0\0\x18ftypheic\0\0\0\0")
    # Logs of training are TFRecords, and other tools' own marks aren't looked into.
    write_tfrecord(tmp_path / "events.out.tfevents.16.host.1.0", fake_items(1))
    write_parquet(tmp_path / "_metadata", fake_items(1))
    make(tmp_path, "_SUCCESS", data=b"")
    found = find([str(tmp_path)])
    assert set(files_of(found, tmp_path)) == {"5f3a", "Mr. Smith", "2021.05.03", "a.img", "heic"}
    assert found.shards == ()
    assert len(found.skipped) == 3


def test_pictures_of_kinds_that_are_not_read_are_listed(tmp_path):
    names = [f"x.{ending}" for ending in sorted(UNREAD_EXTENSIONS)]
    make(tmp_path, *names, "IMG_1.HEIC", "2.heif", "3.hif", data=b"?")
    found = find([str(tmp_path)])
    assert set(files_of(found, tmp_path)) == {*names, "IMG_1.HEIC", "2.heif", "3.hif"}
    assert found.skipped == ()


def test_metadata_beside_shards_is_passed_over(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from transforms.shards import example, tfrecord

    folder = tmp_path / "crawl"
    folder.mkdir()
    write_tar(folder / "00000.tar", fake_items(3))
    pq.write_table(pa.table({"caption": ["a"], "url": ["b"]}), folder / "00000.parquet")
    (folder / "index.tfrecord").write_bytes(tfrecord.frame(example.serialize({"caption": b"a"})))
    (folder / "texts.tar").write_bytes(tar_bytes([("a.txt", b"x"), ("README", b"y")]))
    make(folder, "00000_stats.json", "_SUCCESS", ".part-0.crc", "run.log", data=b"{}")
    for fields in (Fields(), Fields(image="jpg")):
        found = find([str(folder)], fields)
        assert [name for name, *_ in names_of(found)] == ["00000.tar"]
        reasons = skipped_of(found, folder)
        assert len(reasons) == 7
        for name, holds in (("00000.parquet", "caption, url"), ("index.tfrecord", "caption"), ("texts.tar", ".txt")):
            assert reasons[name].startswith(f"no image in {folder}/{name}: looked for")
            assert holds in reasons[name]
            # Named, it is refused.
            with pytest.raises(FeaturemillError, match=f"no image in .*{name}: looked for .*, found .*{holds}"):
                find([str(folder / name)], fields)
    (folder / "00000.tar").unlink()
    with pytest.raises(FeaturemillError, match=r"no image or shard in .*met .*1 \.parquet.*such as .*no image in"):
        find([str(folder)])


@pytest.mark.parametrize("name", ["train.record", "val.tfr", "a.records", "x.record-00000-of-00002", "part-r-00000"])
def test_tfrecords_have_many_endings(tmp_path, name):
    write_tfrecord(tmp_path / name, fake_items(3))
    make(tmp_path, "sound.record", "b.tfr", data=b"something else")
    make(tmp_path, "empty.tfr", data=b"")
    found = find([str(tmp_path)])
    assert [name for name, *_ in names_of(found)] == [name]
    assert len(found.skipped) == 3


def test_every_file_is_accounted_for(tmp_path):
    names = ["a.jpg", "b.cr2", "c.txt", "d", ".e", "f/.g/h.png", "i.jpg.1", "j.zip", "k.json", "l/m.heic", "n.bin"]
    make(tmp_path, *names)
    write_tar(tmp_path / "o.tar", fake_items(1))
    found = find([str(tmp_path)])
    met = [each.file.uri for each in (*found.files, *found.shards, *found.skipped)]
    assert sorted(os.path.relpath(uri, tmp_path) for uri in met) == sorted([*names, "o.tar"])


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", JPEG)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("x.tar", b"", "it is empty"),
        ("x.parquet", b"", "it is empty"),
        ("x.txt", b"hello", "looked for a TFRecord .*, a tar .*, a Parquet .* and an image"),
        ("x.tfrecord", b"\x05" + bytes(30), "looked for a TFRecord"),
        ("x.tar", random.Random(0).randbytes(2000), "looked for a TFRecord"),
        ("x.tar.gz", gzip.compress(b"hello" * 500, mtime=0), "holds neither a TFRecord nor a tar"),
        ("x.tar.gz", gzip.compress(b"", mtime=0), "holds neither a TFRecord nor a tar"),
        ("x.tar.gz", b"\x1f\x8b damaged", "holds neither a TFRecord nor a tar"),
        ("x.tar.zst", b"\x28\xb5\x2f\xfd rest", "packed with zstd; unpack it, or pack it with gzip"),
        ("x.zip", None, "packed with zip"),
        ("x.tfrecord", b"\x78\x9c rest", "packed with zlib; unpack it, or pack it with gzip"),
    ],
)
def test_what_is_unknown_is_refused_if_it_was_named(tmp_path, name, data, reason):
    path = tmp_path / name
    if data is None:
        zipped(path)
    else:
        path.write_bytes(data)
    (tmp_path / "list.txt").write_text(name)
    make(tmp_path, "photo.jpg")
    for given in (str(path), f"{tmp_path}/x*", f"@{tmp_path}/list.txt"):
        with pytest.raises(FeaturemillError, match=f"unknown format: .*{name}: .*{reason}"):
            find([given])
    if name in ("x.txt", "x.tar.zst", "x.zip"):
        # In a folder, it is only met.
        found = find([str(tmp_path)])
        assert name in skipped_of(found, tmp_path)
        assert len(found.files) == 1
    else:
        # But what is called like a shard is one, and its images would be lost.
        with pytest.raises(FeaturemillError, match=f"unknown format: .*{name}"):
            find([str(tmp_path)])


def test_no_match_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "photos/cat/1.jpg")
    make(tmp_path, "notes/readme.txt")
    (tmp_path / "empty").mkdir()
    for given, message in (
        ("photo", r"no match for photo: there is no .*; did you mean photos\?"),
        ("nowhere/x.tar", r"no match for nowhere/x.tar: there is no .*; check the path"),
        ("*.tar", r"no match for \*\.tar: no file has such a name"),
        ("photo/*", r"no match for photo/\*"),
        ("empty", "no image or shard in empty: looked at 0 files"),
        ("notes", "no image or shard in notes: looked at 1 files"),
    ):
        with pytest.raises(FeaturemillError, match=message):
            find(["photos", given])


def test_missing_columns_are_refused_even_in_a_folder(tmp_path):
    write_parquet(tmp_path / "x.parquet", fake_items(2))
    with pytest.raises(FeaturemillError, match=r"no image in .*looked for jpeg"):
        find([str(tmp_path)], Fields(image="jpeg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_paths_are_refused(tmp_path):
    make(tmp_path, "closed/x.jpg")
    (tmp_path / "x.tar").write_bytes(tar_bytes([("a.jpg", b"x")]))
    (tmp_path / "x.tar").chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        for given in ("x.tar", "closed"):
            with pytest.raises(FeaturemillError, match=r"cannot read .*Permission denied"):
                find([str(tmp_path / given)])
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize("function", ["open_read", "walk"])
def test_a_denial_is_an_error_of_ours(tmp_path, monkeypatch, function):
    make(tmp_path, "x.bin")

    def deny(uri, **_):
        raise PermissionError(13, "Permission denied", uri)

    monkeypatch.setattr(f"transforms.storage.{function}", deny)
    given = str(tmp_path / "x.bin") if function == "open_read" else str(tmp_path)
    with pytest.raises(FeaturemillError, match=r"cannot read .*Permission denied.*check the path and its permissions"):
        find([given])


def test_names_that_are_not_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"k\xe4fer")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xff.jpg"), "wb") as file:
        file.write(JPEG)
    found = find([str(tmp_path)])
    [unit] = shards.slice_files(found.files, 10)
    [row] = shards.read(unit)
    assert row.key == rf"{tmp_path}/k\udce4fer/\udcff.jpg"
    assert (row.label, row.data) == (r"k\udce4fer", JPEG)


def test_tensorflow_datasets_folder(tmp_path):
    # As TFDS lays a dataset out, with its descriptions beside the shards.
    from transforms.shards import example, tfrecord

    folder = tmp_path / "flowers/3.0.1"
    folder.mkdir(parents=True)
    for i in range(2):
        records = [example.serialize({"image": JPEG, "label": n, "image/filename": f"{i}{n}.jpg"}) for n in range(3)]
        (folder / f"flowers-train.tfrecord-0000{i}-of-00002").write_bytes(b"".join(map(tfrecord.frame, records)))
    make(folder, "features.json", "dataset_info.json", "label.labels.txt", data=b"{}")
    found = find([str(tmp_path / "flowers")])
    assert [(shard.image_field, shard.label_field, shard.name_field) for shard in found.shards] == [
        ("image", "label", "image/filename")
    ] * 2
    assert len(found.skipped) == 3


class FakeStore:
    """A bucket as `storage` shows it: no folders, `**` crosses slashes, and requests are counted."""

    def __init__(self, root):
        self.root, self.opened = str(root), []

    def _infos(self):
        from transforms.records import FileInfo

        for path in sorted(Path(self.root).rglob("*")):
            if path.is_file():
                yield FileInfo("gs://bucket/" + str(path.relative_to(self.root)), path.stat().st_size, "1")

    def match(self, pattern, **_):
        import re

        parts = [".*" if p == "**" else "[^/]*" if p == "*" else re.escape(p) for p in re.split(r"(\*\*|\*)", pattern)]
        return [info for info in self._infos() if re.fullmatch("".join(parts), info.uri)]

    def stat(self, uri):
        return next((info for info in self._infos() if info.uri == uri), None)

    def walk(self, folder):
        return (info for info in self._infos() if info.uri.startswith(f"{folder}/"))

    def is_folder(self, uri):
        return any(self.walk(uri))

    def open_read(self, uri, **_):
        self.opened.append(uri)
        return open(uri.replace("gs://bucket", self.root), "rb")


def test_a_bucket(tmp_path, monkeypatch):
    make(tmp_path, "photos/cat/1.jpg", "photos/dog/2.jpg", "photos/.hidden.jpg")
    write_tar(tmp_path / "s-0.tar", fake_items(20, size=1000))
    write_tar(tmp_path / "s-1.tar", fake_items(20, size=1000))
    (tmp_path / "list.txt").write_text("s-0.tar\nphotos/cat/1.jpg\n")
    store = FakeStore(tmp_path)
    for name in ("match", "open_read", "stat", "walk", "is_folder"):
        monkeypatch.setattr(f"transforms.storage.{name}", getattr(store, name))
    found = find(["gs://bucket/s-*.tar", "gs://bucket/photos/"])
    assert [shard.file.uri for shard in found.shards] == ["gs://bucket/s-0.tar", "gs://bucket/s-1.tar"]
    assert {listed.file.uri: listed.label for listed in found.files} == {
        "gs://bucket/photos/cat/1.jpg": "cat",
        "gs://bucket/photos/dog/2.jpg": "dog",
    }
    assert find(["gs://bucket/s-{0..1}.tar"]).shards == found.shards
    assert find(["@gs://bucket/list.txt"]).shards == found.shards[:1]
    with pytest.raises(FeaturemillError, match=r"no match for gs://bucket/s-2\.tar"):
        find(["gs://bucket/s-{0..2}.tar"])
    store.opened.clear()
    units = shards.split(found.shards[0], 10_000)
    assert len(units) > 3
    # One pass is one request, and so is each unit.
    assert len(store.opened) == 1
    read = [row for unit in units for row in shards.read(unit)]
    assert [row.data for row in read] == [item.data for item in fake_items(20, size=1000)]
    assert len(store.opened) == 1 + len(units)
    [unit] = shards.slice_files(found.files, 10)
    assert unit.shard.file.uri == "gs://bucket/photos"
    assert [row.data for row in shards.read(unit)] == [JPEG, JPEG]


def test_every_nasty_file_is_taken_for_an_image():
    folder = shared_data() / "nasty"
    found = find([str(folder)])
    assert len(found.files) == 70
    assert found.skipped == ()
    [unit] = shards.slice_files(found.files, 100)
    assert [len(row.data) for row in shards.read(unit)] == [listed.file.size for listed in found.files]


def test_importing_needs_no_heavy_library():
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import sys, transforms.shards; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stdout.split())
    assert "transforms.shards" in modules
    # Arrow (and with it NumPy) is what a worker writes its parts with, whatever it reads.
    assert not modules & {"google.protobuf", "apache_beam", "tensorflow", "PIL"}
