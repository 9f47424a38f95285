"""The loop wakes for sockets, timers, other threads and signals, and gives events in their order."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from launcher.supervise.control_socket import Client
from launcher.supervise.lifecycle import Begin, Event, Proved, Stable, StopAsked
from launcher.supervise.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put this process' own handlers back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        signal.signal(number, handler)


def waited(loop: Loop) -> float:
    """Wait once, with no client there; returns the seconds that it took."""
    began = time.monotonic()
    assert list(loop.wait()) == []
    return time.monotonic() - began


def test_an_event_that_another_thread_posts_ends_the_wait_and_keeps_its_start(loop: Loop) -> None:
    poster = threading.Timer(0.1, partial(loop.post, Proved(), 3))
    poster.start()

    took = waited(loop)

    assert took < 5.0
    assert list(loop.posted()) == [(3, Proved())]
    assert list(loop.posted()) == []


def test_what_is_posted_while_events_are_handled_is_given_in_the_same_turn(loop: Loop) -> None:
    loop.post(Begin(), None)
    seen: list[tuple[int | None, Event]] = []

    for start, event in loop.posted():
        seen.append((start, event))
        if event == Begin():
            loop.post(Proved(), 1)

    assert seen == [(None, Begin()), (1, Proved())]


def test_timers_end_the_wait_in_the_order_of_their_time(loop: Loop) -> None:
    loop.after(0.1, Stable(), 2)
    loop.after(0.0, Proved(), 1)
    loop.after(0.0, Begin(), 1)  # as early as the one before: in the order in which they were set
    loop.after(60.0, StopAsked(), 1)

    waited(loop)
    at_once = list(loop.due())
    took = waited(loop)

    assert at_once == [(1, Proved()), (1, Begin())]
    assert took < 5.0
    assert list(loop.due()) == [(2, Stable())]


def test_a_signal_posts_its_event_and_one_without_an_event_only_wakes(
    loop: Loop,
    handlers: None,  # noqa: ARG001
) -> None:
    loop.on_signal(signal.SIGTERM, StopAsked())
    loop.on_signal(signal.SIGUSR1, None)

    os.kill(os.getpid(), signal.SIGUSR1)
    took = waited(loop)
    woken = list(loop.posted())
    os.kill(os.getpid(), signal.SIGTERM)

    assert took < 5.0
    assert woken == []
    assert list(loop.posted()) == [(None, StopAsked())]


def test_a_watched_descriptor_calls_back_until_it_is_forgotten(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    calls: list[bytes] = []

    def hear() -> None:
        calls.append(ours.recv(10))

    with ours, theirs:
        loop.watch(ours, hear)
        theirs.send(b"one")
        waited(loop)
        loop.forget(hear)
        loop.forget(hear)  # nothing is left to forget
        theirs.send(b"two")
        loop.after(0.05, Stable(), 1)
        waited(loop)

    assert calls == [b"one"]


def test_a_client_that_says_something_is_given_to_the_supervisor(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = Client(ours, loop.selector)
        theirs.send(b'{"op": "status"}\n')

        ready = [found for found, _ in loop.wait()]
        heard = client.hear()
        client.close()

    assert ready == [client]
    assert heard == ["status"]
