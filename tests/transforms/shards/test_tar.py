"""WebDataset tar: samples, labels, names of every kind, and every way in which an archive can be cut."""

import gzip
import io
import tarfile

import pytest

from tests.support.factories import cuts, fake_items, found_shard, raw_shard, rows, tar_bytes, write_tar
from transforms import shards
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage
from transforms.shards import tar, tar_headers


def found_in(path, data, **fields):
    path.write_bytes(data)
    return found_shard(path, **fields)


def read_members(tmp_path, members, **fields):
    """Returns {member name: label, or the error} of an archive."""
    shard = found_in(tmp_path / "x.tar", tar_bytes(members), **fields)
    return {row.key.partition("#")[2]: getattr(row, "error", None) or row.label for row in rows(shard)}


def special(name, kind, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ([("a.cls", b"3\n"), ("a.jpg", b"x")], "3"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "cat"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": 5}')], "5"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": null}')], None),
        ([("a.jpg", b"x"), ("a.json", b'{"width": 5}')], None),
        ([("a.jpg", b"x"), ("a.json", b'{"label": 5}'), ("a.cls", b"6")], "6"),
        ([("a.jpg", b"x"), ("a.json", b"not json"), ("a.cls", b"6")], "6"),
        ([("a.jpg", b"x"), ("a.txt", b"a caption")], None),
        ([("a.JPG", b"x"), ("a.CLS", b"7")], "7"),
        ([("F.pergan.28(F).jpg", b"x"), ("F.pergan.28(F).cls", b"ant")], "ant"),
        ([("a.left.jpg", b"x"), ("a.right.jpg", b"y"), ("a.left.cls", b"L"), ("a.cls", b"both")], "L"),
        ([("a.right.jpg", b"x"), ("a.left.jpg", b"y"), ("a.left.cls", b"L"), ("a.cls", b"both")], "both"),
        ([("a.jpg", b"x"), ("a.cls", "Käfer".encode())], "Käfer"),
        ([("a.jpg", b"x"), ("a.json", rb'{"label": "\ud800"}')], r"\ud800"),
        ([("a.jpg", b"x"), ("b.cls", b"7"), ("b.png", b"y")], None),
        ([("a.jpg", b"x"), ("a.json", b"[1, 2]")], None),
        ([("a.jpg", b"x"), ("a.json", b'{"label": [1]}')], None),
        ([("a.jpg", b"x"), ("a.json", b'{"label": ')], None),
        ([("a.jpg", b"x"), ("a.json", b"[" * 100_000)], None),
        ([("a.jpg", b"x"), ("a.json", b'[{"bbox": [1, 2, 3, 4], "category_id": 1}]')], None),
        ([("a.jpg", b"x"), ("a.json", b"[1]"), ("a.cls", b"6")], "6"),
        ([("a.jpg", b"x"), ("a.cls", b"[0, 1]")], None),
        ([("a.jpg", b"x"), ("a.cls", b'{"cat": 1}')], None),
        ([("a.jpg", b"x"), ("a.cls", b"[" * 100_000)], None),
        ([("a.jpg", b"x"), ("a.cls", b"[cat")], "[cat"),
        ([("a.cls", b"6"), ("a.cls", b"7"), ("a.jpg", b"x")], None),
        ([("a.cls", b"6"), ("a.cls", b"6"), ("a.jpg", b"x")], "6"),
    ],
)
def test_labels(tmp_path, members, label):
    first = next(name for name, _ in members if name.lower().endswith("jpg"))
    assert read_members(tmp_path, members)[first] == label


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.cls", b"[0, 1]", "a list"),
        ("a.json", b'{"label": ["a", "b"]}', "a list"),
        ("a.json", b"[1, 2]", "JSON that is no object"),
        ("a.json", b"{", "JSON that can't be read"),
        ("a.json", b'{"width": 5}', ""),
        ("a.txt", b"[1]", ""),
    ],
)
def test_why_a_label_cannot_be_used(tmp_path, name, text, why):
    [row] = rows(found_in(tmp_path / "x.tar", tar_bytes([("a.jpg", b"x"), (name, text)])))
    assert (row.label, row.unusable, row.data) == (None, why, b"x")


