"""Read an engine's own numbers from its page in Prometheus' text format."""

from __future__ import annotations

from engines.base import InferenceError


def scrape(url: str, bearer: str | None, timeout_s: float) -> dict[str, float]:
    """Return every sample of the page at `url`, by name and labels. Raises `InferenceError` if there is none."""
    import requests

    session = requests.Session()
    session.trust_env = False  # a proxy has no place between us and a server on this machine
    try:
        with session:
            answer = session.get(
                url, headers={"Authorization": f"Bearer {bearer}"} if bearer else {}, timeout=timeout_s
            )
    except requests.RequestException as exc:
        raise InferenceError(f"no metrics from {url}: {exc}") from exc
    if answer.status_code != 200:
        raise InferenceError(f"no metrics from {url}: {answer.text[:300].strip()}", answer.status_code)
    return parse(answer.text, url)


def parse(text: str, url: str) -> dict[str, float]:
    """Return the samples of a page: `name` or `name{label="value"}` → number."""
    from prometheus_client.parser import text_string_to_metric_families

    # Without the types: a counter would be given a new name, with `_total` at its end.
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    try:
        samples = [sample for family in text_string_to_metric_families(bare) for sample in family.samples]
    except ValueError as exc:
        raise InferenceError(f"{url} is not in Prometheus' text format: {exc}") from exc
    return {f"{sample.name}{_labels(sample.labels)}": float(sample.value) for sample in samples}


def _labels(labels: dict[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{inside}}}" if inside else ""
