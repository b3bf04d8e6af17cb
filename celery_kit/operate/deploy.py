"""The commands that bring workers to other machines: images, a registry, one version beside another."""

import os
import sys

import click

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.operate import contract as contracts
from celery_kit.operate.options import codebase_options, python_option
from celery_kit.operate.stacks import codebase as codebases
from celery_kit.operate.stacks import registry as registries
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
@codebase_options
def contract(base: str | None, workers_first: bool, codebase: codebases.Codebase | None) -> None:
    """Check that workers of this code and those of a git ref can run each other's messages. Exits with 1 if not."""
    if not base:
        refuse("BASE is missing; for example: make contract BASE=origin/main")
    sys.exit(contracts.check(base, codebase, workers_first))


COMMANDS = (images, push, contract)
