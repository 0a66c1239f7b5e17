"""Dataflow without Dataflow: the job that the real command line would submit, and the image that it would run in."""

import io
import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipeline.cli import app
from pipeline.extraction.options import ExtractOptions
from pipeline.runners.dataflow import check_places, dataflow_args, has_gpu, is_template
from tests import ROOT
from tests.distributed import test_stores as ts
from tests.distributed.stores import Gcs
from tests.support.fakes import WEIGHTS, load_fake
from transforms.errors import UsageError
from transforms.records import FileInfo, Shard
from transforms.shards import Found

IMAGE = "europe-docker.pkg.dev/my-project/ml/featuremill:1"
NEEDED = ("--project=my-project", "--region=europe-west4", "--temp_location=gs://bucket/tmp")
COMMON = (*NEEDED, f"--sdk_container_image={IMAGE}")
GPU = "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"
TEMPLATE = "gs://bucket/templates/job.json"
# Dataflow's own limit for a job's description, and ours: what grows with the units shows.
JOB_BYTES, OUR_BYTES = 20 << 20, 100_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("google.cloud.dataflow_v1beta3", reason="pip install 'featuremill[distributed]'")
    try:
        server = Gcs(tmp_path_factory.mktemp("server"))
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no server for gs:// ({error})")
    yield server
    server.stop()


@pytest.fixture
def store(server, monkeypatch):
    server.clear()
    for name, value in server.direct_env.items():
        monkeypatch.setenv(name, value)
    return server


def job(store, monkeypatch, *beam_args: str, found: Found | None = None, graph: list | None = None) -> dict:
    """Runs the real command line up to where the job's description is written down, and returns that."""
    from pipeline.extraction import run as extract

    real, build = extract.run, extract.build

    def built(*args, **more):
        if graph is not None:
            graph.append(args)
        return build(*args, **more)

    monkeypatch.setattr(extract, "run", lambda options, **more: real(options, load=load_fake, weights=WEIGHTS, **more))
    monkeypatch.setattr(extract, "build", built)
    if found:
        monkeypatch.setattr(extract.shards, "find", lambda *_, **__: found)
    args = ["extract", *ts.from_to(store), "--runner", "DataflowRunner", "--", *COMMON, *beam_args]
    assert app.run_cli([*args, "--no_auth", f"--template_location={TEMPLATE}"]) == 0
    return json.loads(store.objects()[TEMPLATE.removeprefix("gs://bucket/")])


def pool(described: dict) -> dict:
    [workers] = described["environment"]["workerPools"]
    return workers


