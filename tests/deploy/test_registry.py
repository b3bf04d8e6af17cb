"""`make push` to a real registry, Debian's: without and with TLS and a password; and a stack of the images that it pinned."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import docker
import pytest
import requests

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks import registry as registries
from celery_kit.operate.stacks.images import settings
from tests.deploy.conftest import Checkout
from tests.harness.certificates import certificate
from tests.harness.combinations import one_of
from tests.harness.containers import LABELS
from tests.harness.ports import free_port
from tests.harness.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
IMAGE, PASSWORD = "celery-kit-test/registry", "kit:$ecret"
CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"TLS}
"""


@dataclass
class Registry:
    """A registry that runs. `url`: of its API; `auth`: user and password, if it asks for them."""

    host: str
    url: str
    auth: tuple[str, str] | None

    def digest(self, name: str, tag: str) -> str:
        """The digest that it has for a tag."""
        kinds = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json"
        asked = requests.head(
            f"{self.url}/v2/{name}/manifests/{tag}", headers={"Accept": kinds}, auth=self.auth, verify=False, timeout=10
        )
        assert asked.status_code == 200, tag
        return str(asked.headers["Docker-Content-Digest"])


@pytest.fixture(scope="module")
def engine() -> docker.DockerClient:
    """The engine, with the registry's image."""
    base = settings()["PYTHON_IMAGE"]  # of Debian, and there already
    words = ("docker", "build", "--quiet", "--tag", IMAGE, "--build-arg", f"BASE={base}", str(ROOT / "tests/deploy/registry"))
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    return docker.from_env()


@pytest.fixture(params=one_of(["plain", "TLS", "TLS and a password"], 2))
def registry(engine: docker.DockerClient, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Registry]:
    folder, port = tmp_path / "registry", free_port()
    folder.mkdir(mode=0o755)
    (folder / "key.pem").write_bytes(certificate("registry")[0])
    (folder / "cert.pem").write_bytes(certificate("registry")[1])
    (folder / "users").write_bytes(b"kit:" + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)))
    secure, asks = request.param != "plain", "password" in request.param
    tls = ", tls: {certificate: /etc/registry/cert.pem, key: /etc/registry/key.pem}" if secure else ""
    auth = "auth: {htpasswd: {realm: kit, path: /etc/registry/users}}" if asks else ""
    (folder / "config.yml").write_text(CONFIG.replace("TLS", tls) + auth)
    for file in folder.iterdir():
        file.chmod(0o644)
    container = engine.containers.run(
        IMAGE, detach=True, labels=LABELS, ports={"5000/tcp": ("127.0.0.1", port)}, tmpfs={"/var/lib/registry": "mode=1777"},
        volumes={str(folder): {"bind": "/etc/registry", "mode": "ro"}},
    )  # fmt: skip
    found = Registry(f"127.0.0.1:{port}", f"http{'s' * secure}://127.0.0.1:{port}", ("kit", PASSWORD) if asks else None)

    def answers() -> bool:
        try:
            return requests.get(f"{found.url}/v2/", auth=found.auth, verify=False, timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until("the registry answers", answers, 60)
        yield found
    finally:
        container.remove(force=True, v=True)
        for one in engine.images.list():
            for name in [*one.tags, *one.attrs["RepoDigests"]]:
                if name.startswith(found.host):
                    with suppress(docker.errors.ImageNotFound):  # it went with another of its names
                        engine.images.remove(name, force=True)


def test_what_is_pushed_is_pinned(checkout: Checkout, registry: Registry, tmp_path: Path) -> None:
    """The file has the digests that the registry has. Without the password nothing is pushed, and one line says what to do."""
    pins, name = checkout.folder / "pins.json", f"{registry.host}/shop"
    words, own = ("push", f"REGISTRY={name}", "TAG=1.0", "POOL=solo"), {"DOCKER_CONFIG": str(tmp_path / "docker")}
    pins.unlink(missing_ok=True)
    if registry.auth:
        refused = checkout.make(*words, **own)
        assert refused.returncode == 2 and not pins.exists()
        said = refused.stderr.splitlines()
        assert any(line.startswith("celery-kit: ") and f"'docker login {registry.host}' first" in line for line in said)
        login = ["docker", "login", "--username", "kit", "--password-stdin", registry.host]
        environ = {**checkout.environ, **own}
        subprocess.run(login, input=PASSWORD, text=True, env=environ, check=True, capture_output=True)
    pushed = checkout.make(*words, **own)
    assert pushed.returncode == 0
    found = json.loads(pins.read_text())
    assert found["version"] == "1.0" and found["platforms"] == []
    expected = {tag: f"{name}:{tag}-1.0@{registry.digest('shop', f'{tag}-1.0')}" for tag in ("solo", "mail", "monitor")}
    assert found["images"] == expected and pushed.stdout.split() == list(expected.values())
    labels = docker.from_env().images.get(f"{name}:solo-1.0").labels
    assert labels["org.opencontainers.image.version"] == "1.0" and "org.opencontainers.image.created" in labels


@pytest.mark.parametrize("registry", ["TLS and a password"], indirect=True)
def test_a_stack_runs_what_is_pinned(checkout: Checkout, registry: Registry, tmp_path: Path) -> None:
    """Nothing is built: the code is that of the images, whatever app/ has become since."""
    name, own = f"{registry.host}/shop", {"DOCKER_CONFIG": str(tmp_path / "docker")}
    login = ["docker", "login", "--username", "kit", "--password-stdin", registry.host]
    subprocess.run(login, input=PASSWORD, text=True, env={**checkout.environ, **own}, check=True, capture_output=True)
    assert checkout.make("push", f"REGISTRY={name}", "POOL=solo", **own).returncode == 0
    pinned = json.loads((checkout.folder / "pins.json").read_text())["images"]
    for ref in pinned.values():  # as on a machine that has never built them
        subprocess.run(["docker", "image", "rm", ref.partition("@")[0]], check=True, capture_output=True)
    new = checkout.folder / "app/tasks/later.py"
    new.write_text("from celery import shared_task\n\n\n@shared_task\ndef one():\n    return 1\n")
    try:
        assert checkout.make("up", "BROKER=redis", "POOL=solo", "PINS=pins.json", **own).returncode == 0
        project = checkout.environ["COMPOSE_PROJECT_NAME"]
        for service, tag in (("worker", "solo"), ("beat", "solo"), ("mail", "mail")):
            assert docker.from_env().containers.get(f"{project}-{service}-1").attrs["Config"]["Image"] == pinned[tag]
        assert "state     SUCCESS" in checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "WAIT=30").stdout
        assert "later.one" not in checkout.make("status").stdout
        said = checkout.refusal(checkout.make("up", "BROKER=redis", "POOL=gevent", "PINS=pins.json", **own))
        assert "PINS=pins.json has no image gevent; it has solo, mail, monitor" in said
    finally:
        new.unlink()
        checkout.make("down")


