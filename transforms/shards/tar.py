"""WebDataset tar: a sample is the run of members with one base name; each of its images is one row.

The base name is the folder and the file name up to its first dot, the rest is the extension. Source:
https://github.com/webdataset/webdataset, "The WebDataset Format". A member that differs from an image's name only in
the last extension is the image's own (`a.b.cls` beside `a.b.jpg`), so names with dots keep their labels. A name that
repeats in a sample which has an image begins the next sample. Nothing is ever extracted: a member's name is text.

Members that lie apart (all labels behind all images) are joined where headers can be read without the data between
them, in a plain tar on a disk. Elsewhere a label without an image is a failure that says how to sort the tar.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

from transforms import storage
from transforms.labels.folders import LABEL_NAMES, is_no_class, partition_value
from transforms.labels.kept import type_of
from transforms.labels.values import LABEL_LETTERS, TOO_LONG, as_label, as_text
from transforms.records import EncodedImage, Failure, Kept, Shard, Unit
from transforms.shards.fields import Fields, missing
from transforms.shards.format import Format
from transforms.shards.names import base_name, is_image, is_picture
from transforms.shards.stream import (
    MAX_ENCODED_BYTES,
    BrokenError,
    Stream,
    broken,
    cut,
    failure,
    look,
    open_stream,
    stretches,
)
from transforms.shards.tar_headers import BLOCK_BYTES, Member, content, members, starts_like
from transforms.text import clean

_TEXTS = ("cls", "json")
# What `Shard.label_field` says besides a member's extension or a key of `.json`; neither can be one.
_FROM_FOLDER, _NO_LABEL = "/", "/none"
# A label is a few bytes; of annotations that large nothing can be one. Parsed they take thirty times as much.
_TEXT_BYTES = 4 << 20
# What is kept for the labels of one sample: of its texts, and of the names of its members.
_TEXTS_BYTES, _NAMES_BYTES = 16 << 20, 16 << 20
# A sample of more is handed on in pieces: in `cat.0.jpg`, `cat.1.jpg`, … all have one base name.
_HELD_BYTES = 64 << 20
# What a row or a name holds besides its bytes.
_ENTRY_BYTES = 512
# Of a sample's extensions, those that are looked for and told.
_EXTENSIONS = 1000
# What is looked at to tell what a tar holds.
_LOOK_AT_SAMPLES, _LOOK_AT_RUNS, _LOOK_AT_BYTES = 16, 1000, 64 << 20
# On stores what lies between the headers is fetched, too.
_LOOK_AT_FETCHED_BYTES = 2 << 20
_SORT = "mkdir sorted && tar -xf OLD.tar -C sorted && tar --sort=name -cf NEW.tar -C sorted ."


class _UnusableError(Exception):
    """A label is there, and can't be used: why, in a few words that group."""


