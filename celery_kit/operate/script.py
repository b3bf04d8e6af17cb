"""`celery-kit`: the tools for the app of any project, however its workers were started. In this repository, use `make`.

celery-kit --app shop.celery status
"""

import os
import sys
from importlib import import_module
from typing import NoReturn

from celery_kit.base.refusals import refuse
from celery_kit.operate.arguments import REST, Parser

#: What each command does. The module of celery_kit/operate/look/ with its name runs it.
COMMANDS = {
    "status": "broker, queues and workers",
    "top": "the same, live, until Ctrl-C",
    "doctor": "what is wrong, and how to fix it",
    "dead": "dead letters and failed tasks, with their reasons; --retry ID|all sends them back, --drop ID|all deletes them",
    "pause": "have no worker begin tasks of a QUEUE, until `resume QUEUE`; survives restarts",
    "resume": "have workers consume a paused QUEUE again",
    "migrate": "move all messages to another broker: --from URL --to URL",
    "send": "send a task: TASK [ARGS] [KWARGS], in JSON; `send forward` sends the tasks in the spool",
    "result": "a task's state and result, by its id",
    "watch": "follow a task to its end, by its id",
    "exporter": "metrics for Prometheus, on port 9808",
    "monitor": "Flower, with the password of MONITOR_PASSWORD_FILE",
}


#: Those that a module runs together with another command. It finds the command's name in sys.argv.
MODULES = {"resume": "pause"}


def _help() -> str:
    return "commands:\n" + "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())


def main() -> None:
    """Run the command that the command line names. Exits with code 2 for a wrong one."""
    parser = Parser(prog="celery-kit", description="Look at a Celery app's stack, and operate it.", epilog=_help())
    parser.add_argument("-A", "--app", metavar="MODULE[:NAME]", help="as for `celery -A`; or CELERY_APP")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below; COMMAND --help says more")
    parser.add_argument("rest", nargs=REST, metavar="...", help="its own options")
    given = parser.parse_args()
    if given.app:
        os.environ["CELERY_APP"] = given.app
    if not os.environ.get("CELERY_APP"):
        refuse("no app is named; give --app MODULE[:NAME], as `celery -A` takes it, or set CELERY_APP")
    sys.argv = [f"celery-kit {given.command}", *given.rest]
    _run(given.command)


def _run(command: str) -> None:
    try:
        import_module(f"celery_kit.operate.look.{MODULES.get(command, command)}").main()
    except ModuleNotFoundError as error:
        _refuse_without(command, error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_without(command: str, error: ModuleNotFoundError) -> NoReturn:
    extra = "monitor" if command in ("exporter", "monitor") else "tools"
    refuse(f"{command} needs the package {error.name}: pip install 'celery-kit[{extra}]'")


if __name__ == "__main__":
    main()
