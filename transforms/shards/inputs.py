"""Finds the shards and image files that the user names: folders, globs, braces, lists."""

import difflib
import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import bracex

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.labels.folders import REGEX, Place, Stated, by_pattern, read_folders
from transforms.machine import ahead
from transforms.records import FileInfo, ListedFile, Shard, SkippedFile
from transforms.shards.detect import FORMATS, Looked, guess_inside, look_inside, may_be_anything, named_format
from transforms.shards.fields import Fields
from transforms.shards.files import TableRow, read_table
from transforms.shards.names import BY_NAME, HIDDEN, base_name, count_by_ending, extension, is_hidden, is_picture
from transforms.text import clean, marked_encoding, one_line

_GLOB = re.compile(r"[*?\[]")
_MAX_BRACES = 1_000_000
_THREADS = 16
_TABLE = re.compile(r"\.(csv|tsv|parquet|parq|pq)$", re.IGNORECASE)
_FILE_URI = re.compile(r"^file:(//(localhost)?)?(?=/)", re.IGNORECASE)
# A path with something behind it, or a table's header.
_ROW = re.compile(r"[,;\t]|\s-?\d+$")
_PACKED = ("zip", "7z", "rar", "zst", "bz2", "xz")


@dataclass(frozen=True)
class Found:
    """The shards and files that were found.

    Attributes:
        shards: Sorted by URI, each once.
        files: Image files that aren't in a shard, sorted by URI, each once.
        skipped: All other files that were met in folders, sorted by URI, each once: so every file that an input led to
            is in one of the three, or a table of paths.
        columns: {column: name of its type} of what can come along from tables of paths.
    """

    shards: tuple[Shard, ...]
    files: tuple[ListedFile, ...]
    skipped: tuple[SkippedFile, ...]
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    """A file that an input led to.

    Attributes:
        file: As it is listed.
        roots: The folders in which it was met, as they were given; None stands for an input that named it, by itself or
            by a pattern.
        hidden: Whether it, or a folder on the way to it, is hidden.
    """

    file: FileInfo
    roots: tuple[str | None, ...]
    hidden: bool = False

    @property
    def named(self) -> bool:
        return None in self.roots


_DETECT = Fields()


def find(inputs: Sequence[str], fields: Fields = _DETECT, *, output: str | None = None) -> Found:
    """Finds the shards and image files that the inputs name.

    Args:
        inputs: Any mix of shard files, image files, folders (which are walked), globs (`*`, `?`, `[…]`, `**`), braces
            (`{000..099}`, `{a,b}`) and `@list.txt`, a file of such inputs, one a line. A local path that exists as it
            is written wins over its reading as a pattern.
        fields: Where in the shards the images, labels and names are, and what gives an image file its label.
        output: A folder that no input may lie in, whatever pattern, list or link leads there.

    Raises:
        UsageError: An input lies in `output`.
        FeaturemillError: An input matches nothing, can't be read, holds something unknown, or lacks a field.
    """
    by_input = [_candidates(given) for given in inputs]
    candidates: dict[str, _Candidate] = {}
    for candidate in (candidate for several in by_input for candidate in several):
        known = candidates.get(candidate.file.uri)
        if known is None:
            candidates[candidate.file.uri] = candidate
        else:
            roots = known.roots + tuple(root for root in candidate.roots if root not in known.roots)
            candidates[candidate.file.uri] = replace(known, roots=roots, hidden=known.hidden and candidate.hidden)
    # Before looking inside: that a part holds no images would be a strange thing to hear.
    _check_apart(candidates, output)
    tables = [c.file for uri, c in candidates.items() if fields.path and not c.hidden and _TABLE.search(uri)]
    for table in tables:
        del candidates[table.uri]
    tabled, columns = _read_tables(tables, fields)
    _check_apart(tabled, output)
    inside = _look(candidates.values(), fields)
    shards, images, skipped = [], [], []
    for uri, candidate in candidates.items():
        looked = inside.get(uri)
        if looked is not None and looked.shard is not None:
            shards.append(looked.shard)
        elif uri in tabled:
            continue
        elif looked.kind == "image" if looked is not None else is_picture(uri) and not candidate.hidden:
            images.append(candidate)
        else:
            skipped.append(SkippedFile(candidate.file, _why(candidate, looked)))
    _check_each(inputs, by_input, skipped)
    return Found(
        tuple(sorted(shards, key=lambda shard: shard.file.uri)),
        tuple(sorted((*_listed(images, fields.file_labels), *tabled.values()), key=lambda listed: listed.file.uri)),
        tuple(sorted(skipped, key=lambda each: each.file.uri)),
        columns,
    )


