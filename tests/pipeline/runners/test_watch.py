"""Why a job on a cluster failed: the runner's text first, then what the cluster's own history says."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from pipeline.runners import watch
from pipeline.runners.job_server import failures
from pipeline.runners.options import TOKEN
from pipeline.runners.watch import explain

LAST = "Pipeline BeamApp-root-1_a failed in state FAILED: java.lang.InterruptedException"
FIRST = "RuntimeError: ...\nModuleNotFoundError: No module named 'transforms' [while running 'IsThere']\n"


INTERRUPTED = {"stacktrace": "java.lang.InterruptedException"}
# Where Flink tells of the failure that interrupted the others.
HISTORIES = {
    "before": {"exceptionHistory": {"entries": [INTERRUPTED, {"stacktrace": FIRST}]}},
    "at the same time": {
        "exceptionHistory": {"entries": [{**INTERRUPTED, "concurrentExceptions": [{"stacktrace": FIRST}]}]}
    },
    "by its task": {"all-exceptions": [{"exception": FIRST}], "exceptionHistory": {"entries": [INTERRUPTED]}},
}


@pytest.fixture(params=HISTORIES)
def flink(request):
    """A Flink's REST interface with one job, which failed twice; gives (options, paths that were asked for)."""
    answers = {
        "/jobs/overview": {"jobs": [{"jid": "0", "name": "another"}, {"jid": "1", "name": "BeamApp-root-1"}]},
        "/jobs/1/exceptions": HISTORIES[request.param],
    }
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *_):
            pass

    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = PipelineOptions([])
    options.view_as(FlinkRunnerOptions).flink_master = f"http://127.0.0.1:{server.server_port}"
    yield options, asked
    server.shutdown()
    server.server_close()


def test_the_first_failure_is_reported_where_the_last_one_says_nothing(flink):
    options, asked = flink
    result = SimpleNamespace(_job_id="BeamApp-root-1_a")
    message = str(explain(RuntimeError(LAST), lambda: failures(result, options)))
    assert message.startswith("a worker can't import transforms: featuremill isn't installed there")
    assert asked == ["/jobs/overview", "/jobs/1/exceptions"]
    assert "InterruptedException" in str(explain(RuntimeError(LAST)))


def test_a_cluster_is_asked_again_while_it_says_nothing_that_is_known(monkeypatch):
    monkeypatch.setattr(watch, "_ASK_AGAIN_SECONDS", (0.0, 0.0))
    messages = [LAST, FIRST]
    assert str(explain(RuntimeError(LAST), lambda: messages.pop(0))).startswith("a worker can't import transforms")
    assert not messages
    messages = [LAST] * 3
    assert "InterruptedException" in str(explain(RuntimeError(LAST), lambda: messages.pop(0)))
    assert not messages
    messages = [""]
    assert "InterruptedException" in str(explain(RuntimeError(LAST), lambda: messages.pop(0)))


@pytest.mark.parametrize("what", ["no token", "a wrong token"])
def test_a_pool_that_refuses_is_found_behind_an_interruption(what):
    refused = f"java.lang.IllegalStateException: the worker pool was asked with {what}; set it\n\tat org.apache.beam"
    message = str(explain(RuntimeError(LAST), lambda: refused))
    assert message.startswith(f"the worker pool was asked with {what}; what was committed is kept: set {TOKEN} where")
    # Where the last failure says it, nobody is asked.
    assert str(explain(RuntimeError(f"{LAST}\n{refused}"), lambda: pytest.fail("asked"))) == message


@pytest.mark.parametrize("text", ["ValueError: a worker's own", "CANCELLED: client cancelled"])
def test_a_cluster_is_not_asked_for_what_is_known(text):
    assert explain(RuntimeError(f"it failed:\n{text}"), lambda: pytest.fail("asked"))


def test_a_cluster_that_is_gone_has_nothing_to_say(flink):
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions

    result = SimpleNamespace(_job_id="BeamApp-root-1_a")
    assert failures(result, PipelineOptions([])) == ""
    options = PipelineOptions([])
    options.view_as(FlinkRunnerOptions).flink_master = "http://127.0.0.1:1"
    assert failures(result, options) == ""
    options, _ = flink
    assert failures(SimpleNamespace(_job_id="unknown_a"), options) == ""
