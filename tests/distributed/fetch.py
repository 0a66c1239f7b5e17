"""What the runners' tests run on: Flink's distribution, Beam's job servers, Prism. Pinned, checked, cached.

The cache is `$FEATUREMILL_TEST_CACHE`, or `~/.cache/featuremill-tests`. Whatever is in it under its final name was
checked before it got there. Beam's job server jars are larger than some mirrors of Maven Central carry, so they are put
together here from the same parts, by Maven's shade plugin, as Beam's own build does it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

FLINK = "1.19.3"
_FLINK_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"
JOB_SERVERS_BEAM = "2.62.0"
PRISM_BEAM = "2.77.0"
# Go's own hash of the module, as in go.sum.
_PRISM_H1 = "h1:RsC61pHEvtySEHAURQyP/+CVOJm/hy5hewuG9JF0+Ow="
_SPARK = [("org.apache.spark", f"spark-{name}_2.12", "3.5.0") for name in ("core", "sql", "streaming")]
# {engine: (main class, dependencies, digest of the jar's content)}
_JOB_SERVERS = {
    "flink": (
        "org.apache.beam.runners.flink.FlinkJobServerDriver",
        [
            ("org.apache.beam", "beam-runners-flink-1.19", JOB_SERVERS_BEAM),
            ("org.slf4j", "slf4j-simple", "1.7.36"),
        ],
        "16cde2a15fc70bbf6aaf28347fdcc8b6d0fdad48d58873e12048a9bcd9749bdf",
    ),
    "spark": (
        "org.apache.beam.runners.spark.SparkJobServerDriver",
        [("org.apache.beam", "beam-runners-spark-3", JOB_SERVERS_BEAM), *_SPARK],
        "204fca55d2f4afa8f6b0d6b91fe2b6e00f7e81933626d24a6a661bd2b5f0390d",
    ),
}
_SECONDS = 600
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>featuremill</groupId><artifactId>{engine}-job-server</artifactId><version>1</version>
  <properties>
    <project.build.outputTimestamp>1980-02-01T00:00:00Z</project.build.outputTimestamp>
    <project.build.sourceEncoding>UTF-8</project.build.sourceEncoding>
  </properties>
  <dependencies>{dependencies}</dependencies>
  <build><plugins><plugin>
    <groupId>org.apache.maven.plugins</groupId><artifactId>maven-shade-plugin</artifactId><version>3.6.0</version>
    <executions><execution><phase>package</phase><goals><goal>shade</goal></goals><configuration>
      <createDependencyReducedPom>false</createDependencyReducedPom>
      <filters><filter><artifact>*:*</artifact><excludes>
        <exclude>META-INF/*.SF</exclude><exclude>META-INF/*.DSA</exclude><exclude>META-INF/*.RSA</exclude>
        <exclude>module-info.class</exclude>
      </excludes></filter></filters>
      <transformers>
        <transformer implementation="org.apache.maven.plugins.shade.resource.ServicesResourceTransformer"/>
        <transformer implementation="org.apache.maven.plugins.shade.resource.AppendingTransformer">
          <resource>reference.conf</resource></transformer>
        <transformer implementation="org.apache.maven.plugins.shade.resource.ManifestResourceTransformer">
          <mainClass>{main}</mainClass></transformer>
      </transformers>
    </configuration></execution></executions>
  </plugin></plugins></build>
</project>
"""


class Missing(Exception):
    """Something that the tests can't do without isn't to be had here; the message says what."""


