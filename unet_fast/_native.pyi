from typing import Any

from numpy.typing import NDArray

#: An array in GPU memory: address, dtype as NumPy names it, shape, strides in bytes.
_Pixels = tuple[int, str, tuple[int, ...], tuple[int, ...]]

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
        keep_warm_ms: int,
    ) -> None: ...
    def info(self) -> dict[str, Any]: ...
    def device(self) -> str: ...
    def healthy(self) -> bool: ...
    def tune(self, *, count: int, height: int, width: int, path: bytes | None) -> None: ...
    def profile(
        self, *, count: int, height: int, width: int
    ) -> tuple[list[tuple[str, str, float]], dict[str, Any]]: ...
    def output_size(self, height: int, width: int, tiling: int, tile: int, overlap: int) -> tuple[int, int]: ...
    def exact_tiles(
        self, height: int, width: int, tile: int
    ) -> tuple[tuple[int, list[tuple[int, int, int]]], tuple[int, list[tuple[int, int, int]]]]:
        """For rows and columns: side of a tile, (origin, begin, end) of each; as in csrc/tiler.h."""

    def segment(
        self,
        image: NDArray[Any] | _Pixels,
        output: NDArray[Any] | _Pixels,
        *,
        max_value: float,
        tiling: int,
        tile: int,
        overlap: int,
        threshold: float,
    ) -> None: ...

class Context:
    """Memory of one pass on an engine's device."""

    def __init__(self, engine: Engine, *, count: int, height: int, width: int) -> None: ...
    def enqueue(
        self,
        image: NDArray[Any] | _Pixels,
        output: NDArray[Any] | _Pixels,
        *,
        max_value: float,
        threshold: float,
        stream: int,
    ) -> None: ...

class Device:
    """A GPU.  Streams are addresses, 1 is the legacy default stream."""

    def __init__(self, ordinal: int) -> None: ...
    @staticmethod
    def count() -> int: ...
    def allocate(self, size_bytes: int) -> Memory: ...
    def record(self, stream: int) -> Event: ...
    def synchronise(self, stream: int) -> None: ...

class Event:
    """The end of what was on a stream."""

    def done(self) -> bool: ...
    def wait(self) -> None: ...
    def hold(self, stream: int) -> None:
        """What is put on `stream` from now on comes after this."""

class Memory:
    """An allocation on a GPU."""

    @property
    def address(self) -> int: ...
    def fetch(self, target: NDArray[Any]) -> None: ...
    def dlpack(self, *, shape: tuple[int, ...], is_float: bool, bits: int, versioned: bool) -> Any: ...

class Tensor:
    """What was in a DLPack capsule."""

    def __init__(self, capsule: Any) -> None: ...
    @property
    def device(self) -> tuple[int, int]: ...
    @property
    def address(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def strides_bytes(self) -> list[int]: ...
    @property
    def read_only(self) -> bool: ...