def test_cpu_workers(store, monkeypatch, tmp_path):
    ts.fill(store, tmp_path, shards=2)
    graph = []
    described = job(store, monkeypatch, "--machine_type=n2-standard-8", "--max_num_workers=20", graph=graph)
    workers = pool(described)
    assert workers["machineType"] == "n2-standard-8"
    assert workers["autoscalingSettings"]["maxNumWorkers"] == 20
    assert workers["workerHarnessContainerImage"] == IMAGE
    [image] = workers["sdkHarnessContainerImages"]
    assert image["containerImage"] == IMAGE
    # A process for each vCPU, each with one thread of the harness and an engine of one thread.
    assert image["useSingleCorePerContainer"] is True
    assert workers["numThreadsPerWorker"] == 1
    [(_, _, sent)] = graph
    assert sent.threads == 1
    assert sent.engine == "auto"
    assert "use_runner_v2" in described["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" not in described["environment"]["experiments"]


def test_gpu_workers(store, monkeypatch, tmp_path):
    ts.fill(store, tmp_path, shards=2)
    graph = []
    described = job(store, monkeypatch, "--machine_type=g2-standard-8", GPU, graph=graph)
    environment = described["environment"]
    assert GPU.split("=", 1)[1] in environment["serviceOptions"]
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert pool(described)["numThreadsPerWorker"] == 1
    [(_, _, sent)] = graph
    assert sent.threads is None


def test_nothing_of_the_launcher_travels(store, monkeypatch, tmp_path):
    ts.fill(store, tmp_path, shards=2)
    described = job(store, monkeypatch)
    assert not pool(described).get("packages")
    assert described["environment"]["sdkPipelineOptions"]["options"]["save_main_session"] is False
    assert not [name for name in store.objects() if "main_session" in name]


def test_a_hundred_thousand_shards(store, monkeypatch):
    shards = tuple(
        Shard(FileInfo(f"gs://bucket/in/train-{i:06}-of-100000.tar", 100 << 20, "1.0"), "tar") for i in range(100_000)
    )
    described = job(store, monkeypatch, found=Found(shards, (), ()))
    staged = {name: len(data) for name, data in store.objects().items() if name.startswith("tmp/")}
    size = len(json.dumps(described)) + sum(staged.values())
    print(f"\n{size} bytes for the job and its graph")
    assert size < OUR_BYTES < JOB_BYTES
    # The units are where the workers will read them, and stay there, as the job has yet to run.
    [todo] = [name for name in store.objects() if name.startswith("out/_tmp/todo.")]
    assert pq.ParquetFile(io.BytesIO(store.objects()[todo])).metadata.num_rows == 100_000


def test_totals_of_a_job_that_ran_elsewhere(store, monkeypatch, tmp_path):
    """The job is written down, somebody runs it (here: a local run), and the same command writes the totals."""
    ts.fill(store, tmp_path)
    job(store, monkeypatch)
    assert b'"running"' in store.objects()["out/manifest.json"]
    done = ts.extract(store, *ts.from_to(store), "--image-size", "224")
    assert done.returncode == 0, done.stderr
    assert b'"complete"' in store.objects()["out/manifest.json"]
    assert not [name for name in store.objects() if "/_tmp/" in name]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (COMMON[1:], "--project"),
        (NEEDED, "--sdk_container_image"),
        ((*COMMON[:2], COMMON[3]), "--temp_location"),
    ],
)
def test_what_is_missing_is_reported_at_once(args, what, capsys):
    given = [
        "extract",
        "gs://bucket/in/*.tar",
        "--output",
        "gs://bucket/out",
        "--runner",
        "DataflowRunner",
        "--",
        *args,
    ]
    assert app.run_cli(given) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert what in line
    assert "after --" in line


@pytest.mark.parametrize("option", ["--s3_secret_access_key=x", "--s3_access_key_id=x", "--s3_session_token=x"])
def test_keys_are_refused_where_a_runner_would_show_them(option, capsys):
    assert app.run_cli(["extract", "s3://bucket/in", "--output", "s3://bucket/out", "--", option]) == 2
    assert "environment" in capsys.readouterr().err


def test_local_files_are_refused_at_once(capsys):
    given = ["extract", "photos", "--output", "gs://bucket/out", "--runner", "DataflowRunner", "--", *COMMON]
    assert app.run_cli(given) == 2
    assert "can't reach photos" in capsys.readouterr().err


def test_what_the_user_says_wins():
    args = dataflow_args([*COMMON, "--number_of_worker_harness_threads=3", "--save_main_session"])
    assert not [arg for arg in args if arg.endswith(("threads=1", "no_save_main_session"))]
    args = dataflow_args([*COMMON, GPU, "--experiments", "use_multiple_sdk_containers"])
    assert "--experiments=no_use_multiple_sdk_containers" not in args
    # setup.py, as `--setup_file`, instead of an image.
    assert dataflow_args([*NEEDED, "--setup_file=./setup.py"])


@pytest.mark.parametrize(
    "args",
    [
        ["--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1"],
        ["--dataflow_service_options", "worker_accelerator=type:nvidia-l4;count:1"],
        ["--resource_hints=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"],
    ],
)
def test_a_gpu_is_recognised_however_it_is_asked_for(args):
    assert has_gpu(args)
    assert not has_gpu(["--dataflow_service_options=enable_prime"])
    options = ExtractOptions(inputs=("gs://b/x.tar",), output="gs://b/out", runner="DataflowRunner", beam_args=(*args,))
    assert options.engine_threads is None


