"""`prompt="…"`: ask a ready deployment once, print the answer, and say how long everything took."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from engines.base import GenerateRequest, Sampling
from launcher.serving.engine import ServingEngine


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, with the seconds to its first token and to its end. `tokens` is None where nobody says."""

    text: str
    first_token_s: float
    seconds: float
    tokens: int | None

    @property
    def tokens_per_s(self) -> float | None:
        """The rate of decoding alone, without the first token, which waits for the whole prompt; None where unknown."""
        decoding = self.seconds - self.first_token_s
        return (self.tokens - 1) / decoding if self.tokens and self.tokens > 1 and decoding > 0 else None


def measure(engine: ServingEngine, prompt: str) -> Answer:
    """Ask `prompt`, as a chat where the model knows chats, with the config's sampling, streaming."""
    conf = engine.config.sampling
    sampling = Sampling(conf.max_tokens, conf.temperature, conf.top_p, conf.top_k, tuple(conf.stop), conf.seed)
    chat = engine.plan.chat
    request = GenerateRequest(
        prompt=None if chat else prompt,
        messages=({"role": "user", "content": prompt},) if chat else None,
        sampling=sampling,
        stream=True,
        usage=True,
    )
    began = time.monotonic()
    first: float | None = None
    text, counts = "", []
    for chunk in engine.chunks(request):
        if chunk.text and first is None:
            first = time.monotonic() - began
        text += chunk.text
        if chunk.completion_tokens is not None:
            counts.append(chunk.completion_tokens)
    elapsed = time.monotonic() - began
    # OpenAI's servers give the total once; Triton's vLLM tensors give each answer's own count.
    return Answer(text, elapsed if first is None else first, elapsed, sum(counts) if counts else None)


def ask(engine: ServingEngine, prompt: str) -> None:
    """Ask `prompt`, print the answer to stdout, and say how long each stage took."""
    with engine.progress.stage("answer", engine.plan.model.id):
        answer = measure(engine, prompt)
    sys.stdout.write(f"{answer.text.strip()}\n")
    sys.stdout.flush()
    took = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in engine.progress.seconds.items())
    rate = f", {answer.tokens_per_s:.0f} tokens/s" if answer.tokens_per_s else ""
    engine.progress.note(f"took: {took} (first token {answer.first_token_s:.2f} s{rate})")