def test_label_by_option(tmp_path):
    members = [("a.jpg", b"x"), ("a.txt", b"tabby"), ("a.json", b'{"species": "cat", "label": 1}'), ("a.cls", b"9")]
    assert read_members(tmp_path, members, label="txt") == {"a.jpg": "tabby"}
    assert read_members(tmp_path, members, label="species") == {"a.jpg": "cat"}
    assert read_members(tmp_path, members, label="") == {"a.jpg": None}
    with pytest.raises(
        FeaturemillError, match=r"no label in .*x\.tar: looked for specie, found \.cls, \.jpg, \.json, \.txt, label,"
    ):
        read_members(tmp_path, members, label="specie")


def test_samples(tmp_path):
    members = [
        ("train/a.v2/7.jpg", b"1"),
        ("train/a.v2/7.seg.png", b"2"),
        ("train/a.v2/7.cls", b"seven"),
        ("train/b/7.jpeg", b"3"),
        ("train/b/7.cls", b"other"),
        ("README", b"hello"),
        ("lonely.cls", b"5"),
        ("lonely.json", b"{}"),
        ("notes.txt", b"no image"),
        ("stats.json", b'{"images": 4}'),
        ("boxes.json", b'[{"bbox": [1, 2, 3, 4]}]'),
        ("last.webp", b"4"),
    ]
    assert read_members(tmp_path, members) == {
        "train/a.v2/7.jpg": "seven",
        "train/a.v2/7.seg.png": "seven",
        "train/b/7.jpeg": "other",
        "lonely.cls": "no image",
        "last.webp": None,
    }
    failure = rows(found_shard(tmp_path / "x.tar"))[3]
    assert "only: .cls, .json; if its image lies elsewhere in the tar, sort that by name: mkdir" in failure.message


def test_hidden_members_do_not_tear_a_sample_apart(tmp_path):
    names = ["./", "._a.jpg", "a.jpg", "__MACOSX/._a.jpg", "._a.cls", ".DS_Store", "a.cls", ".git/b.jpg"]
    shard = found_in(tmp_path / "x.tar", tar_bytes([(name, b"1") for name in names]))
    [row] = rows(shard)
    assert (row.key.partition("#")[2], row.label) == ("a.jpg", "1")


