from typing import Any

from numpy.typing import NDArray

def version() -> str: ...

class Engine:
    """An engine of the C API.  Give `path` (as `os.fsencode` gives it) or `data`, the other None."""

    def __init__(
        self,
        *,
        path: bytes | None,
        data: bytes | None,
        device: str,
        precision: str,
        cpu_isa: str,
        threads: int,
        refuse_embedded_code: bool,
    ) -> None: ...
    def info(self) -> dict[str, Any]: ...
    def output_size(self, height: int, width: int, tiling: int, tile: int, overlap: int) -> tuple[int, int]: ...
    def segment(
        self,
        image: NDArray[Any],
        output: NDArray[Any],
        *,
        max_value: float,
        tiling: int,
        tile: int,
        overlap: int,
        threshold: float,
    ) -> None: ...
