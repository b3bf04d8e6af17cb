"""A user's requirements.txt: its conflicts with the kit's locks, found before a build, and pip's errors in one line."""

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT

_PIN = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
_NESTED = re.compile(r"(?:-r|--requirement|-c|--constraint)[ =]?\s*(\S+)$")
_FOLDER = re.compile(r"(-e|--editable)\b|\.{0,2}/|file:|[^@]*@ *file:")
#: The prefix of a line of BuildKit's: the number of its step, and the seconds since the step began.
_STEP = re.compile(r"^(?:#\d+ )?\d+\.\d+(?: |$)")
_WHOSE = re.compile(r"The user requested \(constraint\) (\S+)")


def flattened(file: Path) -> list[str]:
    """The lines of a requirements file without comments. A `-r` line is replaced by the lines of the file that it names.

    Refuses (one line, exit code 2) a file that cannot be read, files that name each other, `-c`, and a folder in place of a
    package, because a build cannot read it.
    """
    return list(_lines(file, ()))


def _lines(file: Path, above: tuple[Path, ...]) -> Iterator[str]:
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"the requirements in {file} cannot be read: {getattr(error, 'strerror', None) or error}")
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if nested := _NESTED.match(line):
            other = (file.parent / nested[1]).resolve()
            if other in above:
                refuse(f"the requirements in {file} name each other: {line}")
            if line.startswith(("-c", "--constraint")):
                refuse(f"{file}: '{line}' is not supported; name the versions in the file itself")
            yield from _lines(other, (*above, file.resolve()))
        elif _FOLDER.match(line):
            refuse(
                f"{file}: '{line}' is a folder of this machine, which an image does not have; what SOURCE holds needs no line"
            )
        elif line:
            yield line


def pins(*locks: str) -> dict[str, tuple[str, str]]:
    """By normalized package name: the version that the kit pins, and the path of the lock. A lock may be missing."""
    files = [file for lock in locks if (file := ROOT / "requirements" / f"{lock}.txt").exists()]
    return {
        canonicalize_name(name): (version, f"requirements/{file.name}")
        for file in files
        for name, version in _PIN.findall(file.read_text())
    }


def conflicts(file: Path, *locks: str) -> list[str]:
    """Requirements in `file` that exclude the versions in the kit's locks, a line each.

    Only direct requirements are compared. pip finds conflicts of their dependencies.
    """
    kit, found = pins(*locks), []
    for line in flattened(file):
        try:
            one = Requirement(re.split(r"\s--", line)[0])
        except InvalidRequirement:  # an option of pip's, or a line that pip will refuse
            continue
        version, lock = kit.get(canonicalize_name(one.name), ("", ""))
        if version and not one.specifier.contains(version, prereleases=True) and not (one.marker and not one.marker.evaluate()):
            found.append(
                f"{file} asks for {one.name}{one.specifier}, the kit pins {one.name}=={version} ({lock}): change one of them"
            )
    return found


def reason(output: str) -> str:
    """Why pip could not install something, in one line, from the whole output. Empty if the output has no error of pip's."""
    lines = [_STEP.sub("", line).strip() for line in output.splitlines()]
    if "The conflict is caused by:" in lines:
        rest = lines[lines.index("The conflict is caused by:") + 1 :]
        cause = rest[: rest.index("")] if "" in rest else rest[:3]
        return ", and ".join(_WHOSE.sub(r"the kit pins \1", line) for line in cause)
    errors = [place for place, line in enumerate(lines) if line.startswith("ERROR: ")]
    said = [lines[place].removeprefix("ERROR: ") for place in errors]
    said = [one for one in said if not re.match(r"process |failed to |Exception|Service ", one)]
    if not said:
        return ""
    if "HASHES" in said[0]:
        wrong = next((line for line in lines[errors[0] + 1 :] if "==" in line), "")
        return f"{said[0].split('.')[0].capitalize()}: {wrong.partition(' from ')[0]}"
    if "Hashes are required" in said[0]:
        wrong = next((line for line in lines[errors[0] + 1 :] if "--hash" in line), "")
        return f"hashes are given, so each package needs its own: {wrong or said[0]}"
    return next((one for one in said if one.startswith("No matching distribution")), said[0])