@dataclass
class _Sample:
    """A sample as it is read: its rows so far, and by lower-case name the small members that a label can come from.

    Attributes:
        shard, first: Where it lies, and its first member.
        extensions, names: Of its members.
        held_bytes: Of its images.
        texts_bytes, names_bytes: Of `texts` and of `names`, with what an entry of each takes.
        overfull: Whether there were more texts than are kept.
        late: The members of `texts` that came since rows were handed on.
        continued, unlabelled: Whether rows before these were handed on already, and whether one of them had no label.
        takes_labels: False where samples of the same name follow each other and one before had no label: nobody can
            tell whose the labels are that come later.
        reads_images: False for who only wants to know what there is.
    """

    shard: Shard
    first: Member
    rows: list[EncodedImage | Failure] = field(default_factory=list)
    texts: dict[str, bytes | None] = field(default_factory=dict)
    extensions: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    held_bytes: int = 0
    texts_bytes: int = 0
    names_bytes: int = 0
    overfull: bool = False
    late: dict[str, Member] = field(default_factory=dict)
    continued: bool = False
    unlabelled: bool = False
    takes_labels: bool = True
    reads_images: bool = True

    @property
    def has_image(self) -> bool:
        return self.continued or bool(self.rows)

    def is_full(self, member: Member) -> bool:
        """Returns whether the rows so far are handed on before a member.

        Labels that follow the last image are waited for, unless the names alone are too many.
        """
        return self.names_bytes > _NAMES_BYTES or (self.held_bytes > _HELD_BYTES and chosen(self.shard, member))

    def add(self, member: Member, stream: Stream) -> None:
        """Reads what is needed of a member; raises BrokenError where the shard ends inside it."""
        if len(self.extensions) < _EXTENSIONS:
            self.extensions.append(member.extension)
        if self.names_bytes > _NAMES_BYTES and not self.rows:
            # Nothing to hand on, and without an image no name begins another sample.
            self.names, self.names_bytes = set(), 0
        self.names.add(member.name)
        self.names_bytes += len(member.name) + _ENTRY_BYTES
        if chosen(self.shard, member):
            self._add_image(member, stream)
        elif _is_read(self.shard, member):
            self._add_text(member, stream)

    def _add_image(self, member: Member, stream: Stream) -> None:
        if not member.regular:
            self._fail(member, "not a regular file", "is a link, a device or a sparse file")
        elif member.size > MAX_ENCODED_BYTES:
            self._fail(
                member, "too large", f"has {member.size} bytes; at most {MAX_ENCODED_BYTES} are read of a member"
            )
        else:
            data = content(stream, member) if self.reads_images else b""
            self.held_bytes += len(data) + _ENTRY_BYTES
            source = clean(self.shard.file.uri)
            self.rows.append(EncodedImage(f"{source}#{member.name}", None, source, member.offset, data))

    def _add_text(self, member: Member, stream: Stream) -> None:
        name = member.name.lower()
        kept = member.size if member.regular and member.size <= _TEXT_BYTES else 0
        self.texts_bytes += kept + len(name) + _ENTRY_BYTES
        if self.texts_bytes > _TEXTS_BYTES:
            self.overfull = True
            return
        text = content(stream, member) if kept or not member.size else None
        # Two that differ, before any image: nobody can tell which is right.
        self.texts[name] = text if self.texts.get(name, text) == text else None
        self.late[name] = member

    def _fail(self, member: Member, error: str, what: str) -> None:
        self.held_bytes += 2 * len(member.name) + _ENTRY_BYTES
        message = f"member {member.name} (byte {member.offset}) of {self.shard.file.uri} {what}"
        self.rows.append(failure(self.shard, key=member.name, position=member.offset, error=error, message=message))

    def finished(self, apart: "_Apart") -> Iterator[EncodedImage | Failure]:
        """Yields the rows with their label, and failures for labels that can't be given to an image any more."""
        rows = self._chosen()
        if rows and not self.texts and self.takes_labels and not self.continued:
            self.texts = apart.texts(self.first.base)
        for row in rows:
            yield row if isinstance(row, Failure) else self._labelled(row)
        if not self.has_image:
            if self.gives_label and not apart.is_joined(self.first.base):
                yield self._lonely()
        elif self.continued or not self.takes_labels:
            yield from map(self._too_late, self._lost(rows))

    def _chosen(self) -> list[EncodedImage | Failure]:
        """Returns the rows that are the sample's images.

        Of an extension that was asked for, these are the members with no other extension before it (`png`: `a.png` and
        not `a.seg.png`), if there are any; else what can be read, if there is any (a depth map of a kind that isn't
        read is no failure beside a photo).
        """
        if len(self.rows) == 1:
            return self.rows
        asked, names = self.shard.image_field, [_member_name(row) for row in self.rows]
        if asked:
            best = [base_name(name).partition(".")[2].lower() == asked for name in names]
        else:
            best = [is_image(name) for name in names]
        return [row for row, is_best in zip(self.rows, best, strict=True) if is_best] if any(best) else self.rows

    def flushed(self, apart: "_Apart") -> Iterator[EncodedImage | Failure]:
        """Yields the rows so far with the labels that are known, and lets go of what only these needed."""
        rows = list(self.finished(apart))
        yield from rows
        own = {_stem(row) for row in rows}
        self.unlabelled |= any(isinstance(row, EncodedImage) and row.label is None for row in rows)
        shared = self.first.base.lower()
        stems = {stem.lower() for stem in own if stem.lower() != shared}
        self.texts = {name: text for name, text in self.texts.items() if name.rpartition(".")[0] not in stems}
        self.texts_bytes = sum(len(text or b"") + len(name) + _ENTRY_BYTES for name, text in self.texts.items())
        self.rows, self.late, self.extensions, self.names = [], {}, [], set()
        self.continued, self.held_bytes, self.names_bytes = True, 0, 0

    def _lost(self, rows: list[EncodedImage | Failure]) -> list[Member]:
        """Returns the members with a label that came too late for an image, or that may be that of another image."""
        own, shared = {_stem(row).lower() for row in rows}, self.first.base.lower()
        return [
            member
            for name, member in self.late.items()
            if self._text_gives_label(name)
            and (not self.takes_labels or (self.unlabelled if _stem_of(name) == shared else _stem_of(name) not in own))
        ]

    def _too_late(self, member: Member) -> Failure:
        what = (
            f"comes after over {_HELD_BYTES >> 20} MiB of images of its sample; let it come before them"
            if self.takes_labels
            else "follows several images of its name, so that it may be the label of any; give each sample its own name"
        )
        message = f"label {member.name} (byte {member.offset}) of {self.shard.file.uri} {what}"
        return failure(self.shard, key=member.name, position=member.offset, error="label apart", message=message)

    def _lonely(self) -> Failure:
        member = self.first
        found = ", ".join(f".{extension}" if extension else "no extension" for extension in self.extensions)
        message = (
            f"sample {member.base} (byte {member.offset}) of {self.shard.file.uri} has a label and no image, "
            f"only: {found}; if its image lies elsewhere in the tar, sort that by name: {_SORT}"
        )
        return failure(self.shard, key=member.name, position=member.offset, error="no image", message=message)

    @property
    def gives_label(self) -> bool:
        """True if a member gives a label, usable or not."""
        return any(map(self._text_gives_label, self.texts))

    def _text_gives_label(self, name: str) -> bool:
        asked = self.shard.label_field
        if not _holds_label(self.shard, base_name(name).partition(".")[2]):
            return False
        if not name.endswith(".json") or asked == "json":
            return True
        try:
            return parse_json(self.texts[name]).get(_key(self.shard)) is not None
        except _UnusableError:
            return False

    def json_items(self) -> Iterator[tuple[str, Any]]:
        """Yields what its `.json` members hold, as far as they can be read."""
        for text in (text for name, text in self.texts.items() if name.endswith(".json")):
            with suppress(_UnusableError):
                yield from parse_json(text).items()

    def _labelled(self, row: EncodedImage) -> EncodedImage:
        kept = self._kept(row) if self.shard.keep else ()
        try:
            label, unusable = self._label(row), ""
        except _UnusableError as error:
            label, unusable = None, str(error)
        return EncodedImage(row.key, label, row.source, row.position, row.data, unusable, kept=kept)

    def _label(self, row: EncodedImage) -> str | None:
        if self.shard.label_field == _NO_LABEL or not self.takes_labels:
            return None
        asked = "" if self.shard.label_field == _FROM_FOLDER else self.shard.label_field
        found, text = self._text(asked or "cls", row)
        if found:
            return _plain(text)
        found, text = self._text("json", row)
        label, why = as_label(parse_json(text).get(asked or "label")) if found else (None, "")
        if why:
            raise _UnusableError(why)
        if label is None and self.overfull:
            raise _UnusableError("among more than are kept of one sample")
        if label is None and self.shard.label_field == _FROM_FOLDER:
            return folder_label(self.shard, _member_name(row))
        return label

    def _kept(self, row: EncodedImage) -> tuple[object, ...]:
        """Returns what comes along: members of these extensions, or else values in the `.json` member."""
        if not self.takes_labels:
            return ()
        try:
            found, text = self._text("json", row)
            values = parse_json(text) if found else {}
        except _UnusableError:
            values = {}
        members = {column.name: self._text(column.name, row) for column in self.shard.keep}
        return tuple(text if found else values.get(name) for name, (found, text) in members.items())

    def _text(self, extension: str, row: EncodedImage) -> tuple[bool, bytes | None]:
        """Returns whether there is a member with this extension, of the row's image or else of the sample; and it."""
        own, shared = f"{_stem(row)}.{extension}".lower(), f"{self.first.base}.{extension}".lower()
        name = own if own in self.texts else shared
        return name in self.texts, self.texts.get(name)


