"""Starts workers for Flink and Spark here, without Docker.

Started by `python -m featuremill.own pipeline.runners.worker_pool --port 50000`, because with `-m pipeline…` Python
runs a user's own pipeline.py where one lies in the current folder.

Beam's own pool (`apache_beam.runners.worker.worker_pool_main`) serves one TaskManager: it knows workers by an id that
each TaskManager counts for itself, so when a second one on the same machine has finished, it ends the first one's
worker. It also starts whatever `python` is on the PATH, never reads what its workers print, and leaves them behind when
it is killed. Here a worker ends with its job or with the pool, whichever is first, and prints where the pool prints.
"""

import argparse
import os
import subprocess
import sys
import threading
import time

from transforms.machine import own_command

_MODULE = "pipeline.runners.worker_pool"
_LOOK_SECONDS = 0.5


def serve(port: int) -> None:
    """Serves runners on loopback and the machine's other addresses, until it is ended."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def __init__(self) -> None:
            self._workers: list[subprocess.Popen] = []

        def StartWorker(self, request, context):
            arguments = ["--control", request.control_endpoint.url, "--worker", request.worker_id]
            try:
                started = subprocess.Popen([*own_command(_MODULE), *arguments], stdin=subprocess.DEVNULL)
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
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print(f"featuremill's workers wait on port {port}; pass --environment_config=localhost:{port}", flush=True)
    while server.wait_for_termination(_LOOK_SECONDS):
        pool.look()


def work(control: str, worker_id: str) -> None:
    """Is a worker, until its runner hangs up or the pool is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m featuremill.own {_MODULE}", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=50000, help="where runners ask for workers")
    parser.add_argument("--control", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.control:
        work(given.control, given.worker)
    try:
        serve(given.port)
    except (RuntimeError, KeyboardInterrupt) as error:
        sys.exit(f"featuremill: no worker pool on port {given.port}: {error or 'interrupted'}")


if __name__ == "__main__":
    main()
