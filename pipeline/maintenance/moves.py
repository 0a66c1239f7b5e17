"""The places that inputs moved to, as a command names them."""

from collections.abc import Sequence
from dataclasses import dataclass

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.store.manifest import Manifest
from transforms.text import clean


@dataclass(frozen=True)
class Moves:
    """Old and new places, none with a slash at its end."""

    pairs: tuple[tuple[str, str], ...]

    def __call__(self, place: str) -> str:
        """Returns where a place is now: that of the longest old one that it is, or lies in."""
        fitting = [pair for pair in self.pairs if lies_in(place, pair[0])]
        if not fitting:
            return place
        old, new = max(fitting, key=lambda pair: len(pair[0]))
        return new + place[len(old) :]

    def cleaned(self) -> "Moves":
        """Returns the moves of places as rows have them."""
        return Moves(tuple((clean(old), clean(new)) for old, new in self.pairs))


def lies_in(place: str, folder: str) -> bool:
    """Returns whether a place is a folder or file, or lies in it."""
    return place == folder or place.startswith(f"{folder}/")


def _readings(move: str) -> list[tuple[str, str]]:
    """Returns all (old, new) that `OLD=NEW` can mean: a name may hold such a sign itself.

    Raises:
        UsageError: None.
    """
    signs = [i for i, letter in enumerate(move) if letter == "="]
    found = [(move[:i], move[i + 1 :]) for i in signs if move[:i].rstrip("/") and move[i + 1 :].rstrip("/")]
    if not found:
        raise UsageError(f"{clean(move)} is no move; write OLD=NEW, such as /old/photos=/new/photos")
    return [(storage.absolute(old), storage.absolute(new)) for old, new in found]


def understood(moves: Sequence[str], places: set[str]) -> Moves:
    """Returns the moves that a command names, each in the one way in which something of these places moves.

    Raises:
        UsageError: One can't be a move, or can be read in several ways.
        FeaturemillError: Nothing lies in its old place.
    """
    pairs = []
    for move in moves:
        fitting = [(old, new) for old, new in _readings(move) if any(lies_in(place, old) for place in places)]
        if not fitting:
            raise FeaturemillError(
                f"no input of this OUT lies in {clean(_readings(move)[0][0])}; its inputs are such as "
                f"{clean(min(places, default='none'))}"
            )
        if any(old == new for old, new in fitting):
            raise UsageError(f"{clean(move)} is no move; both places are the same")
        if len(fitting) > 1:
            raise UsageError(f"{clean(move)} can be read in two ways; name a folder above or below, without a =")
        pairs += fitting
    return Moves(tuple(pairs))


def continued(manifest: Manifest, moves: Sequence[str]) -> Moves:
    """Returns the moves of a relocation that was cut off; raises FeaturemillError if the command names others."""
    begun = manifest.relocation.moves
    if len(begun) != len(moves) or not all(any(pair in _readings(move) for move in moves) for pair in begun):
        raise FeaturemillError(f"another relocation was cut off; finish it first: {manifest.cure}")
    return Moves(begun)