def _member_name(row: EncodedImage | Failure) -> str:
    return row.key.removeprefix(f"{row.source}#")


def _stem(row: EncodedImage | Failure) -> str:
    return _stem_of(_member_name(row))


def _stem_of(name: str) -> str:
    """Returns a member's own name: without its last extension."""
    return name.rpartition(".")[0]


def chosen(shard: Shard, member: Member) -> bool:
    """Returns whether a member is one of the shard's images: by the ending that was asked for, else by any image's."""
    return member.name.lower().endswith(f".{shard.image_field}") if shard.image_field else is_picture(member.name)


def _holds_label(shard: Shard, extension: str) -> bool:
    if shard.label_field == _NO_LABEL:
        return False
    last = extension.rpartition(".")[2]
    return bool(last) and (last in _TEXTS or shard.label_field.lower() in (last, extension))


def _is_read(shard: Shard, member: Member) -> bool:
    """Returns whether a member that is no image may hold a label, or what comes along."""
    last = member.extension.rpartition(".")[2]
    names = [column.name.lower() for column in shard.keep]
    is_kept = bool(names and last) and (last == "json" or last in names or member.extension in names)
    return is_kept or _holds_label(shard, member.extension)


def _key(shard: Shard) -> str:
    return shard.label_field if shard.label_field not in ("", _FROM_FOLDER) else "label"


