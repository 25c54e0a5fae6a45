"""The C programs of tests/c, which misuse the API in every way they know, against a library that AddressSanitizer and
UndefinedBehaviorSanitizer watch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs import build_library, compile_program, every_api_program, run

pytestmark = pytest.mark.slow  # compiles the library once more

SANITIZERS = "address,undefined"
SOURCES = ROOT / "tests" / "c"


@pytest.fixture(scope="module")
def library() -> Path:
    options = (f"-DUF_SANITIZE={SANITIZERS}", "-DCMAKE_BUILD_TYPE=Debug", "-DUF_STATIC=OFF")
    return build_library(ROOT / "build" / "sanitized", *options, targets=("unet_fast",), timeout=1800)


@every_api_program
def test_under_sanitizers(
    source: str, arguments: tuple[str, ...], library: Path, engines: Path, tmp_path: Path
) -> None:
    flags = (f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all")
    program = compile_program(tmp_path / "program", SOURCES / source, library=library, flags=flags)
    # Sizes that no machine has memory for are asked for on purpose.
    said = run(
        program,
        *(argument.replace("FOLDER", str(engines)) for argument in arguments),
        timeout=600,
        ASAN_OPTIONS="allocator_may_return_null=1:detect_stack_use_after_return=1",
    )
    assert "0 failures" in said
