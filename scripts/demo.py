"""`make demo`: build the demo artifact or reuse it, serve it, and classify the shipped photos.

The service is a child process. The demo waits for the child's own log line `ready`, so that another
server cannot be mistaken for the child. The demo ends with an error as soon as the child exits. The
service runs until Ctrl-C. DEMO_EXIT=1 stops it after the table.
"""

import argparse
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from service.artifact import read_manifest
from service.errors import SettingsError, TopfiveError, Unreachable
from service.server.listener import listen
from service.tools import client

BIN = Path(sys.executable).parent
PHOTOS = Path(__file__).resolve().parent.parent / "model_build" / "photos"
READY_WITHIN_S = 60.0
"""Seconds for the service to become ready."""
END_WITHIN_S = 40.0
"""Seconds for the service to exit after SIGTERM; then it is killed."""
INTERRUPTED = 130


class DemoServer:
    """The demo's own `topfive serve`, with its log passed on to stderr."""

    def __init__(self, artifact: Path, host: str, port: int) -> None:
        command = [str(BIN / "topfive"), "serve", "--artifact", str(artifact)]
        command += ["--host", host, "--port", str(port)]
        command += ["--log-format", "console", "--log-level", "info"]
        self.url = ""
        """URL of the service; empty until the service is ready."""
        self._ready_or_ended = threading.Event()
        # In a process group of its own: Ctrl-C ends the demo, and the demo ends the service.
        self._process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def await_ready(self) -> None:
        """Wait until the service logs that it is ready; raise TopfiveError if it exits before."""
        self._ready_or_ended.wait(READY_WITHIN_S)
        if self.url:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self.check_running("before it was ready")
        raise TopfiveError(
            f"The service was not ready within {READY_WITHIN_S:g} s.",
            "Read the service's log above for the reason.",
        )

    def check_running(self, when: str) -> None:
        """Raise TopfiveError if the service has exited; `when` completes the message."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=1)
            raise TopfiveError(
                f"The service exited with code {code} {when}.",
                "Read the service's log above for the reason.",
            )

    def await_end(self) -> None:
        """Wait until the service exits, and raise TopfiveError then."""
        self._process.wait()
        self.check_running("while it served")

    def stop(self) -> None:
        """Drain and stop the service; a Ctrl-C during the drain ends it sooner."""
        give_up_at = time.monotonic() + END_WITHIN_S
        while self._process.poll() is None:
            try:
                self._process.terminate()
                self._process.wait(max(0.1, give_up_at - time.monotonic()))
            except KeyboardInterrupt:
                continue
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reader.join(timeout=1)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            ready = re.search(r" ready: POST (\S+)/classify", line)
            if ready:
                self.url = ready[1]
                self._ready_or_ended.set()
        self._ready_or_ended.set()


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--artifact", type=Path, required=True, help="Where the artifact is built.")
    parser.add_argument("--host", required=True, help="Address to serve on.")
    parser.add_argument("--port", type=int, required=True, help="Port to serve on.")
    options = parser.parse_args()
    # A shell that starts the demo in the background makes it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return demo(options.artifact, options.host, options.port)
    except TopfiveError as error:
        print(f"error: {error.detail}\n  try: {error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def demo(artifact: Path, host: str, port: int) -> int:
    """Build the artifact, serve it, print the answers, serve until Ctrl-C; return the exit code."""
    check_address(host, port)
    built = subprocess.run([BIN / "topfive-build", "demo", "--output", artifact], check=False)
    if built.returncode:
        return built.returncode
    with serving(artifact, host, port) as service:
        service.await_ready()
        check_model(service.url, artifact)
        answers = client.classify_over_http(service.url, sorted(PHOTOS.iterdir()), 5, 30)
        client.print_table(answers)
        if os.environ.get("DEMO_EXIT"):
            return 1 if any(answer.error for answer in answers) else 0
        if has_bfloat16():
            print(
                "this CPU has bfloat16, which is about twice as fast as the float32 of the demo: "
                "build with topfive-build caffe --precision force_bfloat16 (docs/building.md)"
            )
        print(
            f"serving on {service.url} (a page at /, the API at /docs) until Ctrl-C; try:\n"
            "  curl -H 'Content-Type: image/png' --data-binary @model_build/photos/cat.png "
            f"{service.url}/classify",
            flush=True,
        )
        service.await_end()
    return 0


def has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU has instructions for bfloat16."""
    with contextlib.suppress(OSError):
        return "avx512_bf16" in cpuinfo.read_text().split()
    return False


def check_address(host: str, port: int) -> None:
    """Raise TopfiveError if the service cannot listen on `host` and `port` now."""
    try:
        listen(host, port).close()
    except OverflowError as error:
        raise TopfiveError(
            f"PORT={port} is not a port: {error}", f"Run PORT={_other(port)} make demo."
        ) from error
    except SettingsError as error:
        taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
        end_it = f"Run PORT={_other(port)} make demo, or end the process on {host}:{port}."
        raise TopfiveError(error.detail, end_it if taken else error.remedy) from error


@contextlib.contextmanager
def serving(artifact: Path, host: str, port: int) -> Iterator[DemoServer]:
    """Start the service, and stop it at the end.

    If a request fails because the service has exited, raise the error of that exit.
    """
    service = DemoServer(artifact, host, port)
    try:
        yield service
    except (Unreachable, httpx.HTTPError):
        service.check_running("before it answered")
        raise
    finally:
        service.stop()


def check_model(url: str, artifact: Path) -> None:
    """Raise TopfiveError unless the server at `url` serves `artifact`."""
    manifest = read_manifest(artifact)
    reply = httpx.get(f"{url}/model", timeout=30, trust_env=False)
    model = client.json_object(reply).get("model", {})
    served = f"{model.get('name')} {model.get('version')}"
    if served != f"{manifest.name} {manifest.version}":
        raise TopfiveError(
            f"{url} serves {served}, but the demo is {manifest.name} {manifest.version}.",
            "Stop the other server, or run PORT=9000 make demo.",
        )


def _other(port: int) -> int:
    return 9001 if port == 9000 else 9000


if __name__ == "__main__":
    sys.exit(main())