def _plain(text: bytes | None) -> str | None:
    """Returns the label that a `.cls` member holds; lists and objects are none."""
    if text is None:
        raise _UnusableError("two of one name, or too large")
    label = text.decode("utf-8", "backslashreplace").strip().removeprefix("\ufeff")
    if len(label) > LABEL_LETTERS:
        raise _UnusableError(TOO_LONG)
    if label[:1] in ("[", "{"):
        try:
            json.loads(label)
        except ValueError:
            return as_text(label)
        except RecursionError:
            pass
        raise _UnusableError("a list" if label[0] == "[" else "an object")
    return as_text(label)


def parse_json(text: bytes | None) -> dict:
    """Returns the object of a `.json` member.

    Raises:
        _UnusableError: It holds none.
    """
    if text is None:
        raise _UnusableError("two of one name, or too large")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _UnusableError("JSON that can't be read") from error
    if not isinstance(value, dict):
        raise _UnusableError("JSON that is no object")
    return value


def folder_label(shard: Shard, name: str) -> str | None:
    """Returns the class that a member's folder names: the nearest that isn't one of images of all classes."""
    archive = base_name(shard.file.uri).partition(".")[0].lower()
    folders = name.split("/")[:-1]
    label = next((f for f in reversed(folders) if not is_no_class(f) and f.lower() != archive), None)
    return as_text(label)


def resolve(shard: Shard, fields: Fields) -> tuple[str, str, str]:
    """Returns the names of the image and label fields, as `Shard` describes them; a tar has no field of the name.

    Raises:
        NoImageError: The tar holds no image, as far as it was looked at.
        FeaturemillError: The first samples have no image, member or `.json` key of the name that was asked for.
    """
    image = (fields.image or "").removeprefix(".").lower()
    # Asked for as an extension, so that whatever member it is, its content is kept.
    shard = replace(shard, image_field=image, label_field=_NO_LABEL if fields.label == "" else fields.label or "")
    samples, extensions, whole = _look(shard)
    if not samples and extensions and (whole or image):
        wanted = f"members that end in .{image}" if image else "members that end like an image"
        present = [f".{extension}" if extension else "members without an ending" for extension in extensions]
        raise missing(shard.file.uri, role="image", wanted=wanted, present=present)
    if fields.label and samples:
        _check_label(shard, samples, fields.label)
    elif fields.label is None and samples and not any(sample.gives_label for sample in samples):
        column = next((name for name in LABEL_NAMES if partition_value(shard.file.uri, name) is not None), None)
        if column:
            return image, f"{column}=", ""
        if fields.label_from != "none" and _is_from_folders(shard, samples):
            return image, _FROM_FOLDER, ""
    return image, shard.label_field, ""


