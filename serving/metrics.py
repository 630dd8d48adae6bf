"""What /metrics tells, in Prometheus' text format."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one server. Names begin with `minimind_`; times are in seconds."""

    def __init__(self):
        self.registry = CollectorRegistry()

        def make(kind, name: str, text: str, labels: tuple[str, ...] = (), **more):
            return kind(f"minimind_{name}", text, labels, registry=self.registry, **more)

        self.responses = make(
            Counter, "responses", "Answers by route and status", ("route", "status")
        )
        self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of prompts", ("model",))
        self.cached_tokens = make(
            Counter, "cached_prompt_tokens", "… that were not computed again", ("model",)
        )
        self.generated = make(Counter, "generated_tokens", "Tokens of answers", ("model",))
        self.first_token = make(
            Histogram, "first_token_seconds", "From the request to its first token", ("model",),
            buckets=SECONDS,
        )  # fmt: skip
        self.seconds = make(
            Histogram, "answer_seconds", "From the request to its end", ("model",), buckets=SECONDS
        )
        self.sequences = make(Gauge, "sequences", "Sequences being answered or waiting")
        self.rows = make(
            Gauge, "rows_in_use", "Rows of the cache being answered or read", ("model",)
        )

    def count(self, job):
        """A job has ended, in whatever way."""
        name = job.model.name
        self.prompt_tokens.labels(name).inc(len(job.requests[0].prompt))
        self.cached_tokens.labels(name).inc(job.requests[0].cached)
        self.generated.labels(name).inc(sum(len(request.tokens) for request in job.requests))
        if job.first_token is not None:
            self.first_token.labels(name).observe(job.first_token)
        self.seconds.labels(name).observe(time.perf_counter() - job.begun)

    def text(self, worker) -> bytes:
        self.sequences.set(worker.sequences)
        for name, count in worker.rows.items():
            self.rows.labels(name).set(count)
        return generate_latest(self.registry)
