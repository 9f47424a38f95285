"""A small HTTP server that misbehaves as it is told: for faults that are hard to cause in a real engine.

    python misbehaving_server.py --port 8000 --ready-after 0.5 --ignore-sigterm

/health answers 503, then 200; POST /ask answers {"answer": "yes"} once it is ready. With --worker the answer comes from
a process of its own, and /health says 200 whatever becomes of that one, as real engines do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    options = _options()
    if options.starts_file:
        with Path(options.starts_file).open("a") as stream:
            stream.write(f"{time.monotonic()}\n")
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.say:
        print(options.say, flush=True)  # noqa: T201
    if options.exit_at_start is not None:
        sys.exit(options.exit_at_start)
    if options.setsid_child:
        _leave_child(Path(options.setsid_child))
    if options.leave_file:
        Path(options.leave_file).touch()
    if options.exit_after is not None:
        threading.Timer(options.exit_after, lambda: os._exit(options.exit_code)).start()
    if options.bind_nothing:
        threading.Event().wait(600)
    held = b"x" * (options.allocate << 20)  # kept until the end
    worker = _Worker() if options.worker else None
    _serve((options.host, options.port), time.monotonic() + options.ready_after, options.empty_answers, worker)
    del held


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--exit-at-start", type=int)
    parser.add_argument("--exit-after", type=float, help="seconds")
    parser.add_argument("--exit-code", type=int, default=1)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--empty-answers", action="store_true", help="200 to everything, with nothing in it")
    parser.add_argument("--setsid-child", help="start a grandchild in a session of its own; its pid goes to this file")
    parser.add_argument("--leave-file", help="make this file and never remove it")
    parser.add_argument("--starts-file", help="add a line to this file at each start")
    parser.add_argument("--bind-nothing", action="store_true", help="run, but listen nowhere")
    parser.add_argument("--say", help="print this line at the start")
    parser.add_argument("--worker", action="store_true", help="a process of its own answers; it outlives the server")
    parser.add_argument("--allocate", type=int, default=0, help="take this many MiB of memory before it serves")
    return parser.parse_args()


def _leave_child(pid_file: Path) -> None:
    """A double fork: the middle process ends, so that the grandchild has no parent of ours left."""
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(pid_file)], check=True)


class _Worker:
    """Answers a line with a line; one that has ended makes `ask` raise, one that hangs makes it hang."""

    _SCRIPT = (
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    print('yes', flush=True)\n"
        "time.sleep(600)\n"  # nor does it end with its parent
    )

    def __init__(self) -> None:
        command = [sys.executable, "-u", "-c", self._SCRIPT, "misbehaving-worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()

    def ask(self) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write("?\n")
            self._process.stdin.flush()
            return self._process.stdout.readline().strip()


def _serve(address: tuple[str, int], ready_at: float, empty_answers: bool, worker: _Worker | None) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                self._answer({"answer": worker.ask() if worker else "yes"})
            except OSError:  # the worker has ended
                self.send_error(500)

        def _answer(self, body: dict[str, str]) -> None:
            ready = time.monotonic() >= ready_at
            text = json.dumps({} if empty_answers else body).encode()
            self.send_response(200 if ready else 503)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
