"""A page of Prometheus' text format as numbers."""

from __future__ import annotations

import pytest

from engines.base import InferenceError
from launcher.serving import metrics

PAGE = """\
# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{version="1",model="m"} 3
# TYPE up gauge
up 1.5
"""


def test_samples_are_named_with_their_labels_in_order() -> None:
    assert metrics.parse(PAGE, "u") == {'nv_inference_count{model="m",version="1"}': 3.0, "up": 1.5}


def test_another_page_is_no_metrics() -> None:
    with pytest.raises(InferenceError, match="http://x is not in Prometheus' text format"):
        metrics.parse("<html>\n", "http://x")


def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(InferenceError, match=r"no metrics from http://127\.0\.0\.1:1/metrics: "):
        metrics.scrape("http://127.0.0.1:1/metrics", None, 1)
