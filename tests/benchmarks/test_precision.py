"""The benchmark of accuracy runs on any machine, tiny, with a row for each engine that is there."""

import pytest

from benchmarks import precision
from benchmarks.gpu import photo


@pytest.mark.long
def test_tiny_on_this_machine(tmp_path, monkeypatch, capsys):
    for seed in range(12):
        path = tmp_path / f"class{seed % 2}" / f"{seed:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo(seed, (48, 32)))
    # `main` names another.
    monkeypatch.setenv("FEATUREMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "SIDE", 32)
    monkeypatch.setattr("sys.argv", ["precision", "--photos", str(tmp_path), "--images", "12"])
    precision.main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("12 of 12 photos, vgg19, `block5_pool`")
    assert [line for line in lines if line.startswith("**")] == [
        "**He-initialised weights**",
        "**heavy-tailed weights**",
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    for name in ("keras float32", "ncnn float32", "float16 storage"):
        found = [row for row in rows if row[0] == name]
        assert len(found) == 2, rows
        # The largest difference of a vector; float16 has ten bits.
        assert all(float(row[3]) < 1e-3 for row in found), found
    [name, *same] = next(row for row in rows if row[0] == "keras float32")
    assert (float(same[2]), same[4]) == (0.0, "100.0%")
