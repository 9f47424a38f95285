"""A supervisor of another version of rmlaunch: it holds its deployment's lock, and answers as it is told to.

    python -m tests.fakes.other_version FOLDER

`answers.json` in FOLDER has the line for each op, as latin-1 text; one without an answer gets none. It ends when it has
been asked to stop as often as FOLDER/stops says, after its state is FOLDER/last.json, where that is there.
FOLDER/asked has what it was asked for.
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
    stopped = threading.Semaphore(0)
    threading.Thread(target=accept, args=(listener, folder, stopped), daemon=True).start()
    sys.stdout.write("listens\n")
    sys.stdout.flush()
    for _ in range(int((folder / "stops").read_text())):
        stopped.acquire()
    if (folder / "last.json").exists():
        (folder / "last.json").rename(folder / "state.json")


def accept(listener: socket.socket, folder: Path, stopped: threading.Semaphore) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, folder, stopped), daemon=True).start()


def serve(connection: socket.socket, folder: Path, stopped: threading.Semaphore) -> None:
    answers = json.loads((folder / "answers.json").read_text())
    with connection, connection.makefile("rb") as requests:
        for request in requests:
            op = json.loads(request)["op"]
            with (folder / "asked").open("a") as asked:
                asked.write(f"{op}\n")
            if op in answers:
                connection.sendall(answers[op].encode("latin-1"))
            if op == "stop":
                stopped.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
