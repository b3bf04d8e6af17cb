"""What the user chose is checked in one place, and refused in one line."""

import pytest
from kombu.compression import compress, decompress
from kombu.serialization import dumps, loads

from celery_kit.base.choices import COMPRESSIONS, SERIALIZERS
from celery_kit.brokers import BROKERS
from celery_kit.profile import Profile


def profile(**environ: str) -> Profile:
    return Profile.from_environ({"CELERY_BROKER_URL": "redis://127.0.0.1:1", **environ})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BROKER": "kafka"}, f"BROKER=kafka is not known; allowed: {', '.join(BROKERS)}"),
        ({"BACKEND": "db"}, "BACKEND=db is not known; allowed: redis, rpc"),
        ({"ENGINE": "warp"}, "ENGINE=warp is not known; allowed: fast, plain"),
        ({"POOL": "fork"}, "POOL=fork is not known; allowed: prefork, eventlet, gevent, threads, solo"),
        (
            {"CELERY_BROKER_URL": "tin://"},
            "CELERY_BROKER_URL begins with tin:, which is not known; allowed: amqp, ",
        ),
        ({"CELERY_RESULT_BACKEND": "tape://"}, "CELERY_RESULT_BACKEND begins with tape:, which is not known; allowed: redis, "),
        (
            {"BROKER": "redis", "CELERY_BROKER_URL": "redis://a;amqp://b"},
            "CELERY_BROKER_URL, which begins with amqp:, redis:",
        ),
        ({"BROKER": "rabbitmq"}, "BROKER=rabbitmq contradicts CELERY_BROKER_URL, which begins with redis:"),
        ({"TIMEZONE": "Mars/Olympus"}, "TIMEZONE=Mars/Olympus is not known"),
        ({"TIMEZONE": "../etc/passwd"}, "TIMEZONE=../etc/passwd is not known"),
        ({"BEATS": "0"}, "BEATS=0 is not allowed; a whole number from 1 to 9"),
        ({"BEATS": "two"}, "BEATS=two is not allowed; a whole number from 1 to 9"),
        ({"TASK_TIME_LIMIT": "soon"}, "TASK_TIME_LIMIT=soon is not allowed; a whole number from 0 to 86400 seconds"),
        ({"TASK_TIME_LIMIT": "-1"}, "TASK_TIME_LIMIT=-1 is not allowed"),
        ({"WORKER_CONCURRENCY": "-1"}, "WORKER_CONCURRENCY=-1 is not allowed"),
        ({"TASK_SERIALIZER": "xml"}, "TASK_SERIALIZER=xml is not known; allowed: json, yaml, msgpack, pickle"),
        ({"ACCEPT_CONTENT": "json,xml"}, "ACCEPT_CONTENT=xml is not known"),
        ({"TASK_COMPRESSION": "rar"}, "TASK_COMPRESSION=rar is not known; allowed: zlib, bzip2, lzma, brotli, zstd"),
        ({"RESULT_COMPRESSION": "lz4"}, "RESULT_COMPRESSION=lz4 is not known; allowed: zlib, bzip2, lzma, brotli, zstd"),
        ({"STOP_GRACE_PERIOD": "100s"}, "STOP_GRACE_PERIOD=100s contradicts TASK_TIME_LIMIT=300: a stop would kill tasks that"),
        ({"STOP_GRACE_PERIOD": "100s"}, "leave it out, or choose 330s"),
        ({"STOP_GRACE_PERIOD": "soon"}, "STOP_GRACE_PERIOD=soon is not allowed"),
        ({"STOP_GRACE_PERIOD": "400"}, "STOP_GRACE_PERIOD=400 is not allowed; a time such as 5m30s, of at most a year"),
        ({"STOP_GRACE_PERIOD": "999999999999h"}, "is not allowed; a time such as 5m30s, of at most a year"),
        ({"TASK_TIME_LIMIT": "1", "STOP_GRACE_PERIOD": "1s500ms"}, "contradicts TASK_TIME_LIMIT=1"),
        ({"VISIBILITY_TIMEOUT": "31536001"}, "VISIBILITY_TIMEOUT=31536001 is not allowed; a number of s, or a time such as"),
        ({"VISIBILITY_TIMEOUT": "15"}, "VISIBILITY_TIMEOUT=15 contradicts WORKER_LEASE=15: workers of plain Celery would run"),
        ({"WORKER_LEASE": "3600", "VISIBILITY_TIMEOUT": "3600"}, "leave it out, or choose 3600s"),
        ({"WORKER_LEASE": "2"}, "WORKER_LEASE=2 is not allowed; a whole number from 3 to 3600 seconds"),
        ({"CONSUMER_TIMEOUT": "1000"}, "CONSUMER_TIMEOUT=1000 contradicts TASK_TIME_LIMIT=300"),
        ({"MAX_DELIVERIES": "21"}, "MAX_DELIVERIES=21 is not allowed; a whole number from 1 to 20"),
        ({"FAILED_MOST": "-1"}, "FAILED_MOST=-1 is not allowed; a whole number from 0 to 1000000 tasks"),
        ({"FAILED_EXPIRES": "7d"}, "FAILED_EXPIRES=7d is not allowed; a whole number from 1 to 31536000 seconds"),
        ({"DELIVERY": "exactly-once"}, "DELIVERY=exactly-once is not known; allowed: at-least-once, at-most-once"),
        ({"SECURITY_KEY": "/none"}, "not set: SECURITY_CERTIFICATE, SECURITY_CERT_STORE"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        profile(**environ)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celery-kit: ") and said in line


def test_celerys_own_names_win() -> None:
    chosen = profile(CELERY_BROKER_URL="amqp://me@elsewhere/x", CELERY_RESULT_BACKEND="redis://there/3", BACKEND="redis")
    assert (chosen.broker.name, chosen.broker_url) == ("rabbitmq", "amqp://me@elsewhere/x")
    assert (chosen.backend.name, chosen.result_backend) == ("redis", "redis://there/3")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://one;redis://two", "redis"),
        ("amqp://one;two", "rabbitmq"),
        ("redis+socket:///run/redis.sock", "redis"),
        ("sqs://", "sqs"),
        ("sentinel://one;sentinel://two", "redis-sentinel"),
        ("filesystem://", "filesystem"),
        ("amqp://one;redis://two", "amqp"),
    ],
)
def test_a_broker_that_celery_knows_is_not_refused(url: str, name: str) -> None:
    """Several, a socket, and what the kit has no room for: that is used as Celery uses it."""
    assert profile(CELERY_BROKER_URL=url).broker.name == name


