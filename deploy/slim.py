"""Take from a folder's shared objects what no loader maps: debug information and symbol tables behind the last segment.

`python slim.py FOLDER`. As `strip` does it for such files, without binutils; a library whose segments go to the file's very
end stays as it is. 13 MB of a worker's image (measured: gevent 211 MB before).
"""

import struct
import sys
from pathlib import Path


def slim(library: Path) -> None:
    """Cut one ELF file (64 bit, little-endian) behind its last segment; leave any other file alone."""
    data = bytearray(library.read_bytes())
    if data[:6] != b"\x7fELF\x02\x01":
        return
    (headers,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, headers + number * size) for number in range(count)]
    end = max(offset + filled for _, _, offset, _, _, filled in segments)
    if end < len(data):
        struct.pack_into("<Q", data, 40, 0)  # no section table any more,
        struct.pack_into("<HH", data, 60, 0, 0)  # no sections, no names of them
        library.write_bytes(data[:end])


if __name__ == "__main__":
    for path in Path(sys.argv[1]).rglob("*.so*"):
        slim(path)
