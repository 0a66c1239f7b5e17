"""The headers of a tar archive, with absolute offsets, read from any byte at which a member starts.

Each header block is parsed by the standard library (`tarfile.TarInfo.frombuf`), but those of plain files as nearly all
tars have them, because it parses every field and sums twice. The walk from one to the next is ours, because
`tarfile.TarFile` ends silently at a damaged header, reads extension headers of any claimed size into memory and counts
offsets from where it was opened.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from transforms.shards.fields import NAME_BYTES
from transforms.shards.names import base_name, is_hidden
from transforms.shards.stream import BrokenError, Stream

BLOCK_BYTES = 512
# Longer "long names" are damage or an attack: Linux itself ends at 4096 bytes.
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_EXTENSIONS = 16
_MAX_DIGITS = 20
_LONG_NAME = tarfile.GNUTYPE_LONGNAME
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (_LONG_NAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, *_PAX)
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
# The header of a plain file whose numbers are written as POSIX and GNU tar write them, and whose name has no prefix.
_PLAIN = re.compile(
    rb"(.{100})(?:[0-7]{7}[ \0]){3}([0-7]{11})[ \0][0-7]{11}[ \0]([0-7]{6})\0 "
    rb"0.{100}ustar(?:\x0000|  \0).{64}(?:[0-7]{7}\0|\0{8}){2}\0",
    re.DOTALL,
)
# What the checksum's own field counts besides its digits: as eight blanks, and not as a zero and a blank.
_OWN_SUM = 8 * ord(" ") - ord(" ")
# An Adler-32's lower half is one more than the sum of the bytes, modulo 65,521: more than half a header adds up to.
_HALF, _SUM_BITS = BLOCK_BYTES // 2, 0xFFFF


# Not frozen, which would take several times as long for each. Nobody changes one.
@dataclass(slots=True)
class Member:
    """A member as its headers describe it.

    Attributes:
        name: As stored; bytes that aren't UTF-8 are written out.
        offset: First byte of its first header (extension headers belong to their member).
        size: Bytes of data.
        end: First byte behind its data and their padding.
        regular: False for links, devices and sparse files.
        base: The folder, and the file name up to its first dot.
        extension: The rest, in lower case, without the dot.
    """

    name: str
    offset: int
    size: int
    end: int
    regular: bool
    base: str
    extension: str

    @property
    def data_offset(self) -> int:
        """First byte of its data."""
        return self.end - self.size - -self.size % BLOCK_BYTES


def starts_like(head: bytes) -> bool:
    """Returns whether the bytes start with a header whose checksum is right (ustar, GNU or v7)."""
    try:
        tarfile.TarInfo.frombuf(head[:BLOCK_BYTES], "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        return False
    return True


def members(stream: Stream, stop: int) -> Iterator[Member]:
    """Yields the members that start before the byte `stop` (-1: all), without folders and hidden files.

    The stream stands at a member's data while it is yielded; whatever is left unread is skipped.

    Blocks of zeros are passed over rather than taken for the end, so that archives which were strung together are
    read whole, and a hole in the middle is found out by what follows it.

    Raises:
        BrokenError: At the first header that is damaged, or a member that is cut.
    """
    while stop < 0 or stream.position < stop:
        offset = stream.position
        try:
            found = _next(stream, stop)
        except BrokenError as error:
            raise _at(error, offset) from error
        if found is None:
            if stream.position < stop:
                raise BrokenError("truncated", f"the shard has become shorter: it ends at {offset}", offset)
            return
        member, kind = found
        if 0 <= stop <= member.offset:
            # Only zeros lay between here and the unit's end.
            return
        try:
            if kind != tarfile.DIRTYPE and not is_hidden(member.name):
                yield member
            stream.skip(member.end - stream.position)
        except BrokenError as error:
            raise _at(error, member.offset, f", inside member {member.name}") from error


def content(stream: Stream, member: Member) -> bytes:
    """Returns a member's data; the stream stands at its start. Raises BrokenError where the shard ends before."""
    try:
        return stream.read_exactly(member.size)
    except BrokenError as error:
        raise _at(error, member.offset, f", inside member {member.name}") from error


def _at(error: BrokenError, offset: int, where: str = "") -> BrokenError:
    return BrokenError(error.error, f"{error}{where}", offset if error.offset is None else error.offset)


