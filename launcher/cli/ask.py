"""The verbs `infer` and `chat`: ask a deployment."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.base import ConfigError
from launcher.deployments.records import Deployments
from launcher.output import print_json
from launcher.paths import state_root
from launcher.serving.attached import Attached
from launcher.serving.client import Message

_CHAT_TOKENS = 512


def infer(args: argparse.Namespace) -> int:
    """Print the answer to one text as it comes, or the text's embedding as JSON."""
    sampling = _sampling(args.sampling)
    client = Attached(Deployments(state_root()).find(args.name))
    try:
        if client.plan.model.task == "embed":
            if sampling:
                raise ConfigError(f"{next(iter(sampling))}= means nothing to a model of embeddings; leave it out")
            print_json(client.embed([args.text])[0].tolist())
            return 0
        _stream(client.stream(args.text, **sampling))
        return 0
    finally:
        client.close()


def chat(args: argparse.Namespace) -> int:
    """Answer each line of the input, until its end."""
    sampling = {"max_tokens": _CHAT_TOKENS, **_sampling(args.sampling)}
    client = Attached(Deployments(state_root()).find(args.name))
    messages: list[Message] = []
    try:
        while line := _read_line():
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": _stream(client.stream(messages, **sampling))})
    finally:
        client.close()
    return 0


def _read_line() -> str:
    """Read the user's next line that has something in it; empty at the end of the input."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()


def _stream(pieces: Iterator[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return text


def _sampling(words: Sequence[str]) -> Mapping[str, Any]:
    """Read `max_tokens=20 temperature=0.5` as numbers, and as lists where they are JSON."""
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r} is not understood; sampling options are written key=value")
        if key in given:
            raise ConfigError(f"{key}= is given twice; leave one out")
        try:
            given[key] = json.loads(value)
        except ValueError:
            given[key] = value
    return given