@pytest.mark.parametrize("url", ["redis+socket:///run/redis.sock", "file:///tmp/results", "cache+memory://", "db+sqlite:///x"])
def test_a_result_backend_that_celery_knows_is_not_refused(url: str) -> None:
    chosen = profile(CELERY_RESULT_BACKEND=url)
    assert (chosen.backend.name, chosen.result_backend) == (url.partition(":")[0].partition("+")[0], url)


def test_roles_are_the_hosts_where_no_url_is_given() -> None:
    chosen = Profile.from_environ({"BROKER": "rabbitmq", "RABBITMQ_DEFAULT_PASS": "p@ss/word"})
    assert chosen.broker_url == "amqp://kit:p%40ss%2Fword@broker:5672/kit"
    assert chosen.result_backend == "redis://results:6379/1"


def test_an_empty_variable_is_no_choice() -> None:
    assert profile(POOL="", TIMEZONE="", BROKER="") == profile()


def test_json_alone_is_accepted_unless_another_is_named() -> None:
    assert profile().accept_content == ("json",)
    assert profile(TASK_SERIALIZER="pickle").accept_content == ("pickle",)
    assert profile(ACCEPT_CONTENT="json, pickle").accept_content == ("json", "pickle")


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_is_installed(name: str) -> None:
    chosen = profile(TASK_COMPRESSION=name, RESULT_COMPRESSION=name)
    assert chosen.task_compression == chosen.result_compression == name
    assert decompress(*compress(b"text" * 100, name)) == b"text" * 100


@pytest.mark.parametrize("name", SERIALIZERS)
def test_every_serializer_is_installed(name: str) -> None:
    assert profile(TASK_SERIALIZER=name).serializer == name
    kind, encoding, body = dumps([1, "ü"], serializer=name)
    assert loads(body, kind, encoding, accept={kind}) == [1, "ü"]


@pytest.mark.parametrize(
    ("given", "number"), [({}, "auto"), ({"WORKER_CONCURRENCY": "auto"}, "auto"), ({"WORKER_CONCURRENCY": "3"}, 3)]
)
def test_celerys_own_word_for_the_number_of_tasks_at_once_is_taken(given: dict[str, str], number: object) -> None:
    assert profile(**given).concurrency == number


def test_nothing_is_compressed_unless_told() -> None:
    assert (profile().task_compression, profile().result_compression) == (None, None)
