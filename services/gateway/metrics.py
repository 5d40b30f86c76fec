"""The metrics page: plain counts, collected when Prometheus asks, never while ticks pass.

Everything is read from the same figures that `/api/providers/status` shows, so the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from services.base_provider import ProviderState
from services.gateway.backend import GatewayBackend
from services.gateway.depth_metrics import depth_metrics


class MetricsPage:
    """Renders the metrics of the daemon behind a gateway; `clients()` returns those of its own side."""

    def __init__(self, backend: GatewayBackend, clients: Callable[[], dict[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_DaemonCollector(backend, clients))

    def render(self) -> tuple[bytes, str]:
        """Return the page and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _DaemonCollector(Collector):
    def __init__(self, backend: GatewayBackend, clients: Callable[[], dict[str, Any]]) -> None:
        self._backend = backend
        self._clients = clients

    def describe(self) -> Iterator[Metric]:
        # Nothing is known before the daemon runs; without this the registry would collect at once.
        return iter(())

    def collect(self) -> Iterator[Metric]:
        pipeline = self._backend.pipeline_status()
        yield _gauge("marketd_demo", "1 when all data is made by the simulators.", int(self._backend.demo))
        yield _gauge("marketd_ready", "1 when data can flow.", int(self._backend.readiness().ready))
        if "lease" in pipeline:
            leads = int(pipeline["lease"]["role"] == "leading")
            yield _gauge("marketd_leading", "1 while this daemon is the one that writes.", leads)
        yield from _providers(self._backend.provider_status())
        yield from _ledger(pipeline.get("ledger", {}))
        yield from _accounts(pipeline.get("accounts", []))
        yield from _sinks(pipeline.get("sinks", []))
        yield from _streams(pipeline.get("streams", {}))
        yield from depth_metrics(pipeline.get("depth", {}))
        yield from _tasks(pipeline.get("tasks", []))
        yield from _process(pipeline.get("process", {}))
        clients = self._clients()
        yield _hops({**pipeline.get("hops", {}), "accepted_to_client": clients.get("delivered_within")})
        yield from _gateway(clients)


def _providers(statuses: list[dict[str, Any]]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "marketd_provider_state", "1 for the present state.", labels=["provider", "state"]
    )
    gauges = {
        "connections": "Open connections.",
        "subscribed": "Instruments asked for.",
        "instruments_live": "Instruments with a tick within a minute.",
        "ticks_per_s": "Ticks passed on per second, over the last seconds.",
    }
    families = {
        name: GaugeMetricFamily(f"marketd_provider_{name}", text, labels=["provider"])
        for name, text in gauges.items()
    }
    last = GaugeMetricFamily(
        "marketd_provider_last_tick_timestamp_seconds", "When the newest tick came.", labels=["provider"]
    )
    latency = GaugeMetricFamily(
        "marketd_provider_latency_seconds",
        "From the event's time to its receipt, over the last ticks.",
        labels=["provider", "quantile"],
    )
    reconnects = CounterMetricFamily(
        "marketd_provider_reconnects", "Connections made anew.", labels=["provider"]
    )
    for status in statuses:
        code = str(status["code"])
        for candidate in ProviderState:
            state.add_metric([code, candidate.value], int(status["state"] == candidate.value))
        for name, family in families.items():
            family.add_metric([code], status[name] or 0)
        if status["last_tick_ms"]:
            last.add_metric([code], status["last_tick_ms"] / 1000)
        for quantile, name in (("0.5", "p50"), ("0.99", "p99")):
            value_ms = status["latency_ms"][name]
            if value_ms is not None:
                latency.add_metric([code, quantile], value_ms / 1000)
        reconnects.add_metric([code], status["reconnects"] or 0)
    yield from (state, *families.values(), last, latency, reconnects)