def _read_tables(tables: Sequence[FileInfo], fields: Fields) -> tuple[dict[str, ListedFile], dict[str, str]]:
    """Returns the image files that tables name, by URI, and the columns of the tables with their types.

    What is there is found by a listing of each folder, without a request for each image.
    """
    rows: dict[str, TableRow] = {}
    columns: dict[str, str] = {}
    for file in tables:
        base = file.uri.rpartition("/")[0]
        try:
            found, types = read_table(file, fields)
        except OSError as error:
            raise FeaturemillError(
                f"cannot read {clean(file.uri)}: {clean(one_line(error))}; check the path and its permissions"
            ) from error
        if not found:
            raise FeaturemillError(f"{clean(file.uri)} has no row, so it names no image; leave it out")
        columns = types | columns
        for row in found:
            uri = _literal(_plain_path(row.path), base)
            before = rows.setdefault(uri, row)
            if (before.label, before.kept) != (row.label, row.kept):
                raise FeaturemillError(
                    f"{clean(uri)} is in the tables twice, with other values ({clean(file.uri)} is the second); "
                    "leave one of the rows out"
                )
    there = storage.look_up(rows)
    listed = {u: ListedFile(there.get(u, FileInfo(u, 0, "")), row.label, kept=row.kept) for u, row in rows.items()}
    return listed, columns


def _listed(images: Sequence[_Candidate], rule: str) -> list[ListedFile]:
    """Returns image files with what their folders say."""
    # By folder: a million files lie in a few.
    at = [(candidate.file.uri.rpartition("/")[0], candidate.roots) for candidate in images]
    folders = set(at)
    stated = read_folders(rule, {Place(folder, root) for folder, roots in folders for root in roots})
    found = {
        (folder, roots): _first_stated([stated[Place(folder, root)] for root in roots]) for folder, roots in folders
    }
    listed = []
    for candidate, place in zip(images, at, strict=True):
        label = by_pattern(rule, candidate.file.uri) if rule.startswith(REGEX) else found[place].label
        listed.append(ListedFile(candidate.file, label, found[place].split))
    return listed


def _first_stated(several: Sequence[Stated]) -> Stated:
    # Of several labels the first counts, but any label is better than none, in whatever order inputs are given.
    first = next((each for each in several if each.label is not None), several[0])
    return Stated(first.label, next(filter(None, (each.split for each in (first, *several))), None))


def _check_apart(uris: Iterable[str], output: str | None) -> None:
    if output is None or not storage.is_local(output):
        return
    inside = os.path.realpath(output) + os.sep
    for folder in {os.path.dirname(uri) for uri in uris if storage.is_local(uri)}:
        if (os.path.realpath(folder) + os.sep).startswith(inside):
            raise UsageError(f"the input {clean(folder)} lies inside the output {clean(output)}; choose a folder apart")


def _look(candidates, fields: Fields) -> dict[str, Looked]:
    """Looks inside all that aren't clear by name: images are (a request for each would take hours)."""
    unclear, guessed = [], []
    for candidate in candidates:
        uri = candidate.file.uri
        if candidate.hidden or is_picture(uri):
            continue
        if candidate.named or named_format(uri):
            unclear.append(candidate)
        elif storage.is_local(uri) and may_be_anything(uri):
            guessed.append(candidate.file)
    inside = look_inside([candidate.file for candidate in unclear], fields)
    for candidate, looked in zip(unclear, inside, strict=True):
        if looked.error:
            # In a folder it lies beside the images, as other tools' metadata do.
            if candidate.named:
                raise looked.error
            continue
        # Also where it was only met in a folder: it is called like a shard, and passing over it would lose its images.
        if looked.kind == "unknown" and (candidate.named or named_format(candidate.file.uri) in FORMATS):
            raise FeaturemillError(f"unknown format: {clean(looked.file.uri)}: {looked.reason}")
    return {looked.file.uri: looked for looked in (*inside, *guess_inside(guessed, fields))}


