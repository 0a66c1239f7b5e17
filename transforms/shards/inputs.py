"""Finds the shards and image files that the user names: folders, globs, braces, lists."""

import difflib
import glob
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import bracex

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.labels.folders import REGEX, Place, by_pattern, read_folders
from transforms.records import FileInfo, ListedFile, Shard
from transforms.shards.detect import FORMATS, Looked, look_inside, named_format
from transforms.shards.fields import Fields
from transforms.shards.names import base_name, is_hidden, is_image
from transforms.text import clean, one_line

_GLOB = re.compile(r"[*?\[]")
_MAX_BRACES = 1_000_000
_THREADS = 16


@dataclass(frozen=True)
class Found:
    """The shards and files that were found.

    Attributes:
        shards: Sorted by URI, each once.
        files: Image files that aren't in a shard, sorted by URI, each once.
        skipped: URIs of files in folders that are neither; hidden files aren't mentioned.
    """

    shards: tuple[Shard, ...]
    files: tuple[ListedFile, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A file that an input led to.

    Attributes:
        file: The file.
        roots: The folders in which it was met, as they were given; None stands for an input that named it, by itself or
            by a pattern.
    """

    file: FileInfo
    roots: tuple[str | None, ...]

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
        elif not set(candidate.roots) <= set(known.roots):
            candidates[candidate.file.uri] = replace(known, roots=known.roots + candidate.roots)
    # Before looking inside: that a part holds no images would be a strange thing to hear.
    _check_apart(candidates, output)
    inside = _look(candidates.values(), fields)
    shards, images, skipped = [], [], []
    for uri, candidate in candidates.items():
        looked = inside.get(uri)
        if looked is not None and looked.shard is not None:
            shards.append(looked.shard)
        elif looked.kind == "image" if looked is not None else is_image(uri):
            images.append(candidate)
        else:
            skipped.append(uri)
    _check_each(inputs, by_input, skipped)
    return Found(
        tuple(sorted(shards, key=lambda shard: shard.file.uri)),
        tuple(sorted(_listed(images, fields.file_labels), key=lambda listed: listed.file.uri)),
        tuple(sorted(skipped)),
    )


def _listed(images: Sequence[_Candidate], rule: str) -> list[ListedFile]:
    """Returns image files with what their folders say."""
    at = [(candidate, candidate.file.uri.rpartition("/")[0]) for candidate in images]
    said = read_folders(rule, {Place(folder, root) for candidate, folder in at for root in candidate.roots})
    listed = []
    for candidate, folder in at:
        # Of several labels the first counts, but any label is better than none, in whatever order inputs are given.
        some = [said[Place(folder, root)] for root in candidate.roots]
        found = next((each for each in some if each.label is not None), some[0])
        split = next(filter(None, (each.split for each in (found, *some))), None)
        label = by_pattern(rule, candidate.file.uri) if rule.startswith(REGEX) else found.label
        listed.append(ListedFile(candidate.file, label, split))
    return listed


def _check_apart(uris: Iterable[str], output: str | None) -> None:
    if output is None or not storage.is_local(output):
        return
    inside = os.path.realpath(output) + os.sep
    for folder in {os.path.dirname(uri) for uri in uris if storage.is_local(uri)}:
        if (os.path.realpath(folder) + os.sep).startswith(inside):
            raise UsageError(f"the input {clean(folder)} lies inside the output {clean(output)}; choose a folder apart")


def _look(candidates, fields: Fields) -> dict[str, Looked]:
    """Looks inside all that aren't clear by name: images are (a request for each would take hours)."""
    unclear = [
        candidate
        for candidate in candidates
        if not is_image(candidate.file.uri) and (candidate.named or named_format(candidate.file.uri))
    ]
    inside = look_inside([candidate.file for candidate in unclear], fields)
    for candidate, looked in zip(unclear, inside, strict=True):
        # Also where it was only met in a folder: it is called like a shard, and passing over it would lose its images.
        if looked.kind == "unknown" and (candidate.named or named_format(candidate.file.uri) in FORMATS):
            raise FeaturemillError(f"unknown format: {clean(looked.file.uri)}: {looked.reason}")
    return {looked.file.uri: looked for looked in inside}


def _check_each(inputs: Sequence[str], by_input: list[list[_Candidate]], skipped: list[str]) -> None:
    useless = set(skipped)
    for given, candidates in zip(inputs, by_input, strict=True):
        if all(candidate.file.uri in useless for candidate in candidates):
            raise FeaturemillError(
                f"no image or shard in {clean(given)}: looked at {len(candidates)} files for image extensions, "
                f"{', '.join(known.title for known in FORMATS.values())}; check the path"
            )


def _candidates(given: str) -> list[_Candidate]:
    """Returns the files that one input leads to, hidden ones left out."""
    try:
        if not given.startswith("@"):
            base = os.getcwd() if storage.is_local(given) else ""
            return _expand([given], base)
        path = storage.absolute(given[1:])
        text = storage.read_bytes(path).decode("utf-8-sig", "surrogateescape")
        lines = [line.strip() for line in text.splitlines()]
        entries = [line for line in lines if line and not line.startswith("#")]
        nested = next((entry for entry in entries if entry.startswith("@")), None)
        if nested:
            raise FeaturemillError(f"{clean(given)} names another list: {clean(nested)}; give both to the command")
        if not entries:
            raise FeaturemillError(f"{clean(given)} names no file; write one path a line")
        return _expand(entries, path.rsplit("/", 1)[0])
    except OSError as error:
        cause = clean(one_line(error))
        raise FeaturemillError(f"cannot read {clean(given)}: {cause}; check the path and its permissions") from error


def _expand(entries: Sequence[str], base: str) -> list[_Candidate]:
    """Returns the files behind paths and patterns, which are relative to the folder `base`."""
    paths = [path for entry in entries for path in _braces(entry, base)]
    if len(paths) == 1 or storage.is_local(paths[0]):
        several = [_resolve(path, base) for path in paths]
    else:
        # Object stores answer slowly, but many at once.
        with ThreadPoolExecutor(_THREADS) as pool:
            several = list(pool.map(lambda path: _resolve(path, base), paths))
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
        raise _missing(path, literal)
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
    infos = storage.walk(folder)
    return [_Candidate(info, root) for info in infos if not is_hidden(info.uri.removeprefix(folder).lstrip("/"))]


def _missing(path: str, literal: str) -> FeaturemillError:
    folder, _, name = literal.rpartition("/")
    near = difflib.get_close_matches(name, os.listdir(folder), n=1) if os.path.isdir(folder) else []
    hint = f"; did you mean {clean(near[0])}?" if near else "; check the path"
    return FeaturemillError(f"no match for {clean(path)}: there is no {clean(literal)}{hint}")
