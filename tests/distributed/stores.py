"""Object stores on loopback: moto speaks S3, fake-gcs-server speaks Google Cloud Storage, a proxy counts and breaks."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.distributed.clusters import Process, free_port, wait_until

CACHE = Path(os.environ.get("FEATUREMILL_TEST_CACHE", Path.home() / ".cache" / "featuremill-tests"))
GCS_SERVER = "github.com/fsouza/fake-gcs-server@v1.56.1"
# Found nowhere but in the environment, if all is well.
S3_KEY_ID, S3_SECRET = "AKIAFEATUREMILLTEST1", "sEcReT-0f-tHe-TeStS-9f8e7d6c5b4a"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}
_CHUNK_BYTES = 64 << 10


@dataclass(frozen=True)
class Request:
    """What a client asked for, and how many bytes of the answer it took."""

    method: str
    path: str
    query: str
    status: int
    sent_bytes: int

    @property
    def verb(self) -> str:
        """What the request does, in S3's words; the method for other protocols."""
        query = urllib.parse.parse_qs(self.query, keep_blank_values=True)
        if self.method == "GET" and ("list-type" in query or self.path.endswith("/o")):
            return "LIST"
        for name, verb in (
            ("uploads", "START"),
            ("partNumber", "PART"),
            ("uploadId", "COMPLETE"),
            ("delete", "DELETE"),
        ):
            if name in query:
                return verb
        return self.method


