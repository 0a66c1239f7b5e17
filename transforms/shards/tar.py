"""WebDataset tar: a sample is the run of members with one base name; each of its images is one row.

The base name is the folder and the file name up to its first dot, the rest is the extension. Source:
https://github.com/webdataset/webdataset, "The WebDataset Format". A member that differs from an image's name only in
the last extension is the image's own (`a.b.cls` beside `a.b.jpg`), so names with dots keep their labels. Nothing is
ever extracted: a member's name is text.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from transforms.records import EncodedImage, Failure, Shard, Unit
from transforms.shards.fields import Fields, WrongFieldError, as_text, missing
from transforms.shards.format import Format
from transforms.shards.names import is_image
from transforms.shards.stream import (
    MAX_ENCODED_BYTES,
    BrokenError,
    Stream,
    broken,
    cut,
    failure,
    open_stream,
    stretches,
)
from transforms.shards.tar_headers import BLOCK_BYTES, Member, content, members, starts_like
from transforms.text import clean

_TEXTS = ("cls", "json")


@dataclass
class _Sample:
    """A sample as it is read: its rows so far, and by lower-case name the small members that a label can come from."""

    shard: Shard
    first: Member
    rows: list[EncodedImage | Failure] = field(default_factory=list)
    texts: dict[str, bytes] = field(default_factory=dict)
    extensions: list[str] = field(default_factory=list)
    held_bytes: int = 0

    def add(self, member: Member, stream: Stream) -> None:
        """Reads what is needed of a member; raises BrokenError where the shard ends inside it."""
        self.extensions.append(member.extension)
        if not member.regular:
            self._fail(member, "not a regular file", "is a link, a device or a sparse file")
        elif is_image(member.name):
            self._add_image(member, stream)
        elif self._holds_label(member) and self._has_room(member):
            self.texts[member.name.lower()] = content(stream, member)

    def _holds_label(self, member: Member) -> bool:
        last = member.extension.rpartition(".")[2]
        return last in _TEXTS or self.shard.label_field in (last, member.extension)

    def _add_image(self, member: Member, stream: Stream) -> None:
        if not self._has_room(member):
            return
        data = content(stream, member)
        source = clean(self.shard.file.uri)
        self.rows.append(EncodedImage(f"{source}#{member.name}", None, source, member.offset, data))

    def _has_room(self, member: Member) -> bool:
        # A whole sample is held, since its label may come last.
        if self.held_bytes + member.size <= MAX_ENCODED_BYTES:
            self.held_bytes += member.size
            return True
        what = f"has {member.size} bytes; at most {MAX_ENCODED_BYTES} are read of a sample"
        self._fail(member, "too large", what)
        return False

    def _fail(self, member: Member, error: str, what: str) -> None:
        message = f"member {member.name} (byte {member.offset}) of {self.shard.file.uri} {what}"
        self.rows.append(failure(self.shard, key=member.name, position=member.offset, error=error, message=message))

    def finished(self) -> list[EncodedImage | Failure]:
        """Returns the rows with their label."""
        return [self._with_label(row) for row in self.rows]

    def _with_label(self, row: EncodedImage | Failure) -> EncodedImage | Failure:
        try:
            return replace(row, label=self._label(row))
        except (ValueError, RecursionError, WrongFieldError) as error:
            return self._without_label(row, error)

    def _without_label(self, row: EncodedImage | Failure, error: Exception) -> Failure:
        if isinstance(row, Failure):
            return row
        message = f"cannot read the label of {row.key}: {error}; correct it or pass another --label-field"
        return Failure(row.key, None, row.source, row.position, "read", "bad label", clean(message))

    def _label(self, row: EncodedImage | Failure) -> str | None:
        asked = self.shard.label_field
        text = self.text(asked or "cls", row)
        if text is not None:
            return as_text(text.decode("utf-8", "backslashreplace").strip())
        return as_text(parse_json(self.text("json", row)).get(asked or "label"))

    def text(self, extension: str, row: EncodedImage | Failure) -> bytes | None:
        """Returns the member with this extension that belongs to the row's image, or else to the whole sample."""
        image = row.key.removeprefix(f"{row.source}#")
        own, shared = f"{image.rpartition('.')[0]}.{extension}", f"{self.first.base}.{extension}"
        return self.texts.get(own.lower(), self.texts.get(shared.lower()))


def parse_json(text: bytes | None) -> dict:
    """Returns the object of a `.json` member, empty if there is none."""
    if text is None:
        return {}
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("the .json member isn't an object")
    return value


def resolve(shard: Shard, fields: Fields) -> tuple[str, str, str]:
    """Returns the names of the image, label and name fields: only a label can be asked for.

    Raises:
        FeaturemillError: The first sample has no member or `.json` key of the name that was asked for.
    """
    if not fields.label:
        return "", "", ""
    # Asked for as an extension, so that whatever member it is, its content is kept.
    sample = _first(replace(shard, label_field=fields.label))
    if sample is None or fields.label in sample.extensions:
        return "", fields.label, ""
    try:
        keys = list(parse_json(sample.text("json", sample.rows[0])))
    except (ValueError, RecursionError):
        keys = []
    if fields.label not in keys:
        present = [f".{extension}" for extension in sample.extensions] + keys
        raise missing(shard.file.uri, role="label", wanted=fields.label, present=present)
    return "", fields.label, ""


def _first(shard: Shard) -> _Sample | None:
    """Returns the first sample with an image, None if there is none or the shard breaks before it ends."""
    with open_stream(shard) as stream:
        try:
            for sample in _samples(shard, stream, stop=-1):
                if any(isinstance(row, EncodedImage) for row in sample.rows):
                    return sample
        except BrokenError:
            pass
    return None


def _samples(shard: Shard, stream: Stream, *, stop: int) -> Iterator[_Sample]:
    """Yields samples when their last member has been read; at damage, first what was complete of the last one."""
    sample = None
    try:
        for member in members(stream, stop):
            if sample is None or member.base != sample.first.base:
                if sample is not None:
                    yield sample
                sample = _Sample(shard, member)
            sample.add(member, stream)
    except BrokenError:
        if sample is not None and sample.rows:
            yield sample
        raise
    if sample is not None:
        yield sample


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
    """Yields the images of a unit, in order; a sample without one is a failure.

    Where the shard is cut, the images that are complete are kept, even if their label would have come later (it is
    None then), and one failure says where it broke.
    """
    with open_stream(unit.shard, unit.start) as stream:
        try:
            for sample in _samples(unit.shard, stream, stop=unit.stop):
                yield from sample.finished() if sample.rows else [_no_image(sample)]
        except BrokenError as error:
            yield broken(unit.shard, error, stream.position)


def _no_image(sample: _Sample) -> Failure:
    member = sample.first
    found = ", ".join(f".{extension}" if extension else "no extension" for extension in sample.extensions)
    message = f"sample {member.base} (byte {member.offset}) of {sample.shard.file.uri} has no image, only: {found}"
    return failure(sample.shard, key=member.name, position=member.offset, error="no image", message=message)


def _matches(head: bytes, named: bool) -> bool:
    # An archive without members is nothing but blocks of zeros.
    return starts_like(head) or (named and len(head) >= BLOCK_BYTES and not any(head))


FORMAT = Format(
    name="tar",
    title="tar",
    sign="checksum of the first header",
    ending=re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE),
    gzip=True,
    matches=_matches,
    resolve=resolve,
    split=split,
    read=read,
    narrow=stretches,
)