def _look(shard: Shard) -> tuple[list[_Sample], dict[str, None], bool]:
    """Returns the first samples with an image, the extensions seen until then, and whether that is the whole tar."""
    most = _LOOK_AT_BYTES if storage.is_local(shard.file.uri) else _LOOK_AT_FETCHED_BYTES
    stop = look(shard, most).stop
    found, extensions, whole = [], {}, stop < 0
    with open_stream(shard) as stream:
        try:
            for count, (sample, _) in enumerate(_samples(shard, stream, stop=stop, reads_images=False), 1):
                extensions |= dict.fromkeys(sample.extensions[:100])
                if sample.rows:
                    found.append(sample)
                if len(found) == _LOOK_AT_SAMPLES or count == _LOOK_AT_RUNS or stream.position > most:
                    whole = False
                    break
        except BrokenError:
            # Reading will say what is wrong.
            return found, {}, False
    return found, extensions, whole


def _check_label(shard: Shard, samples: list[_Sample], wanted: str) -> None:
    keys: dict[str, None] = {}
    for sample in samples:
        if wanted.lower() in sample.extensions:
            return
        keys |= dict.fromkeys(key for key, _ in sample.json_items())
    if wanted not in keys:
        present = [f".{extension}" for extension in dict.fromkeys(e for s in samples for e in s.extensions)]
        raise missing(shard.file.uri, role="label", wanted=wanted, present=present + list(keys))


def _is_from_folders(shard: Shard, samples: list[_Sample]) -> bool:
    """Returns whether all first images lie in class folders, and no member gives a label, as far as headers tell."""
    rows = [row for sample in samples for row in sample.rows]
    return all(folder_label(shard, _member_name(row)) for row in rows) and _survey(shard) == _Survey()


@dataclass(frozen=True)
class _Survey:
    """Findings in the headers of a whole tar: whether any member may hold a label, and whether some lie apart."""

    labels: bool = False
    apart: bool = False


@lru_cache(maxsize=16)
def _survey(shard: Shard) -> _Survey:
    """Reads the headers of a tar once; of one that can't be surveyed nothing is known."""
    if shard.compression or not storage.is_local(shard.file.uri):
        # All the data between the headers would have to be read.
        return _Survey()
    labels, without_label, without_image = False, False, False
    with open_stream(shard) as stream:
        for _, has_image, texts in _runs(shard, stream, stop=-1):
            labels = labels or any(member.name.lower().endswith(".cls") for member in texts)
            without_label |= has_image and not texts
            without_image |= bool(texts) and not has_image
    return _Survey(labels, without_label and without_image)


def _runs(shard: Shard, stream: Stream, *, stop: int) -> Iterator[tuple[str, bool, list[Member]]]:
    """Yields (base name, whether there is an image, members that may hold labels) of each run, up to any damage."""
    try:
        for base, run in groupby(members(stream, stop), key=lambda member: member.base):
            has_image, texts = False, []
            for member in run:
                if chosen(shard, member):
                    has_image = True
                elif _is_read(shard, member):
                    texts.append(member)
            yield base, has_image, texts
    except BrokenError:
        return


