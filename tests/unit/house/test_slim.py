"""What an image need not hold is taken from its shared objects, and they still work."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import msgpack

from celery_kit.base.target import ROOT

slim = runpy.run_path(str(ROOT / "deploy" / "slim.py"))["slim"]


def test_a_library_without_its_debug_information_still_loads(tmp_path: Path) -> None:
    """msgpack's is the most of a wheel; twice does no more than once."""
    copy = shutil.copytree(Path(msgpack.__file__).parent, tmp_path / "msgpack")
    (library,) = copy.glob("*.so")
    before = library.stat().st_size
    slim(library)
    after = library.read_bytes()
    assert len(after) < before / 2
    slim(library)
    assert library.read_bytes() == after
    program = "import msgpack._cmsgpack as m; print(m.__file__, m.unpackb(m.Packer().pack([1, 'a'])))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"{library} [1, 'a']\n", done.stderr


def test_what_is_no_library_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.so.txt").write_text("not ELF")
    slim(tmp_path / "notes.so.txt")
    assert (tmp_path / "notes.so.txt").read_text() == "not ELF"
