"""Describe what an app sends and what its workers take: `python -P interface.py`, one line of JSON, for `make contract`.

It runs as a file and imports nothing of the kit, because the app may be an earlier one, with the kit of its own time. With a
table of values on standard input - tasks, their parameters, values for Pydantic's models - it says instead which are refused.
It opens no connection.
"""

import inspect
import json
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TypedDict

if typing.TYPE_CHECKING:
    from celery import Celery

#: The most values that are made for one parameter.
MOST = 50
#: By task and parameter, values in JSON, and why some of them are refused.
Values = dict[str, dict[str, list[object]]]
Refusals = dict[str, dict[str, list[str]]]
#: A JSON schema.
Schema = Mapping[str, typing.Any]


class Parameter(TypedDict):
    """A parameter of a task, without `self`. `kind`: a number, as of inspect.Parameter. `default`: as text; None: required."""

    name: str
    kind: int
    default: str | None
    annotation: str


class Task(TypedDict):
    """A task. `content`, `compression`: content types of its messages; `queue`: empty if the app's own router fails."""

    parameters: list[Parameter]
    typing: bool
    ignore_result: bool
    content: str
    compression: str
    queue: str
    models: list[str]


class Entry(TypedDict):
    """An entry of beat's timetable. `queue`: empty for that of the task."""

    name: str
    task: str
    args: list[object]
    kwargs: dict[str, object]
    queue: str


class Interface(TypedDict):
    """What an app sends and takes. `accepts`, `decompresses`, `result`, `reads`: content types of tasks and of results.

    `queues`: how each is declared. `strict`: the broker refuses a queue that is there and declared otherwise.
    """

    tasks: dict[str, Task]
    beat: list[Entry]
    accepts: list[str]
    decompresses: list[str]
    result: str
    reads: list[str]
    consumed: list[str]
    queues: dict[str, dict[str, object]]
    strict: bool
    values: Values


def load() -> "Celery":
    """Import the app that CELERY_APP names, and all that its worker imports."""
    from celery.app.utils import find_app

    sys.path.insert(0, str(Path.cwd()))
    app: Celery = find_app(os.environ.get("CELERY_APP") or "app")
    app.loader.import_default_modules()
    app.finalize()
    return app


def own(app: "Celery") -> Iterator[tuple[str, typing.Any]]:
    """The app's tasks, by name, without Celery's."""
    return ((name, task) for name, task in sorted(app.tasks.items()) if not name.startswith("celery."))


def parameters(task: typing.Any) -> list[Parameter]:
    """Those of a task's function. One whose signature is not known takes anything."""
    try:
        found = inspect.signature(task.run).parameters.values()
    except (TypeError, ValueError):
        found = inspect.signature(lambda *args, **kwargs: None).parameters.values()
    empty = inspect.Parameter.empty
    return [
        Parameter(
            name=one.name,
            kind=int(one.kind),
            default=None if one.default is empty else _text(one.default),
            annotation="" if one.annotation is empty else _text(inspect.formatannotation(one.annotation)),
        )
        for one in found
    ]


def _text(value: object) -> str:
    """A value as text without its address, which differs from process to process."""
    text = value if isinstance(value, str) else repr(value)
    return re.sub(r" at 0x[0-9a-f]+", "", text)[:100]


def models(task: typing.Any) -> dict[str, typing.Any]:
    """By parameter, the Pydantic models that Celery validates the arguments with. Source: celery/app/base.py 5.7.0."""
    run = getattr(task, "_orig_run", task.run)
    run = getattr(run, "__func__", run)
    if not getattr(getattr(run, "__code__", None), "co_qualname", "").startswith("pydantic_wrapper."):
        return {}
    pydantic = sys.modules["pydantic"]  # Celery has imported it

    hints = typing.get_type_hints(run.__wrapped__)
    found = {name: [one for one in (typing.get_args(hint) or (hint,)) if inspect.isclass(one)] for name, hint in hints.items()}
    only = {name: next((one for one in kinds if issubclass(one, pydantic.BaseModel)), None) for name, kinds in found.items()}
    return {name: model for name, model in only.items() if model and name != "return"}


def values(schema: Schema, known: Schema) -> Iterator[object]:
    """Values that a JSON schema describes: for an object with as few and as many fields as it may have, and each choice."""
    if "$ref" in schema:
        yield from values(known[schema["$ref"].rpartition("/")[2]], known)
    elif "const" in schema:
        yield schema["const"]
    elif "enum" in schema:
        yield from schema["enum"]
    elif choices := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        for one in choices:
            yield from values(one, known)
    elif schema.get("type") == "object":
        fields = {name: list(islice(values(one, known), MOST)) for name, one in schema.get("properties", {}).items()}
        least = {name: fields[name][0] for name in schema.get("required", ())}
        yield least
        yield {name: some[0] for name, some in fields.items()}
        for name, some in fields.items():
            yield from ({**least, name: one} for one in some[1:] or some)
    elif schema.get("type") == "array":
        least_items = max(1, schema.get("minItems", 0))
        yield from ([one] * least_items for one in values(schema.get("items", {}), known))
    else:
        number = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        simple = {"integer": number, "number": number, "boolean": True, "null": None}
        formats = {"date": "2026-01-31", "date-time": "2026-01-31T12:00:00Z", "uuid": f"{0:08}-0000-4000-8000-{0:012}"}
        text = formats.get(schema.get("format", ""), "a" * max(1, schema.get("minLength", 0)))
        yield simple.get(schema.get("type", ""), text)


