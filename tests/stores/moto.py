"""moto, a mock of S3, as a server of its own: what pip installs, so that `make test` needs nothing else.

It checks neither keys nor checksums; the real store of `make test-s3` does. A page of a listing has 100 keys here
instead of 1,000, so that a listing of several takes few objects.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.stores.server import Server

# The mock looks whether a key is there and then puts it, in two steps and many threads: once in some hundred races two
# callers won an exclusive create. One write at a time gives the guarantee of the real store.
_SCRIPT = """
import threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

writes = threading.RLock()

def alone(method):
    def write(*arguments, **named):
        with writes:
            return method(*arguments, **named)
    return write

for name in ("put_object", "_key_response_post"):
    setattr(S3Response, name, alone(getattr(S3Response, name)))
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


@contextmanager
def moto(access_key: str, secret_key: str) -> Iterator[Server]:
    """A server until the end of the block."""
    command, environment = [sys.executable, "-c", _SCRIPT], {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": "100"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            server = Server(f"http://127.0.0.1:{int(process.stdout.readline())}", access_key, secret_key)
            server.make_bucket()
            yield server
        finally:
            process.kill()
