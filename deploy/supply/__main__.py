"""`make sbom`, `make sign`, `make verify` and `make audit`: `python -m deploy.supply COMMAND`.

POOL chooses one image of those that this checkout builds: a pool, monitor or mail; otherwise it is each that the engine has.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from dotenv import load_dotenv

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image, python
from deploy.supply import audit as audits
from deploy.supply import statement as statements
from deploy.supply.archive import SERVICES, Image, base, load, there
from deploy.supply.packages import packages
from deploy.supply.sbom import licences, sbom

#: Where the papers are, and the key if the user names none.
PAPERS, KEY = ROOT / "supply", ROOT / ".kit/sign/key.pem"
#: The public half of the key that has signed last: where 'make verify' looks, and what is handed out.
PUBLIC, HANDED_OUT = KEY.with_suffix(".pub"), PAPERS / "key.pub"


def chosen() -> Iterator[tuple[str, str]]:
    """Tags and names of the images that a command is for. Refuses a tag that is none, and an image that is not there."""
    given = os.environ.get("POOL")
    tags = [choose("POOL", given, SERVICES)] if given else list(SERVICES)
    names = {
        tag: image(tag) if tag != "monitor" else f"{image('mail').rpartition(':')[0]}:monitor{python().tag}" for tag in tags
    }
    found = {tag: name for tag, name in names.items() if there(name)}
    if not found:
        built_by = "'make images' builds those of the pools and mail, 'make up MONITOR=1' that of the monitor"
        refuse(f"the engine has no image {', '.join(names.values())}; {built_by}")
    yield from found.items()


def papers(tag: str) -> list[Path]:
    """The SBOM and the licence list of an image."""
    name = f"{tag}{python().tag}"
    return [PAPERS / f"{name}.cdx.json", PAPERS / f"{name}.licences.md"]


def envelope(tag: str) -> Path:
    """The signed statement about an image."""
    return PAPERS / f"{tag}{python().tag}.intoto.json"


def make_sbom() -> int:
    """Write the SBOM and the licence list of each image."""
    for tag, name in chosen():
        written(tag, load(name))
    return 0


def written(tag: str, one: Image) -> list[Path]:
    """Write an image's papers."""
    PAPERS.mkdir(exist_ok=True)
    held = packages(one)
    files = papers(tag)
    for file, text in zip(files, (sbom(one, held), licences(one, held)), strict=True):
        file.write_text(text)
    print(f"{one.name:<27}{len(held):4d} packages  {' '.join(str(file.relative_to(ROOT)) for file in files)}")
    return files


def sign() -> int:
    """Sign a statement about each image and its papers, which are written first."""
    key = statements.private_key(Path(os.environ.get("SIGN_KEY") or KEY))
    for file in (PUBLIC, HANDED_OUT):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(statements.public_pem(key))
    for tag, name in chosen():
        one = load(name)
        statement = statements.of(one, written(tag, one), base())
        envelope(tag).write_text(statements.sign(statement, key))
        print(f"{one.name:<27}signed: {envelope(tag).relative_to(ROOT)}; to verify: {HANDED_OUT.relative_to(ROOT)}")
    return 0


def verify() -> int:
    """Compare each image and its papers with what was signed."""
    key = statements.public_key(Path(os.environ.get("VERIFY_KEY") or PUBLIC))
    for tag, name in chosen():
        file = envelope(tag)
        if not file.exists():
            refuse(f"{file} is missing: 'make sign' writes it, or whoever gave you the image has it")
        try:
            statement = statements.opened(file.read_text(), key, str(file))
            statements.check(statement, one := load(name), papers(tag))
        except statements.WrongError as error:
            print(f"celery-kit: {error}", file=sys.stderr)
            return 1
        commit = statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"]
        print(f"{name:<27}is what was signed: commit {commit[:12]}, sha256:{one.digest}")
    return 0


def audit() -> int:
    """Print what is vulnerable or has an update. Gives 1 if anything is, or could not be checked."""
    lines = list[str]()
    locks = [ROOT / f"requirements/{lock}.txt" for lock in audits.LOCKS]
    try:
        found, unknown = audits.of_python(locks, os.environ.get("OSV_URL") or "")
        lines += [f"python  {line}" for line in found]
        if unknown:
            some = f"{', '.join(unknown[:5])}{', …' if unknown[5:] else ''}"
            lines.append(
                f"python  {len(unknown)} packages could not be checked, because the advisories do not have them: {some}"
            )
    except audits.SilentError as error:
        lines.append(f"python  {error}")
    _, name = next(chosen())
    try:
        offered, count = audits.of_debian(load(name), base())
        lines += [f"debian  {line}" for line in offered]
        print(f"debian  {count} packages of {name}, {len(offered)} with an update")
    except audits.SilentError as error:
        lines.append(f"debian  {error}")
    print("\n".join(lines) or "nothing to do")
    return bool(lines)


COMMANDS: dict[str, Callable[[], int]] = {"sbom": make_sbom, "sign": sign, "verify": verify, "audit": audit}


def main() -> int:
    """Run a command. Gives its exit code: 1 for what is found, 2 for what is refused."""
    load_dotenv(ROOT / ".env")
    return COMMANDS[choose("command", sys.argv[1] if len(sys.argv) > 1 else "", COMMANDS)]()


if __name__ == "__main__":
    sys.exit(main())
