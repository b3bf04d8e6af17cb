"""A user's codebase in a stack: APP=shop.celery:app SOURCE=../shop [REQUIREMENTS=../shop/requirements.txt].

In containers it adds two layers to the kit's image of the pool: its packages, then its code (deploy/Dockerfile, CODE=source).
Without Docker its processes run in the folder SOURCE. If REQUIREMENTS is given, they use a separate environment.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.docker import last_line
from celery_kit.operate.stacks.requirements import conflicts, flattened, reason

#: The folder of generated files and environments of codebases; git ignores it.
HOME = ROOT / ".kit" / "codebases"
#: The value of CELERY_APP in a stack of a codebase: the app that APP names, with the kit installed. As in deploy/Dockerfile.
INSTALLED = "celery_kit.operate.installed"
#: The fields that a running stack stores. All but `app` are paths. The variable for each has its name in capitals.
NOTED = ("app", "source", "requirements", "env_file")
_APP = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*)?")


@dataclass(frozen=True)
class Codebase:
    """A codebase whose tasks a stack runs. `app`: as `celery -A` takes it; `source`: the folder that it is imported from.

    `requirements`: its requirements.txt; `env_file`: environment variables for its code. Paths are absolute.
    """

    app: str
    source: Path
    requirements: Path | None = None
    env_file: Path | None = None

    @property
    def package(self) -> str:
        """The package or module in `source` that holds the app."""
        return re.split(r"[.:]", self.app)[0]

    @property
    def name(self) -> str:
        """A unique name for its images and generated files, which differs by source folder and by app."""
        told = hashlib.sha256(f"{self.source}\0{self.app}".encode()).hexdigest()[:8]
        return f"celery-kit-{self.package.lower().strip('_')}-{told}"

    @property
    def image(self) -> str:
        """The name of its images before the tag: IMAGE, or :attr:`name`."""
        return os.environ.get("IMAGE") or self.name

    def noted(self) -> dict[str, str]:
        """The codebase as a dict of strings, for JSON. A field without a value is an empty string."""
        return {name: str(getattr(self, name) or "") for name in NOTED}

    @classmethod
    def from_note(cls, note: Mapping[str, str]) -> "Codebase":
        """The codebase that :meth:`noted` has described."""
        requirements, env_file = (Path(note[name]) if note[name] else None for name in ("requirements", "env_file"))
        return cls(note["app"], Path(note["source"]), requirements, env_file)

    def check(self, *locks: str) -> None:
        """Refuse requirements that conflict with the kit's locks. `locks`: names of files in requirements/, without `.txt`."""
        if self.requirements:
            for line in conflicts(self.requirements, *locks):
                refuse(line)

    def environ(self) -> dict[str, str]:
        """Its variables for Compose. Writes all requirements to one file, in a folder that is a context of the build."""
        folder = HOME / self.name
        folder.mkdir(parents=True, exist_ok=True)
        lines = flattened(self.requirements) if self.requirements else []
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in lines))
        return {
            "CODE": "source",
            "CODE_IMAGE": self.image,
            "PACKAGES": str(folder),
            **{name.upper(): value for name, value in self.noted().items() if value},
        }

    def here(self) -> dict[str, str]:
        """Environment variables with which a process on this machine can import it, and writes its data outside `source`."""
        from dotenv import dotenv_values  # installed where `make` runs, not in the images

        own = dotenv_values(self.env_file) if self.env_file else {}
        return {
            **{name: value for name, value in own.items() if value is not None},
            "APP": self.app,
            "CELERY_APP": INSTALLED,
            "PYTHONPATH": os.pathsep.join((str(self.source), str(ROOT))),
            "DATA_DIR": os.environ.get("DATA_DIR") or str(ROOT / ".kit" / "data"),
        }

    def python(self) -> str:
        """The path of an interpreter with its packages: this one, or that of an environment that extends this one's.

        The environment is created if it is missing. Refuses packages that cannot be installed.
        """
        if not self.requirements:
            return sys.executable
        text = "".join(f"{line}\n" for line in flattened(self.requirements))
        lock = (ROOT / "requirements/local.txt").read_bytes()
        told = hashlib.sha256(b"\0".join((text.encode(), lock, sys.version.encode(), sys.prefix.encode()))).hexdigest()[:12]
        folder = HOME / f"python-{told}"
        done = folder / "requirements.txt"
        if not done.exists():
            print(f"setting up {folder.relative_to(ROOT)} from {self.requirements} (once)", file=sys.stderr)
            folder.parent.mkdir(parents=True, exist_ok=True)
            file = folder.with_suffix(".txt")
            file.write_text(text)
            pip = f"{sys.executable} -m pip"
            script = [str(ROOT / "deploy/pip-beside.sh"), sys.prefix, str(folder), str(file)]
            made = subprocess.run(script, env={**os.environ, "PIP": pip}, capture_output=True, text=True, check=False)
            if made.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                refuse_packages(self.requirements, made.stdout + made.stderr)
                refuse(f"{folder} could not be made: {last_line(made.stderr)}")
            file.replace(done)
        return str(folder / "bin" / "python")