def cache() -> Path:
    """Returns the folder of what was fetched; made if it isn't there."""
    folder = Path(os.environ.get("FEATUREMILL_TEST_CACHE") or Path.home() / ".cache" / "featuremill-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def flink() -> Path:
    """Returns the `lib` folder of Flink's distribution, from PyPI's apache-flink-libraries."""
    need_java()
    return _fetched(f"flink-{FLINK}-{_FLINK_SHA256[:12]}", _fetch_flink)


def job_server(engine: str) -> Path:
    """Returns the jar of Beam's job server for "flink" or "spark"."""
    need_java()
    digest = _JOB_SERVERS[engine][2]
    return _fetched(f"beam-runners-{engine}-job-server-{digest[:12]}.jar", lambda place: _build_server(engine, place))


def prism() -> Path:
    """Returns the Prism program."""
    return _fetched(f"prism-{PRISM_BEAM}", _build_prism)


def need_java() -> None:
    """Raises Missing if there is no Java here."""
    if shutil.which("java") is None:
        raise Missing("no Java on this machine (apt-get install openjdk-17-jre-headless)")


def _fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    place = cache() / name
    with _lock():
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=cache()) as folder:
                fetch(Path(folder) / name)
                os.rename(Path(folder) / name, place)
    return place


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with open(cache() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], folder: Path, what: str, **env: str) -> str:
    if shutil.which(command[0]) is None:
        raise Missing(f"no {Path(command[0]).name} on this machine, so no {what}")
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Missing(f"no {what}: the registry didn't deliver within {_SECONDS} s") from error
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if re.search("error", line, re.I)]
        raise Missing(f"no {what}: {' '.join(errors[:2]) or done.stderr[-300:]}")
    return done.stdout


def _fetch_flink(place: Path) -> None:
    folder = place.parent
    (folder / "wanted.txt").write_text(f"apache-flink-libraries=={FLINK} --hash=sha256:{_FLINK_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run(
        [*pip, "--no-binary", ":all:", "--require-hashes", "-r", "wanted.txt", "-d", "."], folder, "Flink distribution"
    )
    place.mkdir()
    with tarfile.open(folder / f"apache-flink-libraries-{FLINK}.tar.gz") as archive:
        for member in archive:
            name = Path(member.name)
            # The SQL planner is a third of it, and no use here.
            if name.parent.name == "lib" and name.suffix == ".jar" and "table" not in name.name:
                with archive.extractfile(member) as source, open(place / name.name, "wb") as target:
                    shutil.copyfileobj(source, target)


def _build_server(engine: str, place: Path) -> None:
    main, dependencies, digest = _JOB_SERVERS[engine]
    tags = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in dependencies
    )
    (place.parent / "pom.xml").write_text(_POM.format(engine=engine, main=main, dependencies=tags))
    # -C: what doesn't match the repository's own checksum is an error.
    _run(["mvn", "-B", "-q", "-C", "-ntp", "package"], place.parent, f"{engine} job server")
    built = place.parent / "target" / f"{engine}-job-server-1.jar"
    found = content_digest(built)
    if found != digest:
        raise RuntimeError(f"the {engine} job server's content is {found}, not {digest} as written in {__file__}")
    os.rename(built, place)


def content_digest(jar: Path) -> str:
    """Returns a SHA-256 over the names and contents of a jar's files, whatever their order and compression.

    What packing adds is left out: the manifest, which names the Java and Maven that did it, and the POM from here.
    """
    total = hashlib.sha256()
    with zipfile.ZipFile(jar) as archive:
        packing = ("META-INF/MANIFEST.MF", "META-INF/maven/featuremill/")
        for name in sorted(name for name in set(archive.namelist()) if not name.startswith(packing)):
            total.update(name.encode() + b"\0" + hashlib.sha256(archive.read(name)).digest())
    return total.hexdigest()


def _build_prism(place: Path) -> None:
    module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{PRISM_BEAM}"
    _run(["go", "install", module], place.parent, "Prism", GOBIN=str(place.parent), GOTOOLCHAIN="local")
    built = place.parent / "prism"
    printed = _run(["go", "version", "-m", str(built)], place.parent, "Prism")
    if _PRISM_H1 not in printed:
        raise RuntimeError(f"Prism was not built from the module {_PRISM_H1}: {printed[:500]}")
    os.rename(built, place)
