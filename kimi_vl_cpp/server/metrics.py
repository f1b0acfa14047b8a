"""Counters, gauges and histograms of one server, in Prometheus' text format, with vLLM's names behind `kimi_vl_`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from ..types import Response

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside every counter, which nobody reads

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_MASK_SECONDS = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
_ANSWERS = (1, 2, 4, 8, 16, 32, 64)


class _Counted(Collector):
    """A counter of which somebody else keeps the count."""

    def __init__(self, metrics: Metrics, name: str, text: str, value: Callable[[], int]) -> None:
        self._metrics, self._name, self._text, self._value = metrics, name, text, value

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=("model",))
        family.add_metric((self._metrics.model,), self._value())
        yield family


class Metrics:
    """per_key: counters of requests and tokens carry the name of the key."""

    def __init__(self, per_key: bool = False) -> None:
        self._per_key = per_key
        self.registry = CollectorRegistry()
        self.model = "kimi-vl"
        self._histograms: list[Histogram] = []
        extra = ("key",) if per_key else ()
        self._prompt = self._counter("prompt_tokens", "Positions of prompts.", *extra)
        self._generated = self._counter("generation_tokens", "Tokens of answers.", *extra)
        self._cached = self._counter(
            "prompt_tokens_cached", "Positions of prompts that were not computed again.", *extra
        )
        self._image = self._counter("image_tokens", "Positions of prompts that are pictures.", *extra)
        self._finished = self._counter("request_success", "Answers that ended.", "finished_reason", *extra)
        self._cancelled = self._counter("requests_cancelled", "Answers whose client left, by state.", "state")
        self._rejected = self._counter("requests_rejected", "Requests that were not taken.", "reason")
        self._closed = self._counter("thinking_closed", "Reasonings that were ended.", "reason")
        self._http = self._counter("http_requests", "HTTP requests.", "handler", "method", "status")
        self._first = self._histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self._gap = self._histogram("inter_token_latency_seconds", "Mean time between the tokens of an answer.")
        self._whole = self._histogram("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self._queue = self._histogram("request_queue_time_seconds", "Time that an answer waited to be computed.")
        self._prefill = self._histogram("request_prefill_time_seconds", "Time of computing a prompt.")
        self._decode = self._histogram("request_decode_time_seconds", "Time of computing the tokens after the first.")
        self._encode = self._histogram("image_encode_seconds", "Time of encoding the pictures of a prompt.")
        self._steps = self._counter("steps", "Decode steps.")
        self._mask = self._histogram(
            "mask_seconds", "Time of finding which tokens a grammar lets come next.", _MASK_SECONDS
        )
        self._batch = self._histogram("step_batch_size", "Answers that were decoded in one step.", _ANSWERS)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"kimi_vl_{name}", text, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        self._histograms.append(Histogram(f"kimi_vl_{name}", text, ("model",), registry=self.registry, buckets=buckets))
        return self._histograms[-1]

    def begin(self) -> None:
        """Shows what has no label but the model's from the start, at 0."""
        extra = ("-",) if self._per_key else ()
        for counter in (self._prompt, self._generated, self._cached, self._image):
            counter.labels(self.model, *extra)
        self._steps.labels(self.model)
        for histogram in self._histograms:
            histogram.labels(self.model)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is read."""
        gauge = Gauge(f"kimi_vl_{name}", text, ("model",), registry=self.registry)
        gauge.labels(self.model).set_function(value)

    def count(self, name: str, text: str, value: Callable[[], int]) -> None:
        """A number that only grows and that is asked for when it is read."""
        self.registry.register(_Counted(self, f"kimi_vl_{name}", text, value))

    def counter_of(self, name: str, text: str, names: Iterable[str] = ()) -> Counter:
        """A further counter."""
        return self._counter(name, text, *names)

    def answered(
        self, response: Response, key: str, queue_s: float, total_s: float, first_s: float, *, same_prompt: bool
    ) -> None:
        """An answer that ended, by itself or not. first_s: from its arrival to its first token, 0 without one.
        same_prompt: it is another answer to a prompt that is counted already."""
        usage, timings = response.usage, response.timings
        extra = (key or "-",) if self._per_key else ()
        self._generated.labels(self.model, *extra).inc(usage.completion_tokens)
        if not same_prompt:
            self._prompt.labels(self.model, *extra).inc(usage.prompt_tokens)
            self._cached.labels(self.model, *extra).inc(usage.cached_tokens)
            self._image.labels(self.model, *extra).inc(usage.image_tokens)
        self._finished.labels(self.model, response.finish_reason, *extra).inc()
        self._queue.labels(self.model).observe(queue_s)
        self._whole.labels(self.model).observe(total_s)
        self._prefill.labels(self.model).observe(timings.prefill_s)
        self._decode.labels(self.model).observe(timings.decode_s)
        if first_s:
            self._first.labels(self.model).observe(first_s)
        if usage.completion_tokens > 1:
            self._gap.labels(self.model).observe(timings.decode_s / (usage.completion_tokens - 1))
        if timings.encode_s:
            self._encode.labels(self.model).observe(timings.encode_s)

    def step(self, n: int) -> None:
        """A decode step of n answers."""
        self._steps.labels(self.model).inc()
        self._batch.labels(self.model).observe(n)

    def mask(self, seconds: float) -> None:
        """The mask of a grammar for one token."""
        self._mask.labels(self.model).observe(seconds)

    def cancelled(self, state: str) -> None:
        """An answer whose client left, or that was cancelled otherwise."""
        self._cancelled.labels(self.model, state).inc()

    def rejected(self, reason: str) -> None:
        """A request that was not taken."""
        self._rejected.labels(self.model, reason).inc()

    def thinking_closed(self, reason: str) -> None:
        """A reasoning that was ended before the model did."""
        self._closed.labels(self.model, reason).inc()

    def http(self, handler: str, method: str, status: int) -> None:
        """An HTTP request that was answered."""
        known = method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH") else "other"
        self._http.labels(self.model, handler, known, str(status)).inc()

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
