"""Elsewhere: inputs and outputs on a store in memory, as far as that shows anything; names of runners."""

import pytest

from pipeline.extraction import run as extraction
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import beam_settings, run
from pipeline.extraction.summary import Summary
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.drop import drop_feature
from pipeline.runners import watch
from tests.distributed.test_dataflow import COMMON
from tests.pipeline.extraction import test_run as te
from tests.support import memory_store
from tests.support.factories import draw_items, write_tar
from tests.support.fakes import WEIGHTS, load_fake
from transforms.errors import UsageError
from transforms.store.features import open_features

OUT = "mem://bucket/out"


@pytest.fixture
def store(tmp_path):
    memory_store.OBJECTS.clear()
    memory_store.REQUESTS.clear()
    for number in range(3):
        write_tar(tmp_path / "x.tar", draw_items(per_class=8, size=48, seed=number))
        memory_store.OBJECTS[f"mem://bucket/in/{number}.tar"] = (tmp_path / "x.tar").read_bytes(), 1
    return memory_store


def vectors(output: str) -> dict:
    """{shard's name and member: all but the source}."""
    return {key.rsplit("/", 1)[1]: row[:1] + row[2:] for key, row in te.rows(output).items()}


def test_the_same_rows_as_on_disk(store, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(store.OBJECTS[f"mem://bucket/in/{number}.tar"][0])
    te.extract(tmp_path / "[0-9].tar", tmp_path / "out", unit_bytes=4000)
    summary = te.extract("mem://bucket/in/*.tar", OUT, unit_bytes=4000)
    assert summary.totals.rows_read == 96
    assert vectors(OUT) == vectors(str(tmp_path / "out"))
    assert not [name for name in store.OBJECTS if "/_tmp/" in name]


def test_again_retry_prune_and_overwrite(store):
    assert te.extract("mem://bucket/in", OUT).totals.rows_read == 96
    assert te.extract("mem://bucket/in", OUT).this_run.units == 0
    assert te.extract("mem://bucket/in", OUT, retry_failed=True).this_run.units == 3
    del store.OBJECTS["mem://bucket/in/1.tar"]
    assert te.extract("mem://bucket/in", OUT, prune=True).totals.rows_read == 64
    assert te.extract("mem://bucket/in", OUT, overwrite=True).this_run.units == 2
    assert open_features(OUT).rows == 56


def test_no_request_per_image(store):
    te.extract("mem://bucket/in", OUT)
    assert sum(store.REQUESTS.values()) < 96


def test_names_that_look_like_patterns(store):
    data = store.OBJECTS["mem://bucket/in/0.tar"]
    store.OBJECTS["mem://bucket/in/cats [2019]/x.tar"] = data
    for output in ("mem://bucket/out[1]", "mem://bucket/out?", "mem://bucket/outA"):
        assert te.extract("mem://bucket/in", output).totals.rows_read == 128
    # What isn't named this time is still there, so nothing of it is pruned.
    again = te.extract("mem://bucket/in/0.tar", "mem://bucket/out[1]", prune=True)
    assert (again.this_run.units, again.totals.rows_read) == (0, 128)
    te.extract("mem://bucket/in/0.tar", "mem://bucket/out?", overwrite=True)
    assert open_features("mem://bucket/outA").rows == 4 * 28


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("dataflow", "DataflowRunner"),
        ("DATAFLOWRUNNER", "DataflowRunner"),
        ("apache_beam.runners.dataflow.dataflow_runner.DataflowRunner", "DataflowRunner"),
        ("fnapirunner", "FnApiRunner"),
        ("Flink", "FlinkRunner"),
        ("somebody.elses.DataflowRunner", "somebody.elses.DataflowRunner"),
        ("Nonsense", "Nonsense"),
    ],
)
def test_a_runner_by_any_of_its_names(given, meant):
    assert te.options("x.tar", "out", runner=given).runner == meant


def test_every_runner_of_beams_is_known_in_any_case():
    from apache_beam.options.pipeline_options import StandardOptions

    for name in StandardOptions.KNOWN_RUNNER_NAMES:
        assert te.options("x.tar", "out", runner=name.lower().removesuffix("runner")).runner == name