def _ledger(ledger: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    records = CounterMetricFamily(
        "marketd_provider_records",
        "What became of frames and records, by the step that counted them.",
        labels=["provider", "step"],
    )
    reasons = CounterMetricFamily(
        "marketd_provider_remarks",
        "Frames and records that were refused or remarked on, by reason.",
        labels=["provider", "step", "reason"],
    )
    for code, account in ledger.items():
        for step, value in account.items():
            if isinstance(value, Mapping):
                for reason, count in value.items():
                    reasons.add_metric([code, step, reason], count)
            else:
                records.add_metric([code, step], value)
    yield from (records, reasons)


def _accounts(accounts: list[dict[str, Any]]) -> Iterator[Metric]:
    imbalance = GaugeMetricFamily(
        "marketd_ledger_imbalance", "Frames or records unaccounted for just now.", labels=["account"]
    )
    fault = GaugeMetricFamily(
        "marketd_ledger_fault",
        "1 when an account has not balanced for seconds: a defect.",
        labels=["account"],
    )
    for account in accounts:
        imbalance.add_metric([account["account"]], account["imbalance"])
        fault.add_metric([account["account"]], int(account["fault"]))
    yield from (imbalance, fault)


def _sinks(sinks: list[dict[str, Any]]) -> Iterator[Metric]:
    records = CounterMetricFamily(
        "marketd_sink_records", "What became of the records a sink was offered.", labels=["sink", "outcome"]
    )
    lost = CounterMetricFamily(
        "marketd_sink_lost", "Records dropped or refused, by reason.", labels=["sink", "outcome", "reason"]
    )
    queued = GaugeMetricFamily("marketd_sink_queued", "Records that are not settled yet.", labels=["sink"])
    spooled = GaugeMetricFamily("marketd_sink_spooled", "Records waiting on disk.", labels=["sink"])
    imbalance = GaugeMetricFamily(
        "marketd_sink_imbalance", "Records unaccounted for; anything but 0 is a bug.", labels=["sink"]
    )
    ready = GaugeMetricFamily("marketd_sink_ready", "1 when the sink can do its work.", labels=["sink"])
    for sink in sinks:
        name = str(sink["name"])
        for outcome in ("offered", "written", "collapsed", "already_written", "batches", "errors"):
            records.add_metric([name, outcome], sink[outcome])
        records.add_metric([name, "resent"], sink.get("resent", 0))
        for outcome in ("dropped", "rejected"):
            for reason, count in sink[outcome].items():
                lost.add_metric([name, outcome, reason], count)
        queued.add_metric([name], sink["queued"])
        spooled.add_metric([name], sink.get("spooled", 0))
        imbalance.add_metric([name], sink["imbalance"])
        ready.add_metric([name], int(sink["state"] == "ready"))
    yield from (records, lost, queued, spooled, imbalance, ready)


def _streams(streams: Mapping[str, Any]) -> Iterator[Metric]:
    entries = GaugeMetricFamily("marketd_stream_entries", "Entries in the stream.", labels=["exchange"])
    oldest = GaugeMetricFamily(
        "marketd_stream_oldest_timestamp_seconds", "When the oldest entry came.", labels=["exchange"]
    )
    for stream in streams.get("streams", ()):
        entries.add_metric([stream["exchange"]], stream["entries"])
        if stream["oldest_ms"] is not None:
            oldest.add_metric([stream["exchange"]], stream["oldest_ms"] / 1000)
    names = ["exchange", "group"]
    lag = GaugeMetricFamily("marketd_consumer_group_lag", "Entries not delivered yet.", labels=names)
    pending = GaugeMetricFamily(
        "marketd_consumer_group_pending", "Delivered, not acknowledged.", labels=names
    )
    idle = GaugeMetricFamily(
        "marketd_consumer_group_idle_seconds", "Since a consumer last asked.", labels=names
    )
    trimmed = GaugeMetricFamily(
        "marketd_consumer_group_trimmed", "1 while entries it never got are gone.", labels=names
    )
    lost = CounterMetricFamily(
        "marketd_consumer_group_lost", "Entries trimmed before the group got them.", labels=names
    )
    for group in streams.get("groups", ()):
        labels = [group["exchange"], group["group"]]
        if group["lag"] is not None:
            lag.add_metric(labels, group["lag"])
        pending.add_metric(labels, group["pending"])
        if group["idle_ms"] is not None:
            idle.add_metric(labels, group["idle_ms"] / 1000)
        trimmed.add_metric(labels, int(group["trimmed"]))
        lost.add_metric(labels, group["lost_total"])
    yield from (entries, oldest, lag, pending, idle, trimmed, lost)


def _tasks(tasks: list[dict[str, Any]]) -> Iterator[Metric]:
    restarts = CounterMetricFamily("marketd_task_restarts", "Restarts after a failure.", labels=["task"])
    alive = GaugeMetricFamily("marketd_task_alive", "1 while the task runs.", labels=["task"])
    for task in tasks:
        restarts.add_metric([task["name"]], task["restarts"])
        alive.add_metric([task["name"]], int(task["alive"]))
    yield from (restarts, alive)


def _process(figures: dict[str, Any]) -> Iterator[Metric]:
    gauges = {
        "rss_bytes": "Resident memory of the daemon.",
        "memory_limit_bytes": "Memory it may use.",
        "memory_budget_bytes": "What its queues and outboxes can hold at most.",
        "memory_pressure": "1 while new clients are refused for want of memory.",
        "open_descriptors": "Open file descriptors.",
        "descriptor_limit": "How many it may open.",
    }
    for name, text in gauges.items():
        if name in figures:
            yield _gauge(f"marketd_process_{name}", text, float(figures[name]))
    dropped = CounterMetricFamily("marketd_log_lines_dropped", "Log lines not written for want of room.")
    dropped.add_metric([], figures.get("log_lines_dropped", 0))
    yield dropped


def _hops(hops: Mapping[str, Any]) -> Metric:
    family = HistogramMetricFamily(
        "marketd_hop_seconds",
        "How long sampled records took from one hop to the next; by sink until it was written, and until "
        "the socket of a client with every tick took it.",
        labels=["hop"],
    )
    for hop, times in hops.items():
        if times is not None:
            ends = [*map(str, times["le"]), "+Inf"]
            family.add_metric([hop], list(zip(ends, times["counts"], strict=True)), times["sum_s"])
    return family


def _gateway(clients: dict[str, Any]) -> Iterator[Metric]:
    yield _gauge(
        "marketd_clients", "Clients connected, over WebSocket and as event streams.", clients["connected"]
    )
    yield _gauge("marketd_client_subscriptions", "Instruments watched, over all clients.", clients["watched"])
    yield _gauge(
        "marketd_client_lag_seconds", "How far the slowest client reads behind.", clients["lag_ms_max"] / 1000
    )
    kinds = GaugeMetricFamily(
        "marketd_clients_of_protocol", "Clients connected, by the protocol they speak.", labels=["protocol"]
    )
    lags = GaugeMetricFamily(
        "marketd_clients_of_protocol_lag_seconds",
        "How far the slowest client of a protocol reads behind.",
        labels=["protocol"],
    )
    for protocol, figures in clients["by_protocol"].items():
        kinds.add_metric([protocol], figures["connected"])
        lags.add_metric([protocol], figures["lag_ms_max"] / 1000)
    yield from (kinds, lags)
    counts = {
        "accepted": "WebSocket clients accepted.",
        "refused": "WebSocket clients refused at the handshake.",
        "frames_out": "Frames sent to clients.",
        "bytes_out": "Bytes sent to clients.",
        "messages_in": "Messages from clients.",
        "skipped": "Messages lost to a client's own slowness.",
    }
    for name, text in counts.items():
        family = CounterMetricFamily(f"marketd_client_{name}", text)
        family.add_metric([], clients[name])
        yield family
    closed = CounterMetricFamily("marketd_client_closed", "Clients gone, by close code.", labels=["code"])
    for code, count in clients["closed_by_code"].items():
        closed.add_metric([str(code)], count)
    yield closed
    refused = CounterMetricFamily("marketd_http_refused", "HTTP requests refused, by code.", labels=["code"])
    for code, count in clients["http_refused"].items():
        refused.add_metric([str(code)], count)
    yield refused


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