def test_links_and_devices_are_failures_and_folders_are_not(tmp_path):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(special("folder", tarfile.DIRTYPE))
        archive.addfile(special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"))
        archive.addfile(special("b.jpg", tarfile.LNKTYPE, "a.jpg"))
        archive.addfile(special("c.jpg", tarfile.CHRTYPE))
        archive.addfile(special("d.jpg", tarfile.FIFOTYPE))
        info = tarfile.TarInfo("e.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    *failures, image = rows(found_in(tmp_path / "x.tar", target.getvalue()))
    assert [failure.error for failure in failures] == ["not a regular file"] * 4
    assert image.data == b"x"


def test_hostile_names_are_only_text(tmp_path, monkeypatch):
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    names = ["../../x.jpg", "/etc/x.jpg", "a/../../b.jpg", "c\nd.jpg", "~/e.jpg", "..", "f" * 90 + ".jpg"]
    path = tmp_path / "x.tar"
    keys = [row.key for row in rows(found_in(path, tar_bytes([(name, b"x") for name in names])))]
    assert keys == [f"{path}#{name}" for name in names if name != ".."]
    assert sorted(tmp_path.iterdir()) == [inside, path]
    assert list(inside.iterdir()) == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_names_that_are_not_utf8_are_written_out(tmp_path, format):
    name = b"\xff\xe4.jpg".decode("utf-8", "surrogateescape")
    [row] = rows(found_in(tmp_path / "x.tar", tar_bytes([(name, b"x")], format=format)))
    assert row.key.endswith(r"#\xff\xe4.jpg")
    row.key.encode()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", ["d/" * 60 + "ü" * 150 + ".jpg", "x" * 5000 + ".jpg"])
def test_long_names(tmp_path, format, name):
    data = tar_bytes([("first.jpg", b"0"), (name, b"1"), (f"{name[:-4]}.cls", b"c"), ("last.jpg", b"2")], format=format)
    shard = found_in(tmp_path / "x.tar", data)
    first, long, last = rows(shard)
    assert (long.key, long.label, long.data) == (f"{shard.file.uri}#{name}", "c", b"1")
    # The headers that hold the name belong to the member.
    assert (first.position, long.position, last.data) == (0, 1024, b"2")
    units = shards.split(shard, 1)
    assert [unit.start for unit in units] == [0, 1024, last.position]


def test_ustar_prefix_and_v7(tmp_path):
    name = "p" * 120 + "/" + "n" * 90 + ".jpg"
    [row] = rows(found_in(tmp_path / "x.tar", tar_bytes([(name, b"x")])))
    assert row.key.endswith(f"#{name}")
    data = bytearray(tar_bytes([("old.jpg", b"x")]))
    data[156:157], data[257:512] = b"\0", bytes(255)  # no type, no ustar fields
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    [row] = rows(found_in(tmp_path / "y.tar", bytes(data)))
    assert row.key.endswith("#old.jpg")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_plain_header_says_what_the_standard_library_reads(format):
    info = tarfile.TarInfo("train/é 1.jpg")
    info.size, info.mtime = 0o7654321, 1_700_000_000
    block = info.tobuf(format, "utf-8", "strict")
    spoiled = []
    for at in range(tar_headers.BLOCK_BYTES):
        for byte in (0, ord(" "), ord("0"), ord("7"), ord("x"), 0xFF):
            changed = bytearray(block)
            changed[at] = byte
            # Whatever it is now, its checksum is right, but where that was changed.
            if not 148 <= at < 156:
                changed[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(changed))[0]
            spoiled.append(bytes(changed))
    taken = 0
    for each in (block, *spoiled):
        found = tar_headers._plain(each)
        if found is not None:
            expected = tarfile.TarInfo.frombuf(each, "utf-8", "backslashreplace")
            assert (found.name, found.size, found.type) == (expected.name, expected.size, expected.type)
            taken += 1
    assert tar_headers._plain(block) is not None
    assert taken < len(spoiled)


def test_sparse_files_are_failures_and_do_not_lead_astray(tmp_path):
    old = tarfile.TarInfo("hole.jpg")
    old.size, old.type = 512, tarfile.GNUTYPE_SPARSE
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # another block of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    pax = tarfile.TarInfo("GNUSparseFile.0/pax.jpg")
    pax.size, pax.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.name": "pax.jpg"}
    data = bytes(header) + bytes(512) + b"s" * 512 + pax.tobuf(tarfile.PAX_FORMAT) + b"s" * 512
    first, second, image = rows(found_in(tmp_path / "x.tar", data + tar_bytes([("a.jpg", b"x")])))
    assert [first.error, second.error] == ["not a regular file"] * 2
    assert second.key.endswith("#pax.jpg")
    assert image.data == b"x"


def test_cut_at_every_byte(tmp_path):
    members = [("a.jpg", b"a" * 600), ("a.cls", b"1"), ("b.jpg", b"b" * 10), ("c" * 120 + ".jpg", b"c")]
    data = tar_bytes(members, format=tarfile.GNU_FORMAT)
    end = 1536 + 1024 + 1024 + 2048
    boundaries = {0, 1536, 2560, 3584, end}
    shard = raw_shard(tmp_path / "x", "tar", data[: end + 1024])
    whole = {row.key: row for row in rows(shard)}
    assert len(whole) == 3
    for length, found in cuts(shard):
        images = [row for row in found if isinstance(row, EncodedImage)]
        failures = [row for row in found if not isinstance(row, EncodedImage)]
        assert all(row.data == whole[row.key].data for row in images)
        # An image is kept once all its bytes are there.
        assert len(images) == sum(length >= done for done in (512 + 600, 2560 + 512 + 10, end - 512 + 1))
        if length in boundaries or length >= end:
            assert failures == []
            continue
        [failure] = failures
        start = max(boundary for boundary in boundaries if boundary < length)
        assert (failure.error, failure.position) == ("truncated", start)
        assert failure.key == f"{shard.file.uri}#@{start}"


def test_a_damaged_header_ends_the_shard(tmp_path):
    data = tar_bytes([(f"{i}.jpg", b"%d" % i * 700) for i in range(5)])
    whole = rows(raw_shard(tmp_path / "x", "tar", data))
    start = whole[2].position
    for damage in (b"\xff" * 512, bytes(512), b"A" + data[start + 1 : start + 512]):
        damaged = data[:start] + damage + data[start + 512 :]
        *kept, failure = rows(raw_shard(tmp_path / "x", "tar", damaged))
        assert kept == whole[:2]
        assert failure.error == "bad header"
        # A hole of zeros could be the end, until something follows it.
        assert failure.position in (start, start + 512)


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"5 a=b\n", b"99 path=x\n", b"0 path=x\n", b"-1 path=x\n", b"9 path=x", b"9" * 5000 + b" path=x\n"],
)
def test_damaged_pax_headers_are_failures_or_ignored(tmp_path, content):
    pax = tarfile.TarInfo("PaxHeaders/x")
    pax.type, pax.size = tarfile.XHDTYPE, len(content)
    data = pax.tobuf() + content.ljust(-(-len(content) // 512) * 512, b"\0") + tar_bytes([("a.jpg", b"x")])
    [row] = rows(raw_shard(tmp_path / "x", "tar", data))
    assert (row.position, getattr(row, "error", "")) == (0, "bad header" if content else "")


def test_endless_or_huge_extension_headers_are_a_failure(tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1
    endless = (long.tobuf() + b"x".ljust(512, b"\0")) * 5000
    long.size = 2**33
    for data in (endless, long.tobuf(tarfile.GNU_FORMAT) + bytes(1024)):
        [failure] = rows(raw_shard(tmp_path / "x", "tar", data + tar_bytes([("a.jpg", b"x")])))
        assert (failure.error, failure.position) == ("bad header", 0)


def test_archives_strung_together_are_read_whole(tmp_path):
    one, two = (tar_bytes([(f"{name}.jpg", name.encode())]) for name in "ab")
    shard = found_in(tmp_path / "x.tar", one + two)
    first, second = rows(shard)
    assert (first.data, second.data, second.position) == (b"a", b"b", len(one))
    # The zeros between them belong to the first unit, which may not read on into the second.
    units = shards.split(shard, 100)
    assert [[row.data for row in shards.read(unit)] for unit in units] == [[b"a"], [b"b"]]


def test_no_end_of_archive_and_garbage_behind_it(tmp_path):
    data = tar_bytes([("a.jpg", b"x")])
    assert len(rows(raw_shard(tmp_path / "x", "tar", data[:1024]))) == 1
    image, failure = rows(raw_shard(tmp_path / "x", "tar", data + b"garbage"))
    assert image.data == b"x"
    assert (failure.error, failure.position) == ("truncated", len(data))


def test_an_empty_archive_has_no_rows(tmp_path):
    assert rows(found_in(tmp_path / "x.tar", tar_bytes([]))) == []
    assert rows(found_in(tmp_path / "x.tgz", gzip.compress(tar_bytes([])))) == []


def test_gzip_cut_at_every_byte(tmp_path):
    write_tar(tmp_path / "x.tar", fake_items(5, size=300))
    whole = rows(found_shard(tmp_path / "x.tar"))
    write_tar(tmp_path / "x.tar.gz", fake_items(5, size=300), gzip=True)
    packed = (tmp_path / "x.tar.gz").read_bytes()
    kept = set()
    for length, found in cuts(raw_shard(tmp_path / "y", "tar", packed, compression="gzip")):
        if length < 2:
            break
        *good, failure = found
        assert [row.data for row in good] == [row.data for row in whole[: len(good)]]
        assert failure.error == "truncated"
        kept.add(len(good))
    assert kept == set(range(6))


def test_a_member_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_ENCODED_BYTES", 1000)
    members = [("a.jpg", b"1" * 600), ("a.png", b"2" * 600), ("a.cls", b"c"), ("b.jpg", b"3" * 1001), ("c.jpg", b"4")]
    assert read_members(tmp_path, members) == {"a.jpg": "c", "a.png": "c", "b.jpg": "too large", "c.jpg": None}
    monkeypatch.setattr(tar, "_TEXT_BYTES", 3)
    members = [("a.jpg", b"1"), ("a.cls", b"long"), ("b.jpg", b"1"), ("b.cls", b"cat")]
    assert read_members(tmp_path, members) == {"a.jpg": None, "b.jpg": "cat"}


def test_many_images_of_one_base_name_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_HELD_BYTES", 2000)
    items = [
        (f"cat.{i}.{ending}", data) for i in range(9) for ending, data in (("jpg", b"x" * 600), ("cls", b"%d" % i))
    ]
    assert read_members(tmp_path, items) == {f"cat.{i}.jpg": str(i) for i in range(9)}
    held = []
    with tar.open_stream(found_shard(tmp_path / "x.tar")) as stream:
        for sample, _ in tar._samples(found_shard(tmp_path / "x.tar"), stream, stop=-1):
            held.append(len(sample.rows))
            list(sample.flushed(tar._Apart(shards.split(found_shard(tmp_path / "x.tar"), 10**6)[0])))
    assert sum(held) == 9
    assert max(held) == 2
    # What is known of the whole sample counts for all of its pieces, and what comes too late is named.
    photos = [(f"cat.{i}.jpg", b"x" * 600) for i in range(4)]
    assert read_members(tmp_path, [("cat.cls", b"c"), *photos]) == {f"cat.{i}.jpg": "c" for i in range(4)}
    late = read_members(tmp_path, [*photos, ("cat.0.cls", b"0"), ("cat.3.cls", b"3")])
    assert late == {
        "cat.0.jpg": None,
        "cat.1.jpg": None,
        "cat.2.jpg": None,
        "cat.3.jpg": "3",
        "cat.0.cls": "label apart",
    }


def test_names_that_repeat_begin_the_next_sample(tmp_path):
    def read(*members):
        shard = found_in(tmp_path / "x.tar", tar_bytes(members))
        return [(row.data, row.label) if isinstance(row, EncodedImage) else row.error for row in rows(shard)]

    alike = [(name, data) for i in (b"0", b"1", b"2") for name, data in (("image.jpg", i), ("image.cls", b"c" + i))]
    assert read(*alike) == [(b"0", "c0"), (b"1", "c1"), (b"2", "c2")]
    assert read(*[pair for i in (0, 2, 4) for pair in reversed(alike[i : i + 2])]) == read(*alike)
    # Nobody can tell which label is whose.
    photos, labels = alike[::2], alike[1::2]
    none = [(b"0", None), (b"1", None), (b"2", None)]
    assert read(*photos, *labels) == [*none, "label apart", "no image"]
    assert read(*labels, *photos) == none
    assert read(*photos) == none


def test_labels_apart_from_their_images_are_joined(tmp_path):
    photos = [(f"{i:03}.jpg", bytes(1000)) for i in range(8)]
    labels = [(f"{i:03}.cls", b"%d" % (i % 3)) for i in range(8)]
    others = [(f"{i:03}.json", b'{"label": %d}' % (i % 3)) for i in range(8)]
    expected = {f"{i:03}.jpg": str(i % 3) for i in range(8)}
    for members in (photos + labels, labels + photos, photos + others, [("README", b""), *photos, *labels[::-1]]):
        assert read_members(tmp_path, members) == expected
    shard = found_in(tmp_path / "x.tar", tar_bytes(photos + labels))
    units = shards.split(shard, 3000)
    assert len(units) > 3
    read = [row for unit in units for row in shards.read(unit)]
    assert {row.key.partition("#")[2]: row.label for row in read} == expected
    # One label without an image, one image without a label, one label twice.
    odd = read_members(tmp_path, [*photos, *labels[:7], ("x.cls", b"1"), ("y/003.cls", b"2"), ("003.cls", b"2")])
    assert odd == expected | {
        "007.jpg": None,
        "003.jpg": None,
        "003.cls": "no image",
        "x.cls": "no image",
        "y/003.cls": "no image",
    }
    assert read_members(tmp_path, photos + labels, label="") == dict.fromkeys(expected)


def test_labels_apart_in_a_packed_tar_are_named(tmp_path):
    members = [("a.jpg", b"x"), ("b.jpg", b"y"), ("a.cls", b"1"), ("b.cls", b"2")]
    *images, first, second = rows(found_in(tmp_path / "x.tar.gz", gzip.compress(tar_bytes(members))))
    assert [row.label for row in images] == [None, None]
    assert [first.error, second.error] == ["no image", "no image"]
    assert "sort that by name: mkdir sorted && tar -xf" in first.message


def test_image_field_chooses_members(tmp_path):
    members = [(f"{i}.{e}", e.encode()) for i in "ab" for e in ("jpg", "png", "seg.png", "depth.PNG", "img", "cls")]
    both = {"a.cls": "cls", "b.cls": "cls"}
    assert len(read_members(tmp_path, members)) == 8

    def read(image):
        return sorted(read_members(tmp_path, members, image=image))

    assert read("jpg") == ["a.jpg", "b.jpg"]
    assert read(".png") == ["a.png", "b.png"]
    assert read("seg.png") == ["a.seg.png", "b.seg.png"]
    assert read("depth.png") == ["a.depth.PNG", "b.depth.PNG"]
    assert read("img") == ["a.img", "b.img"]
    assert set(read_members(tmp_path, members, image="jpg").values()) == set(both.values())
    with pytest.raises(FeaturemillError, match=r"no image in .*looked for members that end in \.webp, found \.cls"):
        read("webp")
    # Names with dots have no ending of their own.
    members = [("cat.0.jpg", b"1"), ("cat.1.jpg", b"2")]
    assert read("jpg") == ["cat.0.jpg", "cat.1.jpg"]


def test_pictures_of_kinds_that_are_not_read(tmp_path):
    members = [("a.jpg", b"1"), ("a.depth.exr", b"2"), ("b.CR2", b"3"), ("b.cls", b"raw")]
    assert read_members(tmp_path, members) == {"a.jpg": None, "b.CR2": "raw"}


def test_class_folders_give_labels(tmp_path):
    members = [("cats/1.jpg", b"1"), ("dogs/2.jpg", b"2"), ("dogs/old/3.jpg", b"3"), ("dogs/about.txt", b"")]
    assert list(read_members(tmp_path, members).values()) == ["cats", "dogs", "old"]
    assert list(read_members(tmp_path, members, label="").values()) == [None] * 3
    sides = [("x/train/cats/images/1.jpg", b"1"), ("x/val/dogs/2.jpg", b"2")]
    assert list(read_members(tmp_path, sides).values()) == ["cats", "dogs"]
    for folder in ("train", "x", ".", "images"):
        # The folder of all images, or that of the archive itself.
        assert list(read_members(tmp_path, [(f"{folder}/{i}.jpg", b"1") for i in range(3)]).values()) == [None] * 3
    many = [(f"cats/{i}.jpg", b"1") for i in range(30)]
    # Only if no member gives labels, wherever it is.
    for more in (("dogs/9.cls", b"1"), ("cats/3.json", b'{"label": 5}')):
        assert "cats" not in read_members(tmp_path, [*many, more]).values()
    assert set(read_members(tmp_path, [*many, ("cats/30.jpg", b"1")]).values()) == {"cats"}


def test_a_tar_without_images_is_refused(tmp_path):
    with pytest.raises(FeaturemillError, match=r"no image in .*found \.txt, members without an ending"):
        found_in(tmp_path / "x.tar", tar_bytes([("README", b"1"), ("a.txt", b"2")]))


def test_split_reads_no_payload(tmp_path, monkeypatch):
    shard = found_in(tmp_path / "x.tar", tar_bytes([(f"{i}.jpg", bytes(100_000)) for i in range(20)]))
    read_bytes = []
    real = shards.stream.Stream.read

    def counted(self, count):
        data = real(self, count)
        read_bytes.append(len(data))
        return data

    monkeypatch.setattr("transforms.shards.stream.Stream.read", counted)
    assert len(shards.split(shard, 200_000)) == 20
    assert sum(read_bytes) <= 20 * 512 + 10240


def test_labels_that_are_no_names_are_null_and_counted(tmp_path):
    members = [("a.jpg", b"x"), ("a.cls", b"l" * 1000), ("b.jpg", b"x"), ("b.cls", b"l" * 1001), ("c.jpg", b"x")]
    members += [("c.json", b'{"label": "%s"}' % (b"m" * 9000))]
    first, second, third = rows(found_in(tmp_path / "x.tar", tar_bytes(members)))
    assert (first.label, first.unusable) == ("l" * 1000, "")
    assert (second.label, second.unusable) == (third.label, third.unusable) == (None, "over 1,000 letters")


def test_a_name_that_is_too_long_for_a_key_is_a_failure(tmp_path):
    name = "d/" * 10 + "x" * 70_000
    members = [("a.jpg", b"1"), (f"{name}.jpg", b"2"), ("b.jpg", b"3")]
    data = gzip.compress(tar_bytes(members, format=tarfile.PAX_FORMAT))
    first, long, last = rows(found_in(tmp_path / "x.tar.gz", data))
    assert (first.data, last.data) == (b"1", b"3")
    assert long.error == "key too long"
    assert len(long.key) < 200
    assert "over 8192 bytes, the most that a key has: d/d/d/" in long.message
    # A name of as many bytes as it may have.
    [row] = rows(found_in(tmp_path / "y.tar", tar_bytes([("y" * 8188 + ".jpg", b"4")], format=tarfile.GNU_FORMAT)))
    assert row.data == b"4"


def test_what_is_kept_for_the_labels_of_a_sample_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_TEXTS_BYTES", 3000)
    members = [(f"a.{i}.cls", b"cat" * 100) for i in range(20)] + [(f"a.{i}.jpg", b"x") for i in (0, 19)]
    found = rows(found_in(tmp_path / "x.tar", tar_bytes(members)))
    assert [(row.label, row.unusable) for row in found] == [
        ("cat" * 100, ""),
        (None, "among more than are kept of one sample"),
    ]


def test_names_of_a_sample_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "_NAMES_BYTES", 5000)
    members = [("a.cls", b"cat"), ("a.jpg", b"x"), *((f"a.{i}.xyz", b"") for i in range(50)), ("a.png", b"y")]
    shard = found_in(tmp_path / "x.tar", tar_bytes(members))
    assert [(row.data, row.label) for row in rows(shard)] == [(b"x", "cat"), (b"y", "cat")]
    with tar.open_stream(shard) as stream:
        for sample, _ in tar._samples(shard, stream, stop=-1):
            assert len(sample.names) < 20
            list(sample.flushed(tar._Apart(shards.split(shard, 10**6)[0])))
    # Without an image there is nothing to hand on.
    only = [(f"a.{i}.xyz", b"") for i in range(50)]
    assert read_members(tmp_path, [*only, ("a.jpg", b"x"), ("a.cls", b"cat")]) == {"a.jpg": "cat"}
