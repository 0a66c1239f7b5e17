"""Starts workers for Flink and Spark here, without Docker.

Started by `python -m featuremill.own pipeline.runners.worker_pool --port 50000`, because with `-m pipeline…` Python
runs a user's own pipeline.py where one lies in the current folder.

Beam's own pool (`apache_beam.runners.worker.worker_pool_main`) serves one TaskManager: it knows workers by an id that
each TaskManager counts for itself, so when a second one on the same machine has finished, it ends the first one's
worker. It also starts whatever `python` is on the PATH, never reads what its workers print, and leaves them behind when
it is killed. Here a worker ends with its job or with the pool, whichever is first, and prints where the pool prints.

A worker runs whatever the asker's job says. So the pool listens on loopback, unless it is given another address, and
then only with a token that askers have to know.
"""

import argparse
import hmac
import ipaddress
import os
import subprocess
import sys
from contextlib import suppress

from pipeline.runners.options import SET_TOKEN, TOKEN, TOKEN_FILE, TOKEN_PARAM, pool_token
from transforms.embedding import held_up
from transforms.errors import FeaturemillError
from transforms.machine import end_with, own_command
from transforms.text import printable

_MODULE = "pipeline.runners.worker_pool"
_LOOK_SECONDS = 0.5
_LOOPBACK = ("127.0.0.1", "::1")


def check_address(address: str, token: str) -> None:
    """Raises FeaturemillError for an address that others can reach, if there is no token."""
    if address == "localhost" or token:
        return
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise FeaturemillError(
            f"--address {address} can be reached from other machines, and whoever reaches the pool can run programs "
            f"here; set {TOKEN} or {TOKEN_FILE} to a token, here and where jobs are launched"
        )


def serve(port: int, *, address: str = "localhost", token: str = "") -> None:
    """Serves runners until it is ended.

    Args:
        port: Where to listen.
        address: Of which of the machine's addresses; `localhost` is loopback.
        token: What askers have to know; empty: nothing.

    Raises:
        RuntimeError: Nobody can listen there.
    """
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    # What a job runs has no use for it.
    env = {name: value for name, value in os.environ.items() if name not in (TOKEN, TOKEN_FILE)}

    class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def __init__(self) -> None:
            self._workers: list[subprocess.Popen] = []

        def StartWorker(self, request, context):
            given = request.params.get(TOKEN_PARAM, "")
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                what = "a wrong token" if given else "no token"
                print(f"refused {printable(context.peer())}, which has {what}", file=sys.stderr, flush=True)
                error = f"the worker pool was asked with {what}; {SET_TOKEN}"
                return beam_fn_api_pb2.StartWorkerResponse(error=error)
            arguments = ["--control", request.control_endpoint.url, "--worker", request.worker_id]
            try:
                started = subprocess.Popen([*own_command(_MODULE), *arguments], stdin=subprocess.DEVNULL, env=env)
                self._workers.append(started)
            except OSError as error:
                return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
            return beam_fn_api_pb2.StartWorkerResponse()

        def look(self) -> None:
            """Takes ended workers off the system's list, and says which were killed."""
            for worker in [worker for worker in self._workers if worker.poll() is not None]:
                self._workers.remove(worker)
                if worker.returncode < 0:
                    print(f"a worker was killed by signal {-worker.returncode}", file=sys.stderr, flush=True)

        def StopWorker(self, request, context):
            # Nothing to do: its runner hangs up, and that ends it. Its id doesn't say which worker is meant.
            return beam_fn_api_pb2.StopWorkerResponse()

    # Without this a second pool on the same port would share its calls with the first.
    server = grpc.server(shared_unbounded_instance(), options=[("grpc.so_reuseport", 0)])
    pool = Pool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    first, *others = _LOOPBACK if address == "localhost" else (address,)
    server.add_insecure_port(_listened(first, port))
    for other in others:
        # Not every machine has it.
        with suppress(RuntimeError):
            server.add_insecure_port(_listened(other, port))
    server.start()
    print(f"featuremill's workers wait on {address}; pass --environment_config={_listened(address, port)}", flush=True)
    while server.wait_for_termination(_LOOK_SECONDS):
        pool.look()


def _listened(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def work(control: str, worker_id: str) -> None:
    """Is a worker, until its runner hangs up or the pool is gone."""
    end_with(os.getppid())
    held_up.allow()
    from apache_beam.runners.worker.sdk_worker import SdkHarness

    code = 0
    try:
        SdkHarness(control, worker_id=worker_id).run()
    except Exception as error:
        # A runner that is killed hangs up without a word.
        print(f"worker {worker_id} of {control} ended: {type(error).__name__}", file=sys.stderr, flush=True)
        code = 1
    # Not by returning: a unit in an engine would be finished first, for nobody.
    os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m featuremill.own {_MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=50000, help="where runners ask for workers")
    parser.add_argument(
        "--address",
        default="localhost",
        help=f"which of this machine's addresses to listen on; another than loopback needs a token in {TOKEN}, or in "
        f"the file that {TOKEN_FILE} names (default: %(default)s)",
    )
    parser.add_argument("--control", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.control:
        work(given.control, given.worker)
    try:
        token = pool_token()
        check_address(given.address, token)
        serve(given.port, address=given.address, token=token)
    except (FeaturemillError, RuntimeError, KeyboardInterrupt) as error:
        sys.exit(f"featuremill: no worker pool on port {given.port}: {error or 'interrupted'}")


if __name__ == "__main__":
    main()