def _why(candidate: _Candidate, looked: Looked | None) -> str:
    """Returns why a file that was met in a folder is passed over."""
    if candidate.hidden:
        return HIDDEN
    if looked is not None:
        return looked.reason
    if extension(candidate.file.uri) in _PACKED:
        return "it is packed; unpack it, or pack a tar or TFRecord with gzip"
    if not storage.is_local(candidate.file.uri) and may_be_anything(candidate.file.uri):
        return "its name says nothing, and a look inside costs a request: name it, by itself or by a pattern"
    return BY_NAME


def _check_each(inputs: Sequence[str], by_input: list[list[_Candidate]], skipped: Sequence[SkippedFile]) -> None:
    useless = {each.file.uri: each for each in skipped}
    for given, candidates in zip(inputs, by_input, strict=True):
        if all(candidate.file.uri in useless for candidate in candidates):
            met = [useless[candidate.file.uri] for candidate in candidates]
            endings = ", ".join(f"{count} {ending}" for ending, count in list(count_by_ending(met).items())[:5])
            such = next((each for each in met if each.reason != HIDDEN), None)
            raise FeaturemillError(
                f"no image or shard in {clean(given)}: looked at {len(candidates)} files for image extensions, "
                f"{', '.join(known.title for known in FORMATS.values())}"
                + (f", and met {endings}" if endings else "")
                + (f", such as {clean(such.file.uri)} ({clean(such.reason)})" if such else "")
                + "; check the path"
            )


def _candidates(given: str) -> list[_Candidate]:
    """Returns the files that one input leads to; of folders the hidden ones too."""
    try:
        if not given.startswith("@"):
            base = os.getcwd() if storage.is_local(given) else ""
            return _expand([given], base)
        path = storage.absolute(given[1:])
        base = path.rsplit("/", 1)[0]
        entries = _entries(storage.read_bytes(path), base)
        nested = next((entry for entry in entries if entry.startswith("@")), None)
        if nested:
            raise FeaturemillError(f"{clean(given)} names another list: {clean(nested)}; give both to the command")
        if not entries:
            raise FeaturemillError(f"{clean(given)} names no file; write one path a line")
        if _ROW.search(entries[0]) and storage.is_local(entries[0]) and not _exists(_literal(entries[0], base)):
            raise FeaturemillError(
                f"{clean(given)} is no list of paths: there is no {clean(entries[0])}; write one path a line and "
                "nothing behind it (labels from a file are joined later: featuremill train --labels FILE)"
            )
        return _expand(entries, base)
    except OSError as error:
        cause = clean(one_line(error))
        raise FeaturemillError(f"cannot read {clean(given)}: {cause}; check the path and its permissions") from error


def _entries(data: bytes, base: str) -> list[str]:
    """Returns what a list names; its paths are relative to `base`. Empty lines and comments are left out.

    It may be in UTF-8, or in UTF-16 or UTF-32, as Windows writes them. `find -print0` ends each path by a NUL.
    """
    encoding = marked_encoding(data)
    if encoding == "utf-8" and len(data) > 1 and not any(data[1:64:2]):
        encoding = "utf-16-le"
    text = data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")
    lines = text.split("\0") if "\0" in text else [line.strip() for line in text.splitlines()]
    return [_unquoted(line, base) for line in lines if line and (line[0] != "#" or _exists(_literal(line, base)))]


def _unquoted(line: str, base: str) -> str:
    quoted = len(line) > 2 and line[0] == line[-1] and line[0] in "'\""
    return line[1:-1] if quoted and not _exists(_literal(line, base)) else line


