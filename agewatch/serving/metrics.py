"""What the door counts, for Prometheus. The names are a contract."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

REQUESTS = Counter("agewatch_requests", "Answered requests.", ["path", "status"], registry=REGISTRY)
FACES = Counter("agewatch_faces", "Faces whose ages were answered.", registry=REGISTRY)
REFUSALS = Counter("agewatch_refusals", "Requests answered without ages.", ["code"], registry=REGISTRY)
UNDER_WAY = Gauge("agewatch_requests_under_way", "Requests with a token that are not answered yet.", registry=REGISTRY)
QUEUE = Histogram("agewatch_queue_seconds", "From a whole picture to its look.", buckets=_SECONDS, registry=REGISTRY)
DECODE = Histogram("agewatch_decode_seconds", "Decoding, cutting and measuring.", buckets=_SECONDS, registry=REGISTRY)
DETECT = Histogram("agewatch_detect_seconds", "Finding faces.", buckets=_SECONDS, registry=REGISTRY)
FORWARD = Histogram("agewatch_forward_seconds", "A call of TorchServe, a batch.", buckets=_SECONDS, registry=REGISTRY)
RESTARTS = Counter("agewatch_torchserve_restarts", "Starts of TorchServe after it ended.", registry=REGISTRY)
