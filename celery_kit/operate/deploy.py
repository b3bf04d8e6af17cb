"""The commands that bring workers to other machines: images, a registry, versions, a Docker Swarm, Kubernetes."""

import json
import os
import sys

import click

from celery_kit.base.choices import TASK_TIME_LIMIT
from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate import contract as contracts
from celery_kit.operate import groups
from celery_kit.operate.kubernetes import commands as kubernetes
from celery_kit.operate.options import (
    backend_option,
    beats_option,
    broker_option,
    check,
    codebase_options,
    json_option,
    pool_option,
    python_option,
    typed,
    wanted,
)
from celery_kit.operate.stacks import codebase as codebases
from celery_kit.operate.stacks import registry as registries
from celery_kit.operate.stacks import swarm
from celery_kit.operate.stacks.images import build, image, image_size, prepare
from celery_kit.pools.table import POOLS


@click.command()
@click.option("--pool", "pools", type=click.Choice(list(POOLS)), multiple=True, envvar="POOL", help="default: all")
@click.option("--tag", envvar="TAG", help="a version, at the end of the images' tags, which their workers report: prefork-1.4")
@python_option
@codebase_options
def images(pools: tuple[str, ...], tag: str | None, codebase: codebases.Codebase | None) -> None:
    """Build the worker images, one tag a pool."""
    os.environ |= {"APP_VERSION": registries.checked(tag)} if tag else {}
    prepare()
    for pool in pools or POOLS:
        build(pool, codebase)
        click.echo(f"{image(pool, codebase):<27}{image_size(image(pool, codebase)) / 1e6:4.0f} MB")


@click.command()
@click.option("--registry", envvar="REGISTRY", help="host/name, such as registry.example.com/shop")
@click.option("--tag", envvar="TAG", default="", help="a version, at the end of the images' tags: gevent-1.4")
@click.option("--platforms", envvar="PLATFORMS", default="", help="linux/amd64,linux/arm64; default: this machine's")
@click.option("--pool", "pools", type=click.Choice(list(POOLS)), multiple=True, envvar="POOL", help="default: all")
@click.option("--pins", envvar="PINS", default=registries.PINS, show_default=True, help="the file to write: images by digest")
@python_option
@codebase_options
def push(
    registry: str | None, tag: str, platforms: str, pools: tuple[str, ...], pins: str, codebase: codebases.Codebase | None
) -> None:
    """Push the images to a registry, and write their digests to a file."""
    if not registry:
        refuse("REGISTRY is missing; for example: make push REGISTRY=registry.example.com/shop")
    wanted = platforms.replace(",", " ").split()
    registries.push(registry, tag or os.environ.get("APP_VERSION", ""), wanted, pools or tuple(POOLS), codebase, ROOT / pins)


@click.command()
@click.option("--base", envvar="BASE", help="a git ref: the code to compare with, such as origin/main")
@click.option("--workers-first", is_flag=True, envvar="WORKERS_FIRST", help="what sends tasks is updated after all workers")
@json_option
@codebase_options
def contract(base: str | None, workers_first: bool, as_json: bool, codebase: codebases.Codebase | None) -> None:
    """Check that workers of this code and those of a git ref can run each other's messages. Exit code 1 if not (make: 2)."""
    if not base:
        refuse("BASE is missing; for example: make contract BASE=origin/main")
    sys.exit(contracts.check(base, codebase, workers_first, as_json))


@click.command()
@broker_option
@pool_option
@backend_option
@python_option
@click.option("--scale", type=click.IntRange(1, 1000), default=1, envvar="SCALE", show_envvar=True, help="how many workers")
@beats_option
@click.option("--monitor", is_flag=True, envvar="MONITOR", help="start Flower, metrics and alerts too")
@click.option("--queues", envvar="QUEUES", help="the queues that the workers consume, between commas")
@click.option("--secure", envvar="SECURE", expose_value=False, help="1: TLS between all parts; mutual: on both sides")
@click.option("--pins", envvar="PINS", default="", help="the file of 'make push' with the images")
@click.option("--stack", "name", envvar="STACK", default="celery-kit", show_default=True, help="the stack's name in the swarm")
@click.option("--renew", is_flag=True, envvar="RENEW", help="with new passwords of the servers")
@click.option("--look", is_flag=True, envvar="LOOK", help="print what runs, and change nothing")
@click.option("--down", is_flag=True, envvar="DOWN", help="take it down; its data stays")
@json_option
@codebase_options
def stack(
    broker: str,
    pool: str,
    backend: str,
    scale: int,
    monitor: bool,
    queues: str | None,
    pins: str,
    name: str,
    renew: bool,
    look: bool,
    down: bool,
    as_json: bool,
    codebase: codebases.Codebase | None,
) -> None:
    """Start a stack on the Docker Swarm that this engine manages, or replace what has changed of it."""
    contained = [f"BROKER={one.name}" for one in BROKERS.values() if one.compose_file and len(one.hosts) == 1]
    if not (down or look) and f"BROKER={broker}" not in contained:
        refuse(f"a swarm runs containers, and of a broker one; give {' or '.join(contained)}")
    if not (down or look or pins):
        refuse("PINS is missing: the nodes get their images from a registry. 'make push REGISTRY=…' writes PINS=pins.json")
    if as_json and not look:
        refuse("JSON=1 is for LOOK=1, which prints what runs")
    swarm.check(name)
    if as_json:
        swarm.refuse_unless_there(name)
        click.echo(json.dumps({"stack": name, "services": [one._asdict() for one in swarm.services(name)]}))
        return
    if down or look:
        click.echo(swarm.remove(name) if down else "\n".join(swarm.look(name)))
        return
    table, workers = wanted(pool, scale, queues, codebase)
    for group in workers:
        check(broker, group, backend, TASK_TIME_LIMIT)
    if line := table.overruled(typed("pool", "scale", "queues")):
        click.echo(line, err=True)
    lines = swarm.deploy(name, broker, workers, backend, codebase, ["monitor"] * monitor, pins, renew)
    click.echo(f"\n{broker}, results by {backend}{f', {codebase.app}' if codebase else ''}: the stack {name} is healthy")
    click.echo("\n".join(f"  {line}" for line in lines))
    click.echo("".join(f"Groups: {line}\n" for line in groups.notes(table, (), {}, contained=True)), nl=False)
    click.echo(f"""Next:
  make stack LOOK=1 STACK={name}    docker service logs {name}_{workers[0].service}    make stack DOWN=1 STACK={name}""")


COMMANDS = (images, push, contract, stack, *kubernetes.COMMANDS)
