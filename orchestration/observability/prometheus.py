"""A run's numbers where Prometheus finds them: with Ray's own metrics, or at an address of this process.

Both take counters by what they have grown: a number that falls (a reward server that was restarted counts anew from its
last state) holds its counter where it is until it is passed again.
"""

import socket
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from orchestration.errors import MetricsError
from orchestration.observability.names import FAMILIES, METRICS, RUN_LABELS, Kind, Metric, Sample

HOST = "127.0.0.1"
"""Numbers of a run are nobody else's business unless somebody says so with a proxy in front."""


class Exporter(Protocol):
    """Something that Prometheus reads."""

    url: str | None
    """Where; None where that is not known."""

    def export(self, samples: Iterable[Sample]) -> None: ...

    def close(self) -> None: ...


class RayExport:
    """Hands numbers to Ray, whose agent on this machine exports them with `ray_` before their names.

    Needs a process that has joined a cluster. Ray sends them every few seconds; the series end some 20 s after the process.
    """

    def __init__(self, run: str, env: str) -> None:
        self._run_labels = dict(zip(RUN_LABELS, (run, env), strict=True))
        self._metrics: dict[str, Any] = {}
        self._counted: dict[str, float] = {}
        self.url = _agent_url()

    def export(self, samples: Iterable[Sample]) -> None:
        """Sets gauges, and adds to counters what they have grown by."""
        for sample in samples:
            metric = self._metrics.get(sample.metric.name) or self._make(sample.metric)
            tags = {**self._run_labels, **dict(zip(sample.metric.labels, sample.labels, strict=True))}
            if sample.metric.kind is Kind.GAUGE:
                metric.set(sample.value, tags)
                continue
            grown = sample.value - self._counted.get(sample.metric.name, 0.0)
            if grown > 0:
                self._counted[sample.metric.name] = sample.value
                metric.inc(grown, tags)

    def _make(self, metric: Metric) -> Any:
        from ray.util import metrics as ray_metrics

        kind = ray_metrics.Counter if metric.kind is Kind.COUNTER else ray_metrics.Gauge
        made = kind(metric.name, description=metric.help, tag_keys=(*RUN_LABELS, *metric.labels))
        self._metrics[metric.name] = made
        return made

    def close(self) -> None:
        """Nothing: Ray's agent forgets the process by itself."""


def _agent_url() -> str | None:
    """Where Ray's agent on this machine exports, as Ray tells."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and node.get("MetricsExportPort", -1) > 0:
            return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return None


class Endpoint:
    """Serves the newest numbers over HTTP on `HOST`, from a thread. Raises `MetricsError` for a port that is taken."""

    def __init__(self, port: int, run: str, env: str) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._run_labels = (run, env)
        self._newest: dict[tuple[str, tuple[str, ...]], float] = {}
        registry = CollectorRegistry(auto_describe=False)
        try:
            self._server, self._thread = start_http_server(port, addr=HOST, registry=registry)
        except OSError as error:
            raise taken(port) from error
        registry.register(self)  # pyright: ignore[reportArgumentType]  (a collector is what has `collect`)
        self.url: str | None = f"http://{HOST}:{port}/metrics"

    def export(self, samples: Iterable[Sample]) -> None:
        """Replaces what is served. What a line does not tell stays as it was."""
        newest = dict(self._newest)
        for sample in samples:
            key = (sample.metric.name, sample.labels)
            falls = sample.metric.kind is Kind.COUNTER and sample.value < newest.get(key, 0.0)
            newest[key] = newest[key] if falls else sample.value
        self._newest = newest  # As one assignment: the server's threads read it.

    def collect(self) -> Iterator[Any]:
        """What the client library asks for at each request."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        newest = self._newest
        for metric in (*METRICS, *FAMILIES):
            kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=(*RUN_LABELS, *metric.labels))
            for (name, labels), value in newest.items():
                if name == metric.name:
                    family.add_metric((*self._run_labels, *labels), value)
            if family.samples:
                yield family

    def close(self) -> None:
        """Ends the server and its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def check_port(port: int, host: str) -> None:
    """Raises `MetricsError` where nobody could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise taken(port) from error


def taken(port: int) -> MetricsError:
    """The error for a port that cannot be listened on."""
    return MetricsError(f"metrics.port={port}: is taken or not allowed on this machine; choose another")
