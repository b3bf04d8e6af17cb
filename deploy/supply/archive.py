"""An image as the engine saves it: its configuration, and the files of its layers. Nothing of the image runs."""

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

from celery_kit.base.refusals import refuse
from celery_kit.operate.stacks.docker import last_line
from celery_kit.operate.stacks.images import python, settings
from celery_kit.pools.table import POOLS

#: The images of this repository, by their tag, and the service that has the build of each.
SERVICES = {**dict.fromkeys(POOLS, "worker"), "monitor": "flower", "mail": "mail"}
#: Files whose text is read: what package managers note, licences, an embedded SBOM, the version of Python.
READ = re.compile(
    r"(var/lib/dpkg/status(\.d/[^/]+)?|usr/share/doc/[^/]+/copyright|etc/os-release|.*\.dist-info/(METADATA|sboms/[^/]+\.json)"
    r"|opt/[^/]+/wheels\.txt|usr/local/include/python3[^/]*/patchlevel\.h)"
)
#: What layers say of files in layers below: remove this one, or all in this folder.
REMOVED, EMPTIED = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True)
class File:
    """A file, folder or link of an image. `sha256`: of its content; empty for what has none."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: float
    link: str
    sha256: str


@dataclass(frozen=True)
class Image:
    """An image. `digest`: of its configuration, which names the layers by their digests; the engine calls it the image's ID."""

    name: str
    digest: str
    config: dict[str, Any]
    files: dict[str, File]
    texts: dict[str, str]

    @property
    def layers(self) -> list[str]:
        """The digests of its layers, uncompressed."""
        return list(self.config["rootfs"]["diff_ids"])


def base() -> str:
    """The base image of the worker images, by the version of Python that is chosen."""
    return settings().get(python().variable) or python().official


def there(name: str) -> bool:
    """Whether the engine has an image of this name."""
    return subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode == 0


def load(name: str) -> Image:
    """An image of the engine, by its name. Refuses one that the engine does not have."""
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        try:
            done = subprocess.run(
                ["docker", "image", "save", name], stdout=file, stderr=subprocess.PIPE, text=True, check=False
            )
        except OSError as error:
            refuse(f"docker: {error.strerror}")
        if done.returncode:
            refuse(f"the image {name} cannot be read: {last_line(done.stderr)}; 'make images' builds those of this checkout")
        return read(Path(file.name), name)


def read(path: Path, name: str) -> Image:
    """An image in the file that `docker image save` wrote. Refuses one whose layers are not those of its configuration."""
    try:
        with tarfile.open(path) as archive:
            about = json.load(_member(archive, "manifest.json"))[0]
            config = _member(archive, about["Config"]).read()
            image = Image(name, hashlib.sha256(config).hexdigest(), json.loads(config), {}, {})
            for layer, digest in zip(about["Layers"], image.layers, strict=True):
                with _plain(archive, layer) as content:
                    if (found := f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}") != digest:
                        refuse(f"{name}: a layer is {found}, where the image's configuration names {digest}")
                with _plain(archive, layer) as content, tarfile.open(fileobj=content) as one:
                    _lay(one, image)
            return image
    except (tarfile.TarError, KeyError, ValueError, IndexError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        refuse(f"{name} is no image as 'docker image save' writes it: {reason}")


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    if (file := archive.extractfile(name)) is None:
        raise KeyError(name)
    return file


@contextmanager
def _plain(archive: tarfile.TarFile, name: str) -> Iterator[Any]:
    """A layer, uncompressed: some engines save it compressed."""
    with _member(archive, name) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield GzipFile(fileobj=file) if compressed else file


def _lay(layer: tarfile.TarFile, image: Image) -> None:
    """Set a layer over what is below it."""
    for one in layer:
        path = one.name.removeprefix("./").rstrip("/")
        folder, _, base = path.rpartition("/")
        if base == EMPTIED:
            _drop(image, lambda name, within=f"{folder}/": name.startswith(within))  # type: ignore[misc]
            continue
        if base.startswith(REMOVED):
            gone = f"{folder}/{base.removeprefix(REMOVED)}".lstrip("/")
            _drop(image, lambda name, gone=gone: name == gone or name.startswith(f"{gone}/"))  # type: ignore[misc]
            continue
        content = layer.extractfile(one) if one.isfile() else None
        data = content.read() if content else b""
        if one.islnk():  # a second name of a file
            image.files[path] = image.files[one.linkname.removeprefix("./")]
            continue
        digest = hashlib.sha256(data).hexdigest() if content else ""
        kind = {tarfile.REGTYPE: "file", tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link"}.get(one.type, "special")
        image.files[path] = File(kind, one.mode, (one.uid, one.gid), one.mtime, one.linkname, digest)
        if content and READ.fullmatch(path):
            image.texts[path] = data.decode(errors="replace")


def _drop(image: Image, gone: Callable[[str], bool]) -> None:
    for name in [name for name in image.files if gone(name)]:
        del image.files[name]
        image.texts.pop(name, None)
