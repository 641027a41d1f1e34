"""What a server tells Prometheus: its own names, and those that dashboards and load generators of other engines read.

Scraping has no side effects. Histograms reach to 480 s, so that an overloaded server does not hide in the last bucket.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from heliograph.serving.core.engine import EngineStats

__all__ = ["Metrics"]

TIME_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0),
)
FAMILIES = ("heliograph_", "vllm:")
GAUGES = {
    "num_requests_running": "Requests that take part in steps.",
    "num_requests_waiting": "Requests that wait for a step or for keys and values.",
    "kv_cache_usage_perc": "Share of the cache's blocks that are held, 0 to 1.",
}
COUNTERS = {
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "num_preemptions": "Requests whose blocks were taken away.",
    "prompt_tokens": "Prompt tokens computed.",
    "generation_tokens": "Tokens drawn.",
}
HISTOGRAMS = {
    "time_to_first_token_seconds": "From arrival to the first token.",
    "inter_token_latency_seconds": "Between two tokens of a request.",
    "e2e_request_latency_seconds": "From arrival to the end.",
}


class Metrics:
    """All metrics of a server, each under every family of names.

    Args:
        model: the label ``model_name``.
    """

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model}
        self._gauges = {name: self._make(Gauge, name, text) for name, text in GAUGES.items()}
        self._counters = {name: self._make(Counter, name, text) for name, text in COUNTERS.items()}
        self._histograms = {
            name: self._make(Histogram, name, text, buckets=TIME_BUCKETS) for name, text in HISTOGRAMS.items()
        }
        self._finished = {
            family: Counter(
                f"{family}request_success",
                "Requests by the reason of their end.",
                [*self._labels, "finished_reason"],
                registry=self._registry,
            )
            for family in FAMILIES
        }
        self._seen = dict.fromkeys(COUNTERS, 0)

    def first_token(self, seconds: float) -> None:
        """A request's first token came so long after its arrival."""
        self._observe("time_to_first_token_seconds", seconds)

    def next_token(self, seconds: float) -> None:
        """A token came so long after the one before."""
        self._observe("inter_token_latency_seconds", seconds)

    def finished(self, seconds: float, reason: str) -> None:
        """A request ended so long after its arrival."""
        self._observe("e2e_request_latency_seconds", seconds)
        for counter in self._finished.values():
            counter.labels(**self._labels, finished_reason=reason).inc()

    def render(self, stats: EngineStats) -> bytes:
        """The text that Prometheus reads."""
        values = {
            "num_requests_running": stats.running,
            "num_requests_waiting": stats.waiting + stats.loading,
            "kv_cache_usage_perc": stats.kv_usage,
        }
        for name, value in values.items():
            for gauge in self._gauges[name]:
                gauge.set(value)
        totals = {
            "prefix_cache_queries": stats.queried_tokens,
            "prefix_cache_hits": stats.hit_tokens,
            "num_preemptions": stats.preemptions,
            "prompt_tokens": stats.prompt_tokens,
            "generation_tokens": stats.generated_tokens,
        }
        for name, total in totals.items():
            for counter in self._counters[name]:
                counter.inc(max(0, total - self._seen[name]))
            self._seen[name] = max(total, self._seen[name])
        return generate_latest(self._registry)

    def _make(self, kind: Any, name: str, text: str, **options: Any) -> list[Any]:
        labels = list(self._labels)
        return [
            kind(family + name, text, labels, registry=self._registry, **options).labels(**self._labels)
            for family in FAMILIES
        ]

    def _observe(self, name: str, seconds: float) -> None:
        for histogram in self._histograms[name]:
            histogram.observe(max(0.0, seconds))
