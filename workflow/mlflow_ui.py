"""MLflow's server on 127.0.0.1, stopped together with the process that started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from lowbit_core.runtime.errors import InputError


def check_port(port: int) -> None:
    """Raises InputError if no server can listen on the port."""
    if not 1 <= port <= 65535:
        raise InputError(f"port {port}: it must be between 1 and 65535")
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise InputError(
            f"port {port} on 127.0.0.1 cannot be used ({error.strerror}): choose another, "
            f"`make ui PORT={port % 65535 + 1}`"
        ) from error


def serve(port: int, store: str, artifacts: str, look: Callable[[], None], seconds: float) -> None:
    """Run the server for the database `store`, and call `look` every `seconds`.

    Ends with the server (InputError) or with an exception, such as KeyboardInterrupt.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", store]
    command += ["--default-artifact-root", artifacts]
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=settings, start_new_session=True)
    print(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C stops it)", flush=True)
    try:
        while server.poll() is None:
            look()
            time.sleep(seconds)
        raise InputError(f"the MLflow server stopped with exit code {server.returncode}")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if server.poll() is None:  # its workers are in its process group
                os.killpg(server.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    server.wait(10)