def reasons(model: typing.Any, value: object) -> list[str]:
    """Why a model refuses a value: the fields, each with what is wrong. Empty if it does not."""
    try:
        model.model_validate(value)
    except ValueError as error:
        found = error.errors() if hasattr(error, "errors") else [{"loc": (), "msg": str(error)}]
        return [": ".join(filter(None, (".".join(map(str, one["loc"])), " ".join(str(one["msg"]).split())))) for one in found]
    return []


def made(task: typing.Any) -> dict[str, list[object]]:
    """By parameter with a model, values that the model takes."""
    found = {}
    for name, model in models(task).items():
        schema = model.model_json_schema()
        found[name] = [one for one in islice(values(schema, schema.get("$defs", {})), MOST) if not reasons(model, one)]
    return found


def refused(app: "Celery", given: Values) -> Refusals:
    """Of values for the parameters of tasks, those that this app's models refuse."""
    found: Refusals = {}
    for name, task in own(app):
        for parameter, model in models(task).items():
            why = [reason for one in given.get(name, {}).get(parameter, ()) for reason in reasons(model, one)]
            if why:
                found.setdefault(name, {})[parameter] = list(dict.fromkeys(why))
    return found


def described(app: "Celery") -> Interface:
    """The app's description."""
    from kombu import compression, serialization

    conf, names = app.conf, vars(serialization)["registry"].name_to_type
    accepts = serialization.prepare_accept_content(conf.accept_content) or set()
    reads = serialization.prepare_accept_content(conf.result_accept_content) or accepts
    of_compression: Callable[[str], tuple[object, str]] = vars(compression)["get_encoder"]  # the stubs are wrong

    def kind(name: str) -> str:
        return str(names.get(name, name))

    def packed(name: str | None) -> str:
        return of_compression(name)[1] if name else ""

    tasks = {
        name: Task(
            parameters=parameters(task),
            typing=bool(task.typing),
            ignore_result=bool(task.ignore_result),
            content=kind(task.serializer or conf.task_serializer),
            compression=packed(getattr(task, "compression", None) or conf.task_compression),
            queue=queue(app, name, getattr(task, "queue", None)),
            models=sorted(models(task)),
        )
        for name, task in own(app)
    }
    return Interface(
        tasks=tasks,
        beat=list(timetable(app)),
        accepts=sorted(accepts),
        decompresses=sorted(compression.encoders()),
        result=kind(conf.result_serializer),
        reads=sorted(reads),
        consumed=sorted(app.amqp.queues.consume_from),
        queues={name: declared(one) for name, one in app.amqp.queues.items()},
        strict="amqp" in str(conf.broker_write_url or conf.broker_url or "").partition(":")[0],
        values={name: some for name, task in own(app) if (some := made(task))},
    )


def queue(app: "Celery", task: str, given: object) -> str:
    """The name of the queue of a task. `given`: what the call or the task names. Empty if the app's own router fails."""
    try:
        found = app.amqp.router.route({"queue": given} if given else {}, task)
    except Exception:  # a router of the app's own may raise anything
        return ""
    one = found.get("queue") or app.conf.task_default_queue
    return str(getattr(one, "name", one))


def declared(one: typing.Any) -> dict[str, object]:
    """How a queue is declared: what a strict broker compares."""
    about = {"durable": one.durable, "exclusive": one.exclusive, "auto_delete": one.auto_delete}
    exchange = {"exchange type": one.exchange.type} if one.exchange and one.exchange.name else {}
    return json.loads(json.dumps({**about, **exchange, **(one.queue_arguments or {})}, default=_text))  # type: ignore[no-any-return]


def timetable(app: "Celery") -> Iterator[Entry]:
    """Beat's entries."""
    entries = {name: one for name, one in (app.conf.beat_schedule or {}).items() if isinstance(one, Mapping)}
    for name, one in entries.items():
        args, kwargs = list(one.get("args") or ()), dict(one.get("kwargs") or {})
        named = (one.get("options") or {}).get("queue")
        to = queue(app, one["task"], named) if named else ""
        yield Entry(name=str(name), task=str(one["task"]), args=args, kwargs=kwargs, queue=to)


def main() -> None:
    """Print the description, or what is refused of the values that come. Exits with code 2 and one line if the app fails."""
    given = sys.stdin.read()
    try:
        app = load()
        said: object = refused(app, json.loads(given)) if given else described(app)
        print(json.dumps(said, default=_text))
    except Exception as error:  # a module may raise anything
        where = f" in {error.filename}" if isinstance(error, SyntaxError) else ""
        print(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}{where}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
