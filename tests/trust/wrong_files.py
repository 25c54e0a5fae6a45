"""Every damaged file that the tests of the reader have, by name, for those that want all of them at once."""

from __future__ import annotations

from tests.fuzz import seeds
from tests.test_engine_file_reader import CONTAINERS, DOCUMENTS, with_document


def wrong_files(plain: bytes) -> dict[str, bytes]:
    """Damaged files, made from an engine file of the network "plain", and small ones that are whole."""
    files = {f"document {name}": with_document(plain, change) for name, change, _ in DOCUMENTS}
    files |= {f"container {name}": change(plain) for name, change, _ in CONTAINERS}
    return files | {"plain": plain} | seeds.engine_files()