def test_local_places_are_refused():
    check_places(["gs://bucket/in", "@gs://bucket/list.txt"])
    for place in ("photos", "@list.txt", "/data/out"):
        with pytest.raises(UsageError, match="can't reach"):
            check_places([place])


def test_templates_are_recognised():
    assert is_template([*COMMON, "--template_location", TEMPLATE])
    assert not is_template(COMMON)


# The image and the Flex Template, as far as they can be checked without building them.


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text()))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_that_of_the_beam_that_is_tested():
    beam = re.search(r"(?m)^apache-beam==(\S+)$", (ROOT / "constraints.txt").read_text()).group(1)
    arguments = dict(a.split("=", 1) for name, a in instructions() if name == "ARG" and "=" in a)
    assert arguments["BEAM"] == beam
    bases = [arguments_of.split() for name, arguments_of in instructions() if name == "FROM"]
    stages = {base[-1] for base in bases if "AS" in base}
    assert {"wheels", "worker"} < stages
    for image, *_ in bases:
        assert image in stages or (":" in image and not image.endswith(":latest")), f"{image} isn't pinned"
    assert any("_sdk:${BEAM}" in image for image, *_ in bases)


def test_what_the_image_copies_is_there_and_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    # All is left out, and what is needed is named, so that no data and no secret gets in.
    assert ignored[0] == "*"
    sent = [line[1:] for line in ignored if line.startswith("!")]
    stages = {a.split()[-1] for name, a in instructions() if name == "FROM" and " AS " in a}
    for name, arguments in instructions():
        words = [word for word in arguments.split() if not word.startswith("--")]
        source = re.search(r"--from=(\S+)", arguments)
        if name != "COPY" or source:
            assert not source or source.group(1) in stages or ":" in source.group(1)
            continue
        for word in words[:-1]:
            assert (ROOT / word.rstrip("*")).exists() or "*" in word
            assert [path for path in sent if word == path or word.startswith(path)], f"{word} isn't sent to the builder"


def test_the_image_checks_itself():
    text = (ROOT / "Dockerfile").read_text()
    assert "pip check" in text
    assert "-c constraints.txt" in text
    # Beam starts its workers by it, whatever else the image can do.
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in text


def test_the_flex_template_passes_on_what_its_metadata_names(monkeypatch):
    metadata = json.loads((ROOT / "flex_template/metadata.json").read_text())
    names = [parameter["name"] for parameter in metadata["parameters"]]
    given = {name: f"value-of-{name}" for name in names} | {"inputs": "gs://bucket/a/*.tar gs://bucket/b"}
    args = [f"--{name}={value}" for name, value in given.items()]
    launched = run_launcher(*args, "--runner=DataflowRunner", "--project=p", "--job_name=j")
    own, theirs = launched[: launched.index("--")], launched[launched.index("--") + 1 :]
    assert own[:3] == ["extract", "gs://bucket/a/*.tar", "gs://bucket/b"]
    assert own[own.index("--runner") + 1] == "DataflowRunner"
    for name in set(names) - {"inputs", "sdk_container_image"}:
        assert own[own.index("--" + name.replace("_", "-")) + 1] == given[name]
    assert theirs == [f"--sdk_container_image={given['sdk_container_image']}", "--project=p", "--job_name=j"]
    optional = {parameter["name"] for parameter in metadata["parameters"] if parameter.get("isOptional")}
    assert set(names) - optional == {"inputs", "output", "sdk_container_image"}


def test_the_flex_templates_options_are_the_commands():
    names = {option for parameter in app.cli.commands["extract"].params for option in parameter.opts}
    metadata = json.loads((ROOT / "flex_template/metadata.json").read_text())
    for parameter in metadata["parameters"]:
        if parameter["name"] not in ("inputs", "sdk_container_image"):
            assert "--" + parameter["name"].replace("_", "-") in names


def run_launcher(*args: str) -> list[str]:
    """Returns the command line that the launcher makes of a template's parameters."""
    code = (
        "import json, sys, runpy; from pipeline import cli\n"
        "cli.main = lambda: print(json.dumps(sys.argv[1:]))\n"
        f"sys.argv = ['launch.py', *{list(args)!r}]; runpy.run_path('flex_template/launch.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
