"""A real Milvus server on loopback, from the package ``milvus``; a machine has room for one (port 2380)."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from unittest import mock

from milvus import MilvusServer, MilvusServerConfig


class Server:
    """A server, which can be killed and started again.

    Args:
        folder: Where it keeps its data.
    """

    token = "root:Milvus"  # that every new server knows

    def __init__(self, folder: Path) -> None:
        self._server = MilvusServer(MilvusServerConfig(data_dir=str(folder)), wait_for_started=False)
        self._server.config.set("authorization_enabled", True)
        # Its lease, in seconds. A server that can't renew it ends, which 30 are too few for where tests keep it from
        # its processor; one that is started after a kill waits until the lease of the one before has run out.
        with mock.patch.dict(os.environ, COMMON_SESSION_TTL="60"):
            self._server.start()
        self.uri = f"http://127.0.0.1:{self._server.listen_port}"
        try:
            self._server.wait_started(timeout=100_000)
            environment = Path(f"/proc/{self._server.server_proc.pid}/environ").read_bytes().split(b"\0")
            self._environment = dict(entry.split(b"=", 1) for entry in environment if entry)
        except BaseException:
            self.stop()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._server.server_proc.send_signal(number)

    def keep_running(self) -> None:
        """Start it again if it has ended by itself, as one does that was kept from its processor."""
        if self._server.server_proc.poll() is not None:
            self.kill_and_start()

    def stop(self) -> None:
        """Kill it: asked to end, it takes over a minute."""
        self._server.server_proc.kill()
        self._server.server_proc.wait()

    def kill_and_start(self) -> None:
        """Kill it, and start it again as it was."""
        self.stop()
        folder = Path(self._server.config.base_data_dir)
        self._server.server_proc = subprocess.Popen(
            [folder / "bin" / "milvus", "run", "standalone"],
            env=self._environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._server.wait_started(timeout=100_000)


@contextlib.contextmanager
def running_server(folder: Path):
    """A server that runs as long as the context."""
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