@pytest.mark.parametrize("registry", ["plain"], indirect=True)
def test_images_of_several_platforms_get_one_name(registry: Registry, tmp_path: Path) -> None:
    """Of images in which nothing runs, because this machine need not have emulation."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    parts, ref = [], f"{registry.host}/shop:several"
    for architecture in ("amd64", "arm64"):
        one = f"{ref}-{architecture}"
        words = ("docker", "build", "--quiet", "--platform", f"linux/{architecture}", "--tag", one, str(tmp_path))
        subprocess.run(words, check=True, capture_output=True)
        parts.append(registries._push(one))
    found = registries.index(ref, parts)
    kinds = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
    answer = requests.get(f"{registry.url}/v2/shop/manifests/several", headers={"Accept": kinds}, timeout=10)
    assert found == f"{ref}@{answer.headers['Docker-Content-Digest']}"
    listed = {one["platform"]["architecture"]: one["digest"] for one in answer.json()["manifests"]}
    assert listed == {part.partition("several-")[2].partition("@")[0]: part.partition("@")[2] for part in parts}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "REGISTRY is missing; for example: make push REGISTRY=registry.example.com/shop"),
        (["REGISTRY=shop"], "REGISTRY=shop is not allowed; a host and a name in small letters"),
        (["REGISTRY=127.0.0.1:1/Shop"], "is not allowed; a host and a name in small letters"),
        (["REGISTRY=127.0.0.1:1/shop", "TAG=a b"], "TAG=a b is not allowed; letters, digits, _, . and -, 80 at most"),
        (
            ["REGISTRY=127.0.0.1:1/shop", "PLATFORMS=amd64"],
            "PLATFORMS=amd64 is not allowed; names such as linux/amd64",
        ),
        (
            ["REGISTRY=127.0.0.1:1/shop", "PLATFORMS=linux/s390x"],
            "PLATFORMS=linux/s390x: emulation is missing, this engine",
        ),
        (["REGISTRY=127.0.0.1:1/shop", "PINS=none/pins.json"], "none/pins.json cannot be written: No such file or directory"),
        (["REGISTRY=127.0.0.1:1/shop", "POOL=fork"], "'fork' is not one of"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(checkout: Checkout, words: list[str], said: str) -> None:
    assert said in checkout.refusal(checkout.make("push", *words))
