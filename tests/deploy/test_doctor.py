"""`make doctor` on a machine and on a stack of containers: nothing where all is well, and each fault that is planted."""

import socket
import subprocess

from celery_kit.operate.stacks.docker import memory_used
from tests.deploy.conftest import Checkout
from tests.deploy.test_status import compose
from tests.harness.waiting import until


def found(checkout: Checkout, **environ: str) -> list[str]:
    done = checkout.make("doctor", **environ)
    lines = [line.removeprefix("✗ ") for line in done.stdout.splitlines() if line.startswith("✗ ")]
    assert done.returncode == (2 if lines else 0)  # make's own code
    return lines


def test_a_port_that_another_program_has(checkout: Checkout) -> None:
    assert found(checkout) == []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert found(checkout, REDIS_PORT=str(port)) == [f"port {port} is in use by another program"]


def test_the_faults_of_a_stack(checkout: Checkout) -> None:
    """One stack, one fault after the other."""
    assert checkout.make("up", "BROKER=redis", "POOL=threads").returncode == 0
    assert found(checkout) == []
    project = checkout.environ["COMPOSE_PROJECT_NAME"]

    new = checkout.folder / "app/tasks/new.py"
    new.write_text("TEXT = 'not in the image'\n")
    assert found(checkout) == [f"{project}-worker-1 runs other code than app/ holds"]
    new.unlink()

    compose(checkout, "redis", "up", "--detach", "--no-deps", "--no-recreate", "--scale", "beat=2", "beat")
    assert found(checkout) == ["2 beats run: each sends every scheduled task"]
    compose(checkout, "redis", "up", "--detach", "--no-deps", "--no-recreate", "--scale", "beat=1", "beat")

    worker = f"{project}-worker-1"
    limit = str(int(memory_used(worker) / 0.93))
    subprocess.run(["docker", "update", "--memory", limit, "--memory-swap", "1g", worker], check=True, capture_output=True)
    (line,) = found(checkout)
    assert line.startswith(f"{worker} uses ") and line.endswith(" MB of memory")

    compose(checkout, "redis", "kill", "worker")
    (line,) = found(checkout)
    assert line.startswith("worker celery@") and "is exited (137)" in line


def test_the_faults_of_a_rabbitmq_stack(checkout: Checkout) -> None:
    """Nothing; an alarm, under which the broker takes no task; an account that is not its own; no broker at all."""
    assert checkout.make("down", "VOLUMES=1").returncode == 0
    assert checkout.make("up", "BROKER=rabbitmq", "POOL=threads").returncode == 0
    assert found(checkout) == []

    compose(checkout, "rabbitmq", "exec", "-T", "broker", "rabbitmqctl", "set_vm_memory_high_watermark", "0.0000001")
    alarm = ["the broker is out of memory and accepts no task (rabbit@broker)"]
    until("the alarm is seen, and nothing else", lambda: found(checkout) == alarm, 60)
    shown = checkout.make("status").stdout
    assert "workers cannot be asked: " in shown and "running, healthy, cannot be asked" in shown
    compose(checkout, "rabbitmq", "exec", "-T", "broker", "rabbitmqctl", "set_vm_memory_high_watermark", "0.6")
    until("it is over", lambda: found(checkout) == [], 60)

    compose(checkout, "rabbitmq", "exec", "-T", "broker", "rabbitmqctl", "change_password", "kit", "another")
    (line,) = found(checkout)
    assert line.startswith("the broker refuses the account (")
    former = 'rabbitmqctl change_password kit "$(cat /var/lib/rabbitmq/celery-kit/app)"'
    compose(checkout, "rabbitmq", "exec", "-T", "broker", "sh", "-c", former)

    compose(checkout, "rabbitmq", "stop", "broker")
    lines = found(checkout)
    assert [line for line in lines if line.startswith("the broker does not answer: ")]
