"""A supervisor of another version of rmlaunch: it holds its deployment's lock, and answers as it is told to.

    python -m tests.fakes.other_version FOLDER

`answers.json` in FOLDER has the line for each op, as latin-1 text; one without an answer gets none. It ends when it is
asked to stop, after the line for that and after its state is FOLDER/last.json, where that is there.
"""

from __future__ import annotations

import fcntl
import json
import socket
import sys
import threading
from pathlib import Path

from launcher.supervise.control_socket import listen


def main(folder: Path) -> None:
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    listener = listen(folder)
    listener.setblocking(True)
    stopped = threading.Event()
    threading.Thread(target=accept, args=(listener, folder, stopped), daemon=True).start()
    sys.stdout.write("listens\n")
    sys.stdout.flush()
    stopped.wait()
    if (folder / "last.json").exists():
        (folder / "last.json").rename(folder / "state.json")


def accept(listener: socket.socket, folder: Path, stopped: threading.Event) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, folder, stopped), daemon=True).start()


def serve(connection: socket.socket, folder: Path, stopped: threading.Event) -> None:
    answers = json.loads((folder / "answers.json").read_text())
    with connection, connection.makefile("rb") as requests:
        for request in requests:
            op = json.loads(request)["op"]
            if op in answers:
                connection.sendall(answers[op].encode("latin-1"))
            if op == "stop":
                stopped.set()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