def test_dataflow_by_another_name_gets_the_same_message():
    with pytest.raises(UsageError, match=r"Dataflow's workers can't reach /data/x\.tar"):
        beam_settings(te.options("/data/x.tar", "gs://bucket/out", runner="dataflow"))
    given = te.options("x.tar", "out", runner="fnapi", workers=2)
    assert given.engine_name != "auto"
    assert type(beam_settings(given)["runner"]).__name__ == "FnApiRunner"


@pytest.mark.parametrize("args", [("--s3_secret_key=TOPSECRET",), ("--s3_secret_key", "TOPSECRET")])
def test_a_misspelt_option_does_not_tell_its_value(args):
    with pytest.raises(
        UsageError, match=r"no option '--s3_secret_key'; did you mean .*--s3_secret_access_key"
    ) as raised:
        beam_settings(te.options("x.tar", "out", beam_args=args))
    assert "TOPSECRET" not in str(raised.value)


def test_a_template_is_dataflows(store):
    template = ("--template_location=gs://bucket/template",)
    with pytest.raises(
        UsageError, match=r"--template_location is DataflowRunner's, and FnApiRunner runs .*leave it out"
    ):
        te.extract("mem://bucket/in", OUT, beam_args=template)
    assert not [name for name in store.OBJECTS if name.startswith(OUT)]


def add(inputs: str, output: str, **more) -> Summary | None:
    """Adds a feature to an OUT, by the fake engine."""
    asked = te.options(inputs, output, add_feature="deep=block2_pool:avg", **more)
    asked = resumed(asked, ["image_size", "batch_size", *more])
    return run(asked, load=load_fake, weights=WEIGHTS)


def test_a_feature_is_added_there_as_on_disk(store, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(store.OBJECTS[f"mem://bucket/in/{number}.tar"][0])
    for inputs, output in ((str(tmp_path / "[0-9].tar"), str(tmp_path / "out")), ("mem://bucket/in/*.tar", OUT)):
        te.extract(inputs, output, unit_bytes=4000)
        before = set(store.OBJECTS)
        # Of a merged part each worker reads the rows of its own units.
        compact(CompactOptions(output, target_bytes=30_000))
        assert add(inputs, output).totals.rows_embedded == 84
    assert len(vectors(OUT)) == 84
    assert vectors(OUT) == vectors(str(tmp_path / "out"))
    assert not [name for name in store.OBJECTS if "/_tmp/" in name]
    assert [name for name in set(store.OBJECTS) - before if "/out/features-deep/features/" in name]
    drop_feature(OUT, "deep")
    assert not [name for name in store.OBJECTS if "deep" in name]
    assert open_features(OUT).names == ("embedding",)


def test_dataflow_gets_the_same_job_for_an_added_feature(store, monkeypatch):
    te.extract("mem://bucket/in/*.tar", OUT)
    pipelines, jobs, build = [], [], extraction.build
    monkeypatch.setattr(extraction, "build", lambda *args, **more: jobs.append(args[2]) or build(*args, **more))
    monkeypatch.setattr(watch, "run_watched", lambda pipeline, tick: pipelines.append(pipeline))
    args = (*COMMON, "--template_location=gs://bucket/job.json")
    assert add("mem://bucket/in/*.tar", OUT, runner="DataflowRunner", beam_args=args) is None
    [job], [pipeline] = jobs, pipelines
    # What its workers read of OUT is at a place that they reach.
    assert (job.output, job.beside) == (f"{OUT}/features-deep", OUT)
    steps = {node.unique_name for node in pipeline.to_runner_api().components.transforms.values()}
    assert {"Chunks", "Units", "ExtractUnits"} <= steps
    assert "deep" in open_features(OUT).lacking
    # The job ran elsewhere; the same command writes the totals.
    monkeypatch.undo()
    assert add("mem://bucket/in/*.tar", OUT).totals.rows_embedded == 84
    assert open_features(OUT).lacking == {}
