"""A checkpoint comes back bit for bit, for the same training alone; mirrored rows follow from seed and row number."""

import numpy as np
import pytest

from transforms.end_to_end.checkpoint import read_checkpoint, write_checkpoint
from transforms.end_to_end.inputs import mirrored
from transforms.end_to_end.tuning import Checkpoint, Tuning
from transforms.errors import FeaturemillError

ASKED = {"--learning-rate": 1e-5, "--mirror": False, "head": "ab"}


def checkpoint():
    random = np.random.default_rng(0)
    state = [random.random((3, 2), np.float32), np.array(7, np.int64), np.array([1, 2], np.uint32)]
    epochs = ({"epoch": 1, "loss": 0.1, "validation_loss": 1 / 3}, {"epoch": 2, "loss": 0.2, "validation_loss": 0.5})
    return Checkpoint(Tuning(epochs, 0.7, float("inf"), 1), state[:1], state)


def test_it_comes_back_as_it_was(tmp_path):
    path, kept = str(tmp_path / "new.checkpoint"), checkpoint()
    write_checkpoint(path, kept, {})
    write_checkpoint(path, kept, ASKED)
    found = read_checkpoint(path, ASKED)
    assert found.tuning == kept.tuning
    for ours, theirs in ((kept.best, found.best), (kept.network, found.network)):
        assert [(a.dtype, a.shape, a.tobytes()) for a in ours] == [(a.dtype, a.shape, a.tobytes()) for a in theirs]
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.checkpoint"]


def test_of_another_training_it_is_refused(tmp_path):
    path = str(tmp_path / "new.checkpoint")
    write_checkpoint(path, checkpoint(), ASKED)
    with pytest.raises(FeaturemillError) as caught:
        read_checkpoint(path, {**ASKED, "--mirror": True, "head": "cd"})
    assert "(it | now): --mirror False | True; head ab | cd; go on" in str(caught.value)


@pytest.mark.parametrize("where", [0, 30, 200, -5, None])
def test_a_damaged_one_is_refused(tmp_path, where):
    path = tmp_path / "new.checkpoint"
    write_checkpoint(str(path), checkpoint(), ASKED)
    data = bytearray(path.read_bytes())
    if where is None:
        data += b"x"
    else:
        data[where] ^= 1
    for spoiled in (data, data[: len(data) // 2], b"", b"[]\n", b'{"schema_version": 9}\n'):
        path.write_bytes(spoiled)
        with pytest.raises(FeaturemillError, match="begin anew with --overwrite") as caught:
            read_checkpoint(str(path), ASKED)
        assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    path, kept = str(tmp_path / "new.checkpoint"), checkpoint()
    write_checkpoint(path, kept, ASKED)

    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(FeaturemillError, match=r"No space left on device.*--resume"):
        write_checkpoint(path, kept, {})
    monkeypatch.undo()
    assert read_checkpoint(path, ASKED).tuning == kept.tuning
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.checkpoint"]


def test_half_of_the_images_are_mirrored_whatever_their_order():
    images = np.random.default_rng(0).integers(0, 256, (400, 2, 3, 3), np.uint8)

    def found(order, seed):
        pieces = ((some, images[some]) for some in np.array_split(np.array(order), 7))
        numbers, made = zip(*mirrored(pieces, 400, seed=seed), strict=True)
        return np.concatenate(made)[np.argsort(np.concatenate(numbers))]

    first, other = found(range(400), 1), found(range(400), 2)
    np.testing.assert_array_equal(first, found(np.random.default_rng(1).permutation(400), 1))
    flipped = (first == images[:, :, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(first[~flipped], images[~flipped])
    assert 160 < flipped.sum() < 240
    assert (first != other).any()