def _plain_path(entry: str) -> str:
    """Returns a local path for a `file://` URI, anything else as it is."""
    path = _FILE_URI.sub("", entry, count=1)
    return entry if path == entry else unquote(path)


def _expand(entries: Sequence[str], base: str) -> list[_Candidate]:
    """Returns the files behind paths and patterns, which are relative to the folder `base`."""
    if any("\0" in entry for entry in entries):
        raise FeaturemillError("a path with a NUL in it can't be; check the list that names it")
    paths = [path for entry in map(_plain_path, entries) for path in _braces(entry, base)]
    if len(paths) == 1 or storage.is_local(paths[0]):
        several = [_resolve(path, base) for path in paths]
    else:
        # Object stores answer slowly, but many at once.
        several = list(ahead(lambda path: _resolve(path, base), paths, threads=_THREADS))
    return [candidate for some in several for candidate in some]


def _braces(entry: str, base: str) -> list[str]:
    if "{" not in entry or _exists(_literal(entry, base)):
        return [entry]
    try:
        return bracex.expand(entry, limit=_MAX_BRACES)
    except bracex.ExpansionLimitException as error:
        raise FeaturemillError(f"{entry} stands for over {_MAX_BRACES} paths; use a glob such as *") from error


def _literal(path: str, base: str) -> str:
    path = os.path.expanduser(path) if storage.is_local(path) else path
    return storage.absolute(path if path.startswith("/") or not storage.is_local(path) else storage.join(base, path))


def _exists(uri: str) -> bool:
    return storage.is_local(uri) and (storage.stat(uri) is not None or storage.is_folder(uri))


def _resolve(path: str, base: str) -> list[_Candidate]:
    """Returns the files behind a path or glob; what exists as it is written wins."""
    literal = _literal(path, base)
    is_glob = _GLOB.search(path) is not None
    if storage.is_local(literal) or not is_glob:
        info = storage.stat(literal)
        if info is not None:
            return [_Candidate(info, (None,))]
        found = [] if storage.is_local(literal) and not os.path.isdir(literal) else _walk(literal)
        if found or storage.is_folder(literal):
            return found
    if not is_glob:
        raise _missing(path, literal, base)
    # Only what the user wrote is a pattern, not the folder that it is relative to.
    relative = storage.is_local(path) and not path.startswith(("/", "~"))
    pattern = storage.join(glob.escape(base), path) if relative else literal
    infos = [replace(info, uri=storage.absolute(info.uri)) for info in storage.match(pattern)]
    named = [_Candidate(info, (None,)) for info in infos if not is_hidden(base_name(info.uri))]
    if storage.is_local(pattern) and "**" not in pattern:
        # Folders too, as when a shell expands the pattern.
        folders = sorted(path for path in glob.iglob(pattern) if os.path.isdir(path))
        named += [candidate for folder in folders for candidate in _walk(storage.absolute(folder))]
    if not named:
        raise FeaturemillError(f"no match for {clean(path)}: no file has such a name (looked for {clean(pattern)})")
    return named


def _walk(folder: str) -> list[_Candidate]:
    root = (folder.rstrip("/"),)
    return [
        _Candidate(info, root, hidden=is_hidden(info.uri.removeprefix(folder).lstrip("/")))
        for info in storage.walk(folder)
    ]


def _missing(path: str, literal: str, base: str) -> FeaturemillError:
    folder, _, name = literal.rpartition("/")
    near = difflib.get_close_matches(name, os.listdir(folder), n=1) if os.path.isdir(folder) else []
    hint = f"; did you mean {clean(near[0])}?" if near else "; check the path"
    if base != os.getcwd() and _exists(_literal(path, os.getcwd())):
        hint = f"; paths in a list are relative to its folder, {clean(base)}: write them from there, or absolute"
    elif any("\ud800" <= letter <= "\udfff" for letter in path):
        hint += "; if it comes from a list that isn't in UTF-8, save that as UTF-8"
    return FeaturemillError(f"no match for {clean(path)}: there is no {clean(literal)}{hint}")
