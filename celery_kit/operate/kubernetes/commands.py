"""`make k8s`, `make k8s-secrets`, `make k8s-check`."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from celery_kit.base.choices import TASK_TIME_LIMIT, beats
from celery_kit.base.choices import secure as secured
from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate import groups, options
from celery_kit.operate.groups import Group
from celery_kit.operate.kubernetes.check import check
from celery_kit.operate.kubernetes.render import HOME, OUT, URLS, Wanted, notes, write
from celery_kit.operate.kubernetes.secrets import manifest
from celery_kit.operate.options import backend_option, broker_option, codebase_options, json_option, pool_option, python_option
from celery_kit.operate.stacks import codebase as codebases
from celery_kit.operate.stacks import registry as registries
from celery_kit.operate.stacks.images import image, settings, unversioned

#: Where Prometheus' operator has it by itself.
PROMETHEUS = "http://prometheus-operated.monitoring:9090"

out_option = click.option("--out", envvar="OUT", default=OUT, show_default=True, help="the folder")
namespace_option = click.option("--namespace", envvar="NAMESPACE", default="", help="of all objects; default: kubectl's own")
secure_option = click.option(
    "--secure", envvar="SECURE", help="1: TLS between all parts; mutual: with certificates on both sides"
)


@click.command()
@broker_option
@pool_option
@backend_option
@python_option
@secure_option
@click.option("--scale", type=click.IntRange(1, groups.MOST_WORKERS), default=1, envvar="SCALE", help="how many workers")
@click.option("--monitor", is_flag=True, envvar="MONITOR", help="metrics and Flower, for Prometheus' operator")
@click.option("--egress", is_flag=True, envvar="EGRESS", help="workers may reach more than the servers, such as the internet")
@click.option(
    "--autoscale", is_flag=True, envvar="AUTOSCALE", help="groups between their min and max, by KEDA; needs --monitor"
)
@click.option(
    "--prometheus", envvar="PROMETHEUS_URL", default=PROMETHEUS, show_default=True, help="where KEDA asks for metrics"
)
@click.option("--pins", envvar="PINS", default="", help="the images that a file of 'make push' names")
@click.option("--registry", envvar="REGISTRY", default="", help="the images of 'make push REGISTRY=… TAG=…', by tag")
@click.option("--tag", envvar="TAG", default="", help="a version, at the end of the images' tags")
@namespace_option
@out_option
@codebase_options
def k8s(
    broker: str,
    pool: str,
    backend: str,
    secure: str | None,
    scale: int,
    monitor: bool,
    egress: bool,
    autoscale: bool,
    prometheus: str,
    pins: str,
    registry: str,
    tag: str,
    namespace: str,
    out: str,
    codebase: codebases.Codebase | None,
) -> None:
    """Write a folder for `kubectl apply -k`: brokers, worker groups, beat, and what a cluster should know of them."""
    own = [name for name in URLS if settings().get(name)]
    if URLS[0] not in own:
        choose("BROKER", broker, [name for name in BROKERS if (HOME / "components/broker" / name).is_dir()])
    if (number := beats()) > 1:
        refuse(f"BEATS={number}: a rendered cluster has one beat, which Kubernetes starts again; take BEATS=1")
    if pins and registry:
        refuse("PINS names the images, and their registry; leave REGISTRY out")
    table = groups.read(codebases.code_of(codebase), pool, scale)
    workers = table.groups or (Group(pool=pool, scale=(scale, scale)),)
    for one in () if own else workers:  # a server of your own may be of another kind than BROKER
        options.check(broker, one, backend, TASK_TIME_LIMIT)
    if line := table.overruled(options.typed("pool", "scale")):
        click.echo(line, err=True)
    wanted = Wanted(
        broker,
        backend,
        workers,
        _images(workers, monitor, pins, registry, tag, codebase),
        secured({"SECURE": secure or ""}),
        monitor,
        autoscale,
        namespace,
        prometheus,
        own,
        egress,
    )
    write(folder := ROOT / out, wanted, settings())
    said = ", ".join(f"{one.name} on {one.pool}" if one.name else one.pool for one in workers)
    server = "a broker of your own" if URLS[0] in own else broker
    click.echo(f"{out}: {server}, {said}, results by {backend}")
    click.echo("".join(f"Note: {line}\n" for line in notes(wanted)), nl=False)
    code = codebase.noted() if codebase and codebase.env_file else {}
    given = {"NAMESPACE": namespace, "SECURE": secure, **{name.upper(): value for name, value in code.items()}}
    if own:
        click.echo(f"Note: {', '.join(own)}: of servers of your own, which are not rendered; k8s-secrets needs the same")
    typed = [f"{name}={value}" for name, value in given.items() if value]
    lines = [f"kubectl create namespace {namespace}"] * bool(namespace)
    lines += [f"{' '.join(['make k8s-secrets', *typed])} | kubectl create -f -", f"kubectl apply -k {_shown(folder)}"]
    click.echo("Next:\n" + "\n".join(f"  {line}" for line in [f"make k8s-check OUT={out}", *lines]))


def _images(
    workers: Sequence[Group], monitor: bool, pins: str, registry: str, tag: str, codebase: codebases.Codebase | None
) -> Mapping[str, str]:
    """The image of each service, by its name."""
    if pins:
        return registries.of_services(pins, workers, monitor)
    if registry:
        registries.check_name(registry, tag)
    names = {"beat": workers[0]} | {one.service: one for one in workers}
    found = {service: _image(one.pool, one.version or tag, registry, codebase) for service, one in names.items()}
    return found | {name: _image("monitor", tag, registry, codebase) for name in ("flower", "exporter") if monitor}


def _image(name: str, version: str, registry: str, codebase: codebases.Codebase | None) -> str:
    """The image of a pool or of the monitor: in a registry, or of this machine."""
    own = image(name, codebase)
    if not (registry or version):
        return own
    return f"{registry or own.rpartition(':')[0]}:{unversioned(name)}{version and f'-{version}'}"


def _shown(folder: Path) -> str:
    return os.path.relpath(folder, ROOT) if folder.is_relative_to(ROOT) else str(folder)


@click.command("k8s-secrets")
@secure_option
@namespace_option
@codebase_options
def k8s_secrets(secure: str | None, namespace: str, codebase: codebases.Codebase | None) -> None:
    """Print the Secrets that the folder names, with new random passwords, for `kubectl create -f -`."""
    from dotenv import dotenv_values  # installed where `make` runs, not in the images

    own = dotenv_values(codebase.env_file) if codebase and codebase.env_file else {}
    own |= {name: url for name in URLS if (url := settings().get(name))}
    click.echo(json.dumps(manifest(namespace, bool(secured({"SECURE": secure or ""})), own), indent=2))


@click.command("k8s-check")
@out_option
@json_option
def k8s_check(out: str, as_json: bool) -> None:
    """Check what a folder renders, without a cluster: schemas and rules. Exit code 1 if anything is wrong (make: 2)."""
    found = list(check(ROOT / out))
    if as_json:
        click.echo(json.dumps({"folder": out, "findings": [{"name": name, "what": what} for name, what in found]}))
        sys.exit(bool(found))
    for name, what in found:
        click.echo(f"{name}: {what}")
    if found:
        sys.exit(1)
    click.echo(f"{out}: renders, fits the schemas, and keeps every rule")


COMMANDS = (k8s, k8s_secrets, k8s_check)
