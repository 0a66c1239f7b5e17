"""WebDataset tar: samples, labels, names of every kind, and every way in which an archive can be cut."""

import gzip
import io
import tarfile

import pytest

from tests.support.factories import cuts, fake_items, found_shard, raw_shard, rows, tar_bytes, write_tar
from transforms import shards
from transforms.errors import FeaturemillError
from transforms.records import EncodedImage
from transforms.shards import tar


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
        ([("a.jpg", b"x"), ("a.json", b"[1, 2]")], "bad label"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": [1]}')], "bad label"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": ')], "bad label"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 100_000)], "bad label"),
    ],
)
def test_labels(tmp_path, members, label):
    first = next(name for name, _ in members if name.lower().endswith("jpg"))
    assert read_members(tmp_path, members)[first] == label


def test_label_by_option(tmp_path):
    members = [("a.jpg", b"x"), ("a.txt", b"tabby"), ("a.json", b'{"species": "cat", "label": 1}'), ("a.cls", b"9")]
    assert read_members(tmp_path, members, label="txt") == {"a.jpg": "tabby"}
    assert read_members(tmp_path, members, label="species") == {"a.jpg": "cat"}
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
        ("last.webp", b"4"),
    ]
    assert read_members(tmp_path, members) == {
        "train/a.v2/7.jpg": "seven",
        "train/a.v2/7.seg.png": "seven",
        "train/b/7.jpeg": "other",
        "README": "no image",
        "lonely.cls": "no image",
        "last.webp": None,
    }
    failure = rows(found_shard(tmp_path / "x.tar"))[4]
    assert "only: .cls, .json" in failure.message


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
    assert keys == [f"{path}#{name}" for name in names]
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


def test_a_sample_is_held_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MAX_ENCODED_BYTES", 1000)
    members = [("a.jpg", b"1" * 600), ("a.png", b"2" * 600), ("a.cls", b"c"), ("b.jpg", b"3" * 1001), ("c.jpg", b"4")]
    assert read_members(tmp_path, members) == {"a.jpg": "c", "a.png": "too large", "b.jpg": "too large", "c.jpg": None}


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
