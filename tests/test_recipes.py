"""The README's way from images to a head to a prediction, on real photos, with weights that can be had here."""

import json
import re
import shlex

import pyarrow.parquet as pq
import pytest

from pipeline.cli.app import run_cli
from tests.support.factories import shared_data
from tests.test_docs import README

# The three commands that README shows first of all.
COMMANDS = re.search(r"^## Three commands\n.+?```console\n(.+?)```", README, re.S | re.M)[1].splitlines()


@pytest.mark.long
def test_three_commands_on_photos(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").symlink_to(shared_data() / "hymenoptera")
    monkeypatch.chdir(tmp_path)
    assert [shlex.split(line)[2] for line in COMMANDS] == ["extract", "train", "predict"]
    for line in COMMANDS:
        _, _, name, *args = shlex.split(line)
        # The published weights can't be had here; small images, because the network isn't what is tested.
        more = ["--weights", "random:0", "--image-size", "64"] if name == "extract" else []
        assert run_cli([name, *args, *more, "--json", "--quiet"]) == 0
    predicted = json.loads(capsys.readouterr().out.split("\n}\n")[-2] + "\n}")
    rows = pq.read_table(tmp_path / "predictions/predictions").to_pylist()
    failures = (
        pq.read_table(tmp_path / "predictions/failures").num_rows if (tmp_path / "predictions/failures").exists() else 0
    )
    assert len(rows) + failures == 70
    assert {row["true_label"] for row in rows} == {"ants", "bees"}
    assert {row["label"] for row in rows} == {"ants", "bees"}
    agree = sum(row["agrees"] for row in rows) / len(rows)
    # Even random convolutions tell ants from bees better than a coin.
    assert agree > 0.55
    assert predicted