class _Apart:
    """The labels of a unit's samples that lie elsewhere in the tar. Looks at headers alone, and only when asked."""

    def __init__(self, unit: Unit):
        self._unit, self._shard = unit, unit.shard

    def texts(self, base: str) -> dict[str, bytes | None]:
        """Returns the members that lie apart and may hold the label of a sample, by lower-case name."""
        found = {}
        for member in self._joined.get(base, ()):
            found[member.name.lower()] = self._content(member)
        return found

    def _content(self, member: Member) -> bytes | None:
        if not member.regular or member.size > _TEXT_BYTES:
            return None
        try:
            with open_stream(self._shard, member.data_offset) as stream:
                return content(stream, member)
        except BrokenError:
            return None

    def is_joined(self, base: str) -> bool:
        """Returns whether labels of this base name that lie apart are given to an image."""
        return base in self._joined

    @cached_property
    def _joined(self) -> dict[str, list[Member]]:
        shard, unit = self._shard, self._unit
        if shard.label_field == _NO_LABEL or not _survey(shard).apart:
            return {}
        with open_stream(shard, unit.start) as stream:
            ours = {base for base, has_image, texts in _runs(shard, stream, stop=unit.stop) if has_image != bool(texts)}
        apart: dict[str, list[Member]] = {}
        pictured = set()
        with open_stream(shard) as stream:
            for base, has_image, texts in _runs(shard, stream, stop=-1):
                if base in ours and has_image != bool(texts):
                    apart.setdefault(base, []).extend(texts)
                    if has_image:
                        pictured.add(base)
        # A name that repeats could be anyone's.
        return {
            base: some
            for base, some in apart.items()
            if some and base in pictured and len({member.name.lower() for member in some}) == len(some)
        }


def _samples(shard: Shard, stream: Stream, *, stop: int, reads_images: bool = True) -> Iterator[tuple[_Sample, bool]]:
    """Yields (sample, whether its last member has been read); at damage, first what was complete of the last one.

    A sample of very many bytes is yielded before its end as well, to be flushed.
    """
    sample = None
    try:
        for member in members(stream, stop):
            takes_labels = True
            if sample is not None and member.base == sample.first.base:
                repeats = sample.has_image and member.name in sample.names
                takes_labels = sample.takes_labels and any(
                    _holds_label(shard, base_name(name).partition(".")[2]) for name in sample.texts
                )
            else:
                repeats = True
            if repeats:
                if sample is not None:
                    yield sample, True
                sample = _Sample(shard, member, takes_labels=takes_labels, reads_images=reads_images)
            elif sample.rows and sample.is_full(member):
                yield sample, False
            sample.add(member, stream)
    except BrokenError:
        if sample is not None and sample.has_image:
            yield sample, True
        raise
    if sample is not None:
        yield sample, True


def split(shard: Shard, unit_bytes: int) -> list[Unit]:
    """Returns units that start and stop at samples, by one pass over the headers."""
    with open_stream(shard) as stream:
        return cut(shard, _starts(stream), unit_bytes)


def _starts(stream: Stream) -> Iterator[int]:
    base, end = None, 0
    try:
        for member in members(stream, stop=-1):
            if member.base != base:
                yield member.offset
            base, end = member.base, member.end
    except BrokenError:
        pass
    # Not the end of the shard: the zeros that fill an archive up would make the last unit look large.
    yield end


def read(unit: Unit) -> Iterator[EncodedImage | Failure]:
    """Yields the images of a unit, in order; a sample with a label and without an image is a failure.

    Where the shard is cut, the images that are complete are kept, even if their label would have come later (it is
    None then), and one failure says where it broke.
    """
    apart = _Apart(unit)
    with open_stream(unit.shard, unit.start, through=True) as stream:
        try:
            for sample, is_done in _samples(unit.shard, stream, stop=unit.stop):
                yield from sample.finished(apart) if is_done else sample.flushed(apart)
        except BrokenError as error:
            yield broken(unit.shard, error, stream.position)


def _columns(shard: Shard) -> dict[str, str]:
    """Returns the endings of the members in the first samples, and the keys of their `.json`."""
    found: dict[str, str] = {}
    # Asked for as JSON, so that it is read also where there are no labels.
    for sample in _look(replace(shard, keep=(Kept("json", "string"),)))[0]:
        found |= dict.fromkeys(sample.extensions, "string")
        for key, value in sample.json_items():
            if value is not None:
                found.setdefault(key, type_of(value))
    return found


FORMAT = Format(
    name="tar",
    title="tar",
    sign="checksum of the first header",
    ending=re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE),
    gzip=True,
    # An archive without members is nothing but blocks of zeros.
    matches=lambda head, named: starts_like(head) or (named and len(head) >= BLOCK_BYTES and not any(head)),
    resolve=resolve,
    split=split,
    read=read,
    narrow=stretches,
    columns=_columns,
)
