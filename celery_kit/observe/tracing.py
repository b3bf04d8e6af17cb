"""Traces, as an extra: with OTEL_TRACES_EXPORTER=otlp (or console) each task sent and each task run makes a span of one trace.

All else is OpenTelemetry's own: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER … The packages are the
extra `tracing`. Source: opentelemetry-python-contrib, "OpenTelemetry Celery Instrumentation".
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.versions import installed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORTERS = ("none", "otlp", "console")
PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation-celery")


def exporter(environ: Mapping[str, str] = os.environ) -> str:
    """Which one is chosen, of EXPORTERS. Refuses one that is not known, or whose packages are missing."""
    kind = choose("OTEL_TRACES_EXPORTER", environ.get("OTEL_TRACES_EXPORTER") or "none", EXPORTERS)
    if kind != "none" and (missing := [name for name in PACKAGES if not installed(name)]):
        refuse(f"OTEL_TRACES_EXPORTER={kind} needs the packages of the extra `tracing`; not installed: {', '.join(missing)}")
    return kind


def connect() -> None:
    """Trace where the environment says so, and the process has no tracing of its own by now. Refuses as `exporter` does."""
    if (kind := exporter()) == "none":
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    # Its thread starts anew in a forked child: prefork's children export their own.
    install(BatchSpanProcessor(OTLPSpanExporter()) if kind == "otlp" else SimpleSpanProcessor(ConsoleSpanExporter()))


def install(processor: "SpanProcessor") -> None:
    """Have this process' spans go to `processor`."""
    from opentelemetry import trace
    from opentelemetry.instrumentation import celery
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    instrumentor: Any = celery.CeleryInstrumentor
    instrumentor().instrument(tracer_provider=provider)