@dataclass
class Proxy:
    """Stands before a server: lists the requests, and answers some of them as a store in trouble would.

    Attributes:
        backend: Port of the real server on loopback.
        requests: All since the last `clear`, in the order of their ends.
        refuse: Which requests (method, path with query) are answered with 403.
        cut: Which answers break off halfway, with the connection.
        hang_up: Which requests break off without an answer.
        keep_silent: Which requests are taken and never answered.
        fix: Changes what a request's body says before it is passed on.
    """

    backend: int
    requests: list[Request] = field(default_factory=list)
    refuse: Callable[[str, str], bool] = lambda method, path: False
    cut: Callable[[str, str], bool] = lambda method, path: False
    hang_up: Callable[[str, str], bool] = lambda method, path: False
    keep_silent: Callable[[str, str], bool] = lambda method, path: False
    fix: Callable[[str, bytes], bytes] = lambda path, body: body

    def __post_init__(self) -> None:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def heal(self) -> None:
        """Ends all faults."""
        self.refuse = self.cut = self.hang_up = self.keep_silent = lambda method, path: False

    def count(self, under: str = "") -> Counter[str]:
        """Returns how many requests there were by verb, of those whose path holds `under`."""
        return Counter(request.verb for request in self.requests if under in request.path)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up in the middle of an answer are none of the tests' errors."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without it each answer waits for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    proxy: Proxy

    def handle_any(self) -> None:
        body = self._body()
        if self.proxy.hang_up(self.command, self.path) or self._stay_silent():
            self._note(0, 0)
            return self._hang_up()
        if self.proxy.refuse(self.command, self.path):
            return self._deny()
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.backend, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            headers.pop("Expect", None)
            body = self.proxy.fix(self.path, body)
            headers["Content-Length"] = str(len(body))
            server.request(self.command, self.path, body=body, headers=headers)
            self._pass_on(server.getresponse())
        finally:
            server.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any

    def _deny(self) -> None:
        xml = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        text = json.dumps({"error": {"code": 403, "message": "tests@example.com does not have access"}}).encode()
        data = text if "/storage/v1" in self.path else xml
        self._note(403, len(data))
        self.send_response(403)
        self.send_header("Content-Type", "application/json" if data is text else "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _pass_on(self, answer: http.client.HTTPResponse) -> None:
        length = answer.getheader("Content-Length")
        # Without a length the body is collected first: a client must be able to tell where it ends.
        data = answer.read() if length is None and self.command != "HEAD" else None
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if data is not None:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        left = len(data) if data is not None else 0 if self.command == "HEAD" else int(length or 0)
        self._send(answer, data, left)

    def _send(self, answer: http.client.HTTPResponse, data: bytes | None, left: int) -> None:
        stop = left // 2 if left and self.proxy.cut(self.command, self.path) else -1
        sent = 0
        try:
            while sent < left:
                if 0 <= stop <= sent:
                    return self._hang_up()
                count = min(_CHUNK_BYTES, (left if stop < 0 else stop) - sent)
                chunk = answer.read(count) if data is None else data[sent : sent + count]
                self.wfile.write(chunk)
                sent += len(chunk)
        except OSError:
            self.close_connection = True
        finally:
            self._note(answer.status, sent)

    def _stay_silent(self) -> bool:
        if not self.proxy.keep_silent(self.command, self.path):
            return False
        # Until the client goes away.
        with contextlib.suppress(OSError):
            self.connection.recv(1)
        return True

    def _hang_up(self) -> None:
        self.close_connection = True

    def _note(self, status: int, sent_bytes: int) -> None:
        path, _, query = self.path.partition("?")
        self.proxy.requests.append(Request(self.command, urllib.parse.unquote(path), query, status, sent_bytes))

    def log_message(self, *_: object) -> None:
        pass


class S3:
    """moto's server in a process of its own, behind a proxy."""

    scheme = "s3"

    def __init__(self, folder: Path):
        """Args: where the log goes."""
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        self._process = Process(command, folder / "moto.log", env={"INITIAL_NO_AUTH_ACTION_COUNT": "1000000000"})
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/moto-api/"), f"moto (log in {folder})")
        self.proxy = Proxy(port)
        self._direct = f"http://127.0.0.1:{port}"
        self.make_bucket("bucket")

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment, and nothing else."""
        return {
            "AWS_ACCESS_KEY_ID": S3_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.proxy.url,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def check_keys(self, check: bool) -> None:
        """Says whether the server looks at credentials; none are known to it."""
        where = f"{self._direct}/moto-api/reset-auth"
        left = b"0" if check else b"1000000000"
        urllib.request.urlopen(urllib.request.Request(where, left, {"Content-Type": "text/plain"}), timeout=30).close()

    def client(self):
        """Returns a client that doesn't pass by the proxy."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self._direct,
            region_name="us-east-1",
            aws_access_key_id=S3_KEY_ID,
            aws_secret_access_key=S3_SECRET,
        )

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def put(self, name: str, data: bytes) -> None:
        self.client().put_object(Bucket="bucket", Key=name, Body=data)

    def delete(self, name: str) -> None:
        self.client().delete_object(Bucket="bucket", Key=name)

    def objects(self) -> dict[str, bytes]:
        """Returns all that is in the bucket."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
        names = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {name: client.get_object(Bucket="bucket", Key=name)["Body"].read() for name in names}

    def clear(self) -> None:
        """Empties the bucket, ends all faults and forgets the requests."""
        client = self.client()
        for name in self.objects():
            client.delete_object(Bucket="bucket", Key=name)
        self.proxy.heal()
        self.proxy.requests.clear()

    def stop(self) -> None:
        self.proxy.stop()
        self._process.kill()


class Gcs:
    """fake-gcs-server behind a proxy, without credentials."""

    scheme = "gs"

    def __init__(self, folder: Path):
        """Args: where the log goes."""
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.proxy = Proxy(port, fix=_number_parts)
        self._direct = f"http://127.0.0.1:{port}"
        command = [str(fetch_gcs_server()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
        # Uploads are answered with the address where they go on.
        command += [
            "-backend",
            "memory",
            "-external-url",
            self.proxy.url,
            "-public-host",
            f"127.0.0.1:{self.proxy.port}",
        ]
        self._process = Process(command, folder / "gcs.log")
        wait_until(lambda: _answers(f"{self._direct}/storage/v1/b"), f"fake-gcs-server (log in {folder})")
        self.make_bucket("bucket")

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment: the server's address, and that no credentials are to be had."""
        return {"STORAGE_EMULATOR_HOST": self.proxy.url, "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": os.devnull}

    @property
    def direct_env(self) -> dict[str, str]:
        """The same past the proxy, for a client in this process: pyarrow holds Python's lock while it opens a file."""
        return {**self.env, "STORAGE_EMULATOR_HOST": self._direct}

    def make_bucket(self, name: str) -> None:
        self._ask("POST", "/storage/v1/b?project=tests", json.dumps({"name": name}).encode())

    def put(self, name: str, data: bytes) -> None:
        where = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
        self._ask("POST", where, data, kind="application/octet-stream")

    def delete(self, name: str) -> None:
        self._ask("DELETE", self._path(name))

    def objects(self) -> dict[str, bytes]:
        """Returns all that is in the bucket."""
        items = json.loads(self._ask("GET", "/storage/v1/b/bucket/o?maxResults=10000")).get("items", [])
        return {item["name"]: self._ask("GET", self._path(item["name"]) + "?alt=media") for item in items}

    def clear(self) -> None:
        """Empties the bucket, ends all faults and forgets the requests."""
        for name in self.objects():
            self.delete(name)
        self.proxy.heal()
        self.proxy.requests.clear()

    def stop(self) -> None:
        self.proxy.stop()
        self._process.kill()

    @staticmethod
    def _path(name: str) -> str:
        return f"/storage/v1/b/bucket/o/{urllib.parse.quote(name, safe='')}"

    def _ask(self, method: str, path: str, data: bytes | None = None, *, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self._direct + path, data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


def _number_parts(path: str, body: bytes) -> bytes:
    """Gives the parts of a batch ids: the fake server passes over those without one, unlike the real one."""
    if not path.startswith("/batch"):
        return body
    first, *parts = body.split(b"Content-Type: application/http\n")
    numbered = [b"Content-Type: application/http\nContent-ID: <%d>\n" % i + part for i, part in enumerate(parts)]
    return b"".join([first, *numbered])


def fetch_gcs_server() -> Path:
    """Returns fake-gcs-server, built by Go at its pinned version; Go's checksum database vouches for the source.

    Raises:
        OSError, subprocess.CalledProcessError: There is no Go, or no way to the module proxy.
    """
    folder = CACHE / GCS_SERVER.rpartition("/")[2]
    binary = folder / "fake-gcs-server"
    if not binary.exists():
        # A build of one package at a time: the machine has other things to do.
        subprocess.run(
            ["nice", "-n", "15", "go", "install", "-p", "1", GCS_SERVER],
            env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-mod=mod"},
            check=True,
            capture_output=True,
            timeout=1200,
        )
    return binary


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status < 500
    time.sleep(0.1)
    return False