#: The command that describes an app: celery_kit/operate/look/about.py. Its first item is the interpreter.
ABOUT = ("python", "-m", "celery_kit.operate.look.about")


@dataclass(frozen=True)
class About:
    """An app's description. `tasks`: their names; `contradictions`: conflicts of its settings, a line each.

    `queues`: those that it knows. `limited`: by queue, the tasks with a time limit of their own.
    """

    tasks: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    queues: list[str] = field(default_factory=list)
    limited: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, codebase: Codebase | None, done: subprocess.CompletedProcess[str]) -> "About":
        """Parse the output of :data:`ABOUT`. Refuses, in one line, an app that could not be loaded."""
        return cls(**json.loads(answer(codebase, done)))


def answer(codebase: Codebase | None, done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a process has printed about an app; those above are the output of the app's modules.

    Refuses, in one line, an app that could not be loaded.
    """
    said = done.stderr.strip().splitlines()
    if done.returncode:
        why = next((line for line in reversed(said) if line.startswith("celery-kit: ")), said[-1] if said else "")
        why = why.removeprefix("celery-kit: ") or "it ended its process"
        if not codebase:
            refuse(f"app/: {why}")
        hint = "; REQUIREMENTS= names its packages" if "No module named" in why and not codebase.requirements else ""
        refuse(f"{codebase.app} in {codebase.source}: {why}{hint}")
    return done.stdout.strip().splitlines()[-1]


@dataclass(frozen=True)
class Started:
    """A stack that has started. `places`: lines with the addresses of its services."""

    places: list[str]
    about: About


def about_here(codebase: Codebase | None, environ: Mapping[str, str], *words: str) -> About:
    """Describe an app on this machine, before anything starts. `words`: of its command. Refuses one that cannot be loaded."""
    if codebase:
        codebase.check("local")
    argv = [python_of(codebase), *ABOUT[1:], *words]
    environ = {**os.environ, **environ, **environ_of(codebase)}
    done = subprocess.run(argv, cwd=folder_of(codebase), env=environ, capture_output=True, text=True, check=False)
    return About.of(codebase, done)


def python_of(codebase: Codebase | None) -> str:
    """The path of the interpreter on this machine for a codebase's processes, or for those of app/."""
    return codebase.python() if codebase else sys.executable


def folder_of(codebase: Codebase | None) -> Path:
    """The working folder of a codebase's processes, or of those of app/."""
    return codebase.source if codebase else ROOT


def code_of(codebase: Codebase | None) -> Path:
    """The folder of a codebase's code, or app/: where its table of worker groups is (celery_kit/operate/groups.py)."""
    return codebase.source if codebase else ROOT / "app"


def environ_of(codebase: Codebase | None) -> dict[str, str]:
    """Environment variables of a codebase's processes, in addition to those of the stack. Empty for app/."""
    return codebase.here() if codebase else {}


def refuse_packages(requirements: Path, output: str) -> None:
    """Refuse requirements with the reason that pip printed. Do nothing if the output is not an error of pip's."""
    if why := reason(output):
        refuse(f"REQUIREMENTS={requirements} cannot be installed beside the kit's packages: {why}")


def chosen(environ: Mapping[str, str]) -> Codebase | None:
    """The codebase that APP, SOURCE, REQUIREMENTS and ENV_FILE name; None: the app in app/.

    Relative paths start at the project's folder. Refuses values that are wrong, as far as that shows without running the code.
    """
    app, source, *files = (environ.get(name.upper()) or "" for name in NOTED)
    if not (app or source or any(files)):
        return None
    if not (app and source):
        missing, of = ("SOURCE", "the folder that its module is imported from") if app else ("APP", "as shop.celery:app")
        refuse(f"{missing} is missing: a codebase of your own is named by APP=module:app and SOURCE=folder ({of})")
    if not _APP.fullmatch(app):
        refuse(f"APP={app} is not allowed; a module, as shop or shop.celery, or module:name, as shop.celery:app")
    folder = (ROOT / source).resolve()
    if not folder.is_dir():
        refuse(f"SOURCE={source} is no folder ({folder})")
    requirements, env_file = (_file(name.upper(), given) for name, given in zip(NOTED[2:], files, strict=True))
    found = Codebase(app, folder, requirements, env_file)
    if not _has(folder, found.package):
        hint = f"; SOURCE={folder.parent} has it" if _has(folder.parent, found.package) else ""
        refuse(
            f"APP={app}: SOURCE={source} has no module {found.package}, neither {found.package}/ nor {found.package}.py{hint}"
        )
    return found


def _file(name: str, given: str) -> Path | None:
    if given and not (ROOT / given).is_file():
        refuse(f"{name}={given} is no file ({(ROOT / given).resolve()})")
    return (ROOT / given).resolve() if given else None


def _has(folder: Path, package: str) -> bool:
    return (folder / package).is_dir() or (folder / f"{package}.py").is_file()
