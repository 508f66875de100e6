"""What Prometheus is told of a service."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """registry: of a service's own, so that there can be several in a process."""

    def __init__(self):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        prefix = "biglearn_service_"
        self.seconds = Histogram(
            f"{prefix}request_seconds",
            "From the last byte of a request to the first of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            f"{prefix}requests", "Requests answered, by their HTTP status.", ["route", "status"], registry=registry
        )
        self.batch_images = Histogram(
            f"{prefix}batch_images", "Images computed at once.", ["model"], buckets=_IMAGES, registry=registry
        )
        self.waiting_images = Gauge(
            f"{prefix}waiting_images", "Images that wait for their turn.", ["model"], registry=registry
        )
        self.most_waiting_images = Gauge(
            f"{prefix}most_waiting_images", "Images that may wait.", ["model"], registry=registry
        )
