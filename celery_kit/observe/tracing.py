"""Traces: with OTEL_TRACES_EXPORTER=otlp (or console), sending a task and running it are spans of one trace.

All other variables are OpenTelemetry's: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER … The extra
`tracing` installs the packages. Source: opentelemetry-python-contrib, "OpenTelemetry Celery Instrumentation".
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.versions import installed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORTERS = ("none", "otlp", "console")
PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation-celery")


def exporter(environ: Mapping[str, str] = os.environ) -> str:
    """The exporter that the environment names, of EXPORTERS. Refuses one that is unknown, or whose packages are missing."""
    kind = choose("OTEL_TRACES_EXPORTER", environ.get("OTEL_TRACES_EXPORTER") or "none", EXPORTERS)
    if kind != "none" and (missing := [name for name in PACKAGES if not installed(name)]):
        refuse(f"OTEL_TRACES_EXPORTER={kind} needs the packages of the extra `tracing`; not installed: {', '.join(missing)}")
    return kind


def connect() -> None:
    """Trace this process if the environment names an exporter and the process has no tracing yet. Refuses as `exporter`."""
    if (kind := exporter()) == "none":
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    # Its thread starts again in a forked child, so that prefork's children export their own spans.
    install(BatchSpanProcessor(OTLPSpanExporter()) if kind == "otlp" else SimpleSpanProcessor(ConsoleSpanExporter()))


def install(processor: "SpanProcessor") -> None:
    """Send this process's spans to `processor`."""
    from opentelemetry import trace
    from opentelemetry.instrumentation import celery
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    celery.CeleryInstrumentor().instrument(tracer_provider=provider)  # type: ignore[no-untyped-call]