def _next(stream: Stream, stop: int) -> tuple[Member, bytes] | None:
    """Returns the next member and its type, None at the end or if only zeros lie before the byte `stop`."""
    offset, name, size, regular = stream.position, None, None, True
    for _ in range(_MAX_EXTENSIONS):
        info, offset = _header(stream, offset, stop, extended=offset != stream.position)
        if info is None:
            return None
        if info.type not in _EXTENSIONS:
            stored_bytes = 0 if info.type in _WITHOUT_DATA else info.size if size is None else size
            end = stream.position + stored_bytes + -stored_bytes % BLOCK_BYTES
            regular = regular and info.isreg() and info.type != tarfile.GNUTYPE_SPARSE
            name = info.name if name is None else name
            file_name = base_name(name)
            stem, _, extension = file_name.partition(".")
            base = name[: len(name) - len(file_name)] + stem
            return Member(name, offset, stored_bytes, end, regular, base, extension.lower()), info.type
        content = _extension(stream, info)
        if info.type == _LONG_NAME:
            name = _text(content.split(b"\0", 1)[0])
        elif info.type in _PAX:
            values = _pax(content)
            name = _text(values.get(b"GNU.sparse.name", values.get(b"path", b""))) or name
            size = _number(values[b"size"]) if b"size" in values else size
            regular = regular and not any(key.startswith(b"GNU.sparse.") for key in values)
    raise BrokenError("bad header", f"more than {_MAX_EXTENSIONS} extension headers in a row", offset)


def _header(stream: Stream, offset: int, stop: int, *, extended: bool) -> tuple[tarfile.TarInfo | None, int]:
    """Returns the next header that isn't all zeros, and the offset at which its member starts; None as `_next`."""
    while True:
        position = stream.position
        block = stream.read(BLOCK_BYTES)
        if not any(block) and not extended:
            if len(block) < BLOCK_BYTES or 0 <= stop <= stream.position:
                return None, position
            offset = stream.position
            continue
        if len(block) < BLOCK_BYTES:
            raise BrokenError("truncated", f"the shard ends at byte {stream.position}, inside a header", offset)
        try:
            info = _plain(block) or tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
        except tarfile.HeaderError as error:
            raise BrokenError("bad header", f"the header at byte {position} is damaged: {error}", offset) from error
        if info.size < 0:
            raise BrokenError("bad header", f"the header at byte {position} gives a negative size", offset)
        if info.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(stream, block)
        return info, offset


def _plain(block: bytes) -> tarfile.TarInfo | None:
    """Returns what `frombuf` would say of a plain file's header, as far as it is asked for; None for any other."""
    found = _PLAIN.match(block)
    if found is None:
        return None
    name, size, checksum = found.groups()
    if _sum(block) - sum(checksum) + _OWN_SUM != int(checksum, 8):
        return None
    info = tarfile.TarInfo(name.partition(b"\0")[0].decode("utf-8", "backslashreplace"))
    info.size = int(size, 8)
    return info


def _sum(block: bytes) -> int:
    """Returns the sum of a block's bytes, which Python's own adds up one object at a time."""
    return (zlib.adler32(block[:_HALF]) & _SUM_BITS) + (zlib.adler32(block[_HALF:]) & _SUM_BITS) - 2


def _skip_sparse_map(stream: Stream, block: bytes) -> None:
    """Skips the further blocks of an old GNU sparse header; byte 482, then 504, says if one follows."""
    more = block[482]
    while more:
        more = stream.read_exactly(BLOCK_BYTES)[504]


def _extension(stream: Stream, info: tarfile.TarInfo) -> bytes:
    if info.size > _MAX_EXTENSION_BYTES:
        raise BrokenError("bad header", f"an extension header claims {info.size} bytes")
    content = stream.read_exactly(info.size)
    stream.skip(-info.size % BLOCK_BYTES)
    return content


def _pax(content: bytes) -> dict[bytes, bytes]:
    """Returns the records `LENGTH KEY=VALUE\\n` of a pax header; LENGTH counts the whole record."""
    values, at = {}, 0
    while at < len(content):
        # Not by cutting what is read off: that takes quadratic time.
        blank = content.find(b" ", at, at + _MAX_DIGITS + 1)
        length = _number(content[at:blank] if blank >= 0 else b"")
        record = content[blank + 1 : at + length]
        if not blank + 1 < at + length <= len(content) or not record.endswith(b"\n") or b"=" not in record:
            raise BrokenError("bad header", "a pax header is damaged")
        key, _, value = record[:-1].partition(b"=")
        values[key] = value
        at += length
    return values


def _number(digits: bytes) -> int:
    # Longer numbers are no sizes, and int() takes quadratic time for them.
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise BrokenError("bad header", "a pax header is damaged")
    return int(digits)


def _text(name: bytes) -> str:
    """Returns a name as text; of one that is longer than any path, as much from both ends as is too long for a key."""
    if len(name) > NAME_BYTES:
        name = name[: NAME_BYTES // 2] + name[-(NAME_BYTES // 2) - 1 :]
    return name.decode("utf-8", "backslashreplace")
