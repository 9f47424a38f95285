"""The connection to a supervisor that is not ours, over the socket in its deployment's folder."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from engines.base import DeploymentError
from launcher import bounded_json
from launcher.supervise import protocol
from launcher.supervise.control_socket import connect
from launcher.supervise.lifecycle import Phase
from launcher.supervise.protocol import HAS_KILL, NewerError, News

T = TypeVar("T")

_ANSWER_S = 4.0  #: for a supervisor to show that it is there
_BUSY_S = 30.0  #: that one which has may be silent: it sweeps, or waits for a device or a daemon
_PING_S = 2.0


class NoAnswerError(DeploymentError):
    """A supervisor is there, and says nothing, or nothing that is understood."""


class _EndedError(DeploymentError):
    """A supervisor has ended before it answered."""


class Connection:
    """A connection to the supervisor of the deployment in `folder`. Raises `OSError` where none listens."""

    def __init__(self, folder: Path, timeout_s: float = 5.0) -> None:
        self._name = folder.name
        self._timeout_s = timeout_s
        self._heard = b""
        self._refusal = ""  #: what it has said against one of several ops
        try:
            self._socket = connect(folder, timeout_s)
        except (TimeoutError, BlockingIOError) as exc:  # more wait for it already than the kernel keeps
            raise self._silent() from exc

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. The supervisor goes on."""
        self._socket.close()

    def tell(self, op: str) -> None:
        """Ask for what has no answer of its own: stop, kill, restart. Asking one that has ended does nothing."""
        self._socket.settimeout(self._timeout_s)
        with contextlib.suppress(OSError):
            self._socket.sendall(protocol.request(op))

    def ask(self, op: str) -> dict[str, Any]:
        """Ask for `op`, and return the answer. Raises `NoAnswerError`, or `DeploymentError` where it ended before."""
        self.tell(op)
        try:
            line = self._line(time.monotonic() + self._timeout_s)
        except TimeoutError as exc:
            raise self._silent() from exc
        if not line:
            raise _EndedError(f"{self._name}: its supervisor ended before it answered")
        try:
            answer = protocol.answered(line)
        except ValueError as exc:
            raise NoAnswerError(f"{self._name}: its supervisor's answer to {op} is not understood: {exc}") from exc
        if "error" in answer:
            raise self._refused(answer, op)
        return answer

    def learn(self, op: str, kind: type[T]) -> T:
        """Ask for `op`, and return the answer as a `kind`. Raises as `ask` does."""
        try:
            return protocol.learned(kind, self.ask(op), self._name, op)
        except NewerError as exc:
            raise NoAnswerError(str(exc)) from exc
        except ValueError as exc:
            raise NoAnswerError(
                f"{self._name}: its supervisor is of another version of rmlaunch, and its answer to {op} is not "
                f"understood ({exc}); stop {self._name} and start it again"
            ) from exc

    def status(self) -> News:
        """Ask for its state. Raises as `ask` does."""
        return News.of(self.ask("status"), self._name)

    def follow(self, deadline: float, *ops: str) -> Iterator[News]:
        """Yield the state, and each change of it from now on, until it ends or `deadline` (monotonic) is over.

        `ops` are asked for by then: whoever asks for a stop first may come too late to hear of it.
        """
        with contextlib.suppress(TimeoutError, NoAnswerError, _EndedError):
            for op in self._spoken("follow", *ops):
                self.tell(op)
            while line := self._line(deadline):
                yield self._news(line)

    def until(self, done: Callable[[News], bool], *ops: str, deadline: float = math.inf) -> News | None:
        """Ask for `ops`, and return the first news that `done` accepts; None where the supervisor has ended before.

        One that works at it takes the time that it needs, at most until `deadline` (monotonic): it is asked again and
        again whether it is there. Raises `NoAnswerError` where it is not, and `DeploymentError` after `deadline`.
        """
        try:
            for op in self._spoken("follow", *ops):
                self.tell(op)
        except _EndedError:
            return None
        heard, limit, unclear = time.monotonic(), _ANSWER_S, ""
        while True:
            try:
                line = self._line(min(time.monotonic() + _PING_S, deadline))
            except TimeoutError:
                if time.monotonic() >= heard + limit:
                    raise (NoAnswerError(unclear) if unclear else self._silent()) from None
                if time.monotonic() >= deadline:
                    late = f"{self._name} takes longer than expected; see `rmlaunch status {self._name}`"
                    raise DeploymentError(late) from None
                self.tell("follow")
                continue
            if not line:
                return None
            news, limit = self._news(line), _BUSY_S
            if done(news):
                return news
            if news.phase is Phase.UNKNOWN:
                unclear = news.reason
            elif self._refusal:  # not of `follow`, then, but of what is waited for
                raise NoAnswerError(self._refusal)
            else:
                heard = time.monotonic()

    def _spoken(self, *ops: str) -> tuple[str, ...]:
        """Return `ops` in the words of this supervisor. Raises as `status` does where it must be asked which it has."""
        if "kill" not in ops or self.status().protocol >= HAS_KILL:
            return ops
        return tuple(word for op in ops for word in (("stop", "stop") if op == "kill" else (op,)))

    def _news(self, line: bytes) -> News:
        try:
            said = protocol.answered(line)
        except ValueError as exc:
            return News(Phase.UNKNOWN, f"its supervisor's word is not understood: {exc}")
        if "error" in said:
            self._refusal = str(self._refused(said, "what it was asked for"))
            return News(Phase.UNKNOWN, self._refusal)
        return News.of(said, self._name)

    def _refused(self, answer: Mapping[str, Any], op: str) -> NoAnswerError:
        why = f"its supervisor refuses {op}: {str(answer['error'])[:200]!r}"
        return NoAnswerError(protocol.told(self._name, answer, why))

    def _line(self, deadline: float) -> bytes:
        """Return the next line; empty where the supervisor has ended. Raises `TimeoutError` after `deadline`."""
        while b"\n" not in self._heard and len(self._heard) <= bounded_json.LIMIT_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                piece = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:  # it was killed before it had read everything
                piece = b""
            if not piece:
                return b""
            self._heard += piece
        line, _, self._heard = self._heard.partition(b"\n")
        return line + b"\n"  # too long a line is refused where it is parsed

    def _silent(self) -> NoAnswerError:
        return NoAnswerError(
            f"{self._name}: its supervisor does not answer; `rmlaunch stop {self._name} --now` ends it by force"
        )
