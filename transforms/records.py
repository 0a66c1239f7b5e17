"""The small frozen records that travel between the steps. They import nothing of the project but errors."""

from dataclasses import dataclass, field
from typing import Any, Literal

# The format of a listing of image files; shards have those of `transforms.shards.detect.FORMATS`.
LISTING = "files"
# How the note on a label begins that is there and can't be used; what it is follows after a colon.
UNUSABLE_LABEL = "whose label can't be used"


@dataclass(frozen=True)
class FileInfo:
    """A file as a listing shows it.

    Attributes:
        uri: Absolute local path, or a URL such as `gs://bucket/name`.
        size: Bytes.
        version: Changes when the content does: modification time, or the store's own tag.
    """

    uri: str
    size: int
    version: str


@dataclass(frozen=True)
class ListedFile:
    """One image file of a listing.

    Attributes:
        file: The file; one that a table names and that isn't there has no bytes and no version.
        label, split: Label and side, as its folders or a table give them; None if they don't.
        kept: A table's other values of its row, {column: value} as JSON; None if there is no table.
    """

    file: FileInfo
    label: str | None
    split: str | None = None
    kept: str | None = None

    @property
    def is_missing(self) -> bool:
        """True if it wasn't there when it was looked for."""
        return not (self.file.size or self.file.version)


@dataclass(frozen=True)
class SkippedFile:
    """A file that was met in a folder and is no input, with the reason; `hidden` is the whole reason of hidden ones."""

    file: FileInfo
    reason: str


@dataclass(frozen=True)
class Kept:
    """A column of the input that comes along into the parts: its name, and the name of its Arrow type."""

    name: str
    type: str


@dataclass(frozen=True)
class Shard:
    """One input file with many images, or a listing of plain image files.

    Attributes:
        file: The file. For a listing, the folder (or the pattern, or the list) that was given, size and
            version summed up over its files.
        format: Name of what it holds, by content.
        compression: `gzip` or empty (where its format may be packed).
        image_field: Name of the TFRecord feature or Parquet column with the encoded image; empty for tar and files.
        label_field: The same for the label (for tar: a member's extension, or a key of the `.json` member); empty if
            there is none.
        name_field: The same for the image's own name, which makes the key readable; empty if there is none.
        keep: What comes along; only where a unit is read: it is OUT's, and stands in no plan.
    """

    file: FileInfo
    format: str
    compression: str = ""
    image_field: str = ""
    label_field: str = ""
    name_field: str = ""
    # Old predictions are known by a hash of the rest.
    keep: tuple[Kept, ...] = field(default=(), repr=False)

    @property
    def is_listing(self) -> bool:
        """True if it is no file, but a listing of plain image files."""
        return self.format == LISTING


@dataclass(frozen=True)
class Unit:
    """A range of a shard: what one call handles, commits and retries.

    Attributes:
        shard: Where it lies.
        start: First byte of the (uncompressed) shard, first row group of a Parquet file, or first file of a listing.
        stop: One past the last, counted like `start`; -1 is the end of the shard, wherever that is.
        first_index: Index in the shard of the first record, so that keys don't depend on how a shard is split.
        input_bytes: Encoded bytes in the range, as far as they are known before reading.
        limit: Read at most this many records (None: all). Only samples have it.
        files: For a listing, the files of the range. Left in the plan while the unit travels through a graph.
    """

    shard: Shard
    start: int = 0
    stop: int = -1
    first_index: int = 0
    input_bytes: int = 0
    limit: int | None = None
    files: tuple[ListedFile, ...] = ()

    @property
    def inputs(self) -> tuple[FileInfo, ...]:
        """The files that it is read from: those of a listing, else its shard."""
        return tuple(listed.file for listed in self.files) or (self.shard.file,)


# Not frozen, which would take seven times as long for each image. Nobody changes one.
@dataclass(slots=True)
class EncodedImage:
    """One image as it was stored.

    Attributes:
        key: Unique and stable: the file's URI, or `shard URI#name or index`.
        label: Class as text, None if unknown.
        source: URI of the shard or file.
        position: Where in the source, for reading it again: byte offset of the record (tar, TFRecord), row
            number (Parquet), 0 (file).
        data: Encoded bytes, as stored.
        unusable: Why a label that is there can't be used, in a few words that group; empty if it can, or there is none.
        split: The side that it was given for: train, validation or test; None if unknown.
        kept: The values of `Shard.keep`, None for what is missing; as they were stored until `shards.read` fits them.
        notes: What there is to know of these, see `UnitReport.notes`.
    """

    key: str
    label: str | None
    source: str
    position: int
    data: bytes
    unusable: str = ""
    split: str | None = None
    kept: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()

    def without_data(self) -> "EncodedImage":
        """Returns it with no bytes."""
        rest = self.unusable, self.split, self.kept, self.notes
        return EncodedImage(self.key, self.label, self.source, self.position, b"", *rest)


@dataclass(frozen=True)
class Failure:
    """An image that could not be embedded, or the place where a shard could not be read any further.

    Attributes:
        key: As in `EncodedImage`.
        label: As in `EncodedImage`.
        source: As in `EncodedImage`.
        position: As in `EncodedImage`.
        stage: `read`, `decode` or `embed`.
        error: A short stable reason to group by, such as `truncated` or `too many pixels`.
        message: One line for people.
        sha256: Of the encoded bytes, None where there are none.
    """

    key: str
    label: str | None
    source: str
    position: int
    stage: Literal["read", "decode", "embed"]
    error: str
    message: str
    sha256: bytes | None = None


@dataclass(frozen=True)
class UnitReport:
    """The report of one unit. `rows_read = rows_embedded + rows_failed`, always.

    Attributes:
        unit_id: Name of its part, without the ending.
        source: URI of the shard.
        start: As in `Unit`.
        stop: As in `Unit`.
        rows_read: Records seen, broken ones included.
        rows_embedded: Rows of the part.
        rows_failed: Rows of the failures file.
        input_bytes: Encoded bytes read.
        read_seconds: In the reading thread. Stages overlap, so the four add up to more than `wall_seconds`.
        decode_seconds: Summed over the decoding threads.
        embed_seconds: In the engine.
        write_seconds: Encoding the part's rows. The flush to disk comes after the report is written, and isn't in it.
        wall_seconds: From the first byte to the last row.
        engine: Which engine ran, with its device, such as `keras (tensorflow, CPU)`.
        notes: {note: how many of its records it is true of}: what there is to know of records that are no failures. A
            note reads on after "3 images", such as "whose label can't be used: a list"; reports of earlier
            versions have none.
        failures_sha256: Hex, of the failures file without its footer; empty if there is none, or it doesn't say.
        part_sha256: The same of the part as it was committed: also where its rows were written anew since, merged with
            others or relocated. Empty in the part itself, whose footer says it.
        part_bytes: Size of the part, in units.parquet alone; 0 if unknown.
    """

    unit_id: str
    source: str
    start: int
    stop: int
    rows_read: int
    rows_embedded: int
    rows_failed: int
    input_bytes: int
    read_seconds: float
    decode_seconds: float
    embed_seconds: float
    write_seconds: float
    wall_seconds: float
    engine: str
    notes: dict[str, int] = field(default_factory=dict)
    failures_sha256: str = ""
    part_sha256: str = ""
    part_bytes: int = field(default=0, compare=False)
