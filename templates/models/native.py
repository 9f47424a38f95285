"""Call a closed runtime's C API through ctypes, as a table declares it; its crashes end the serving process.

library = BinaryRuntimeAdapter({"library": "/opt/npu/libnpu_runtime.so", "devices": [0], "functions": {
    "open": {"symbol": "npu_open", "arguments": ["device", "&handle"], "returns": "status"}, …}})
library.load("/models/net.npu")
library.run(inputs, outputs)  # fills the arrays of `outputs`

An argument is a word, for which the table below has the C type, or a number or a 'text'; `rows:int32` has another type.

    device, devices, device_count     the first device's number; all of them as int32*; how many
    handle, model                     results of open and load; &handle and &model point to where they put them
    path                              path of the model's file
    inputs, input_bytes, input_count  void*[], uint64_t[] and a number; also outputs, output_bytes, output_count
    input0, output0, …                the memory of one tensor
    rows                              the first size of the first input
    status                            status that the failed function returned
    null                              NULL
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensor_model import Signature, TensorModel

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

_TYPES: Mapping[str, Any] = {
    "int8": ctypes.c_int8, "int16": ctypes.c_int16, "int32": ctypes.c_int32, "int64": ctypes.c_int64,
    "uint8": ctypes.c_uint8, "uint16": ctypes.c_uint16, "uint32": ctypes.c_uint32, "uint64": ctypes.c_uint64,
    "size": ctypes.c_size_t, "float": ctypes.c_float, "double": ctypes.c_double,
}  # fmt: skip
#: word → C type without a `:type`; all other words are pointers
_NUMBERS = {
    "device": "int32", "device_count": "int32", "input_count": "int32", "output_count": "int32", "rows": "int64",
    "status": "int32",
}  # fmt: skip


class LibraryError(RuntimeError):
    """The library refused or failed a call; the message has its own words, if there are any."""


class BinaryRuntimeAdapter:
    """A library with one model on one set of devices. One call at a time; it may block as the library does."""

    def __init__(self, declared: Mapping[str, Any]) -> None:
        """Load the library and open the devices. Raises `LibraryError`."""
        faulthandler.enable()  # so that the log says where it crashed
        self._name = str(declared["library"])
        for needed in declared.get("preload", ()):
            _open_library(needed, ctypes.RTLD_GLOBAL)
        library = _open_library(self._name, ctypes.RTLD_LOCAL)
        self._functions = {role: _Function(self._name, library, table) for role, table in declared["functions"].items()}
        devices = [int(number) for number in declared["devices"]]
        self._about: dict[str, Any] = {
            "device": devices[0],
            "devices": (ctypes.c_int32 * len(devices))(*devices),
            "device_count": len(devices),
            "null": None,
        }
        self._lock = threading.Lock()
        self._handle = self._give("open", "handle") if "open" in self._functions else None
        self._model: ctypes.c_void_p | None = None
        atexit.register(self.close)

    def load(self, path: str) -> None:
        """Load the model's file; an earlier one is freed. Raises `LibraryError`."""
        with self._lock:
            self._free()
            self._model = self._give("load", "model", path=path.encode())

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Compute; the library writes into `outputs`. All arrays are contiguous. Raises `LibraryError`."""
        with self._lock:
            if self._model is None:
                raise LibraryError(f"{self._name} has no model loaded")
            words: dict[str, Any] = {"model": self._model, "rows": inputs[0].shape[0] if inputs[0].ndim else 1}
            for what, arrays in (("input", inputs), ("output", outputs)):
                words |= {f"{what}{number}": array.ctypes.data for number, array in enumerate(arrays)}
                words[f"{what}s"] = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
                words[f"{what}_bytes"] = (ctypes.c_uint64 * len(arrays))(*(array.nbytes for array in arrays))
                words[f"{what}_count"] = len(arrays)
            self._call("run", words)

    def close(self) -> None:
        """Free the model and the devices. A second call does nothing."""
        with self._lock:
            self._free()
            if self._handle is not None and "close" in self._functions:
                self._call("close", {})
            self._handle = None
        atexit.unregister(self.close)

    def _free(self) -> None:
        if self._model is not None and "free" in self._functions:
            self._call("free", {"model": self._model})
        self._model = None

    def _give(self, role: str, what: str, **words: Any) -> ctypes.c_void_p:
        """Return the pointer that a function returns, or puts where `&what` points."""
        place = ctypes.c_void_p()
        returned = self._call(role, {f"&{what}": ctypes.byref(place), **words})
        pointer = ctypes.c_void_p(returned) if self._functions[role].returns == what else place
        if not pointer.value:
            raise LibraryError(f"{self._functions[role].symbol} gave no {what}{self._words(0)}")
        return pointer

    def _call(self, role: str, words: Mapping[str, Any]) -> Any:
        function = self._functions[role]
        returned = function({**self._about, "handle": getattr(self, "_handle", None), **words})
        if function.returns == "status" and returned != 0:
            raise LibraryError(f"{function.symbol} failed with {returned}{self._words(returned)}")
        return returned

    def _words(self, status: int) -> str:
        """Return the library's own text for its last failure, empty if it has none."""
        if "error" not in self._functions:
            return ""
        given = {**self._about, "handle": getattr(self, "_handle", None), "status": status}
        text: bytes | None = self._functions["error"](given)
        return f": {text.decode(errors='replace').strip()}" if text else ""


class _Function:
    """A function of the library with its declared types."""

    def __init__(self, name: str, library: ctypes.CDLL, table: Mapping[str, Any]) -> None:
        self.symbol, self.returns = str(table["symbol"]), str(table["returns"])
        try:
            self._call = library[self.symbol]
        except AttributeError as exc:
            raise LibraryError(f"{name} has no function {self.symbol!r}") from exc
        returns = {"status": ctypes.c_int32, "text": ctypes.c_char_p, "nothing": None}
        self._call.restype = returns.get(self.returns, ctypes.c_void_p)
        self._arguments = [_argument(text) for text in table["arguments"]]
        self._call.argtypes = [kind for kind, _ in self._arguments]

    def __call__(self, words: Mapping[str, Any]) -> Any:
        try:
            given = [value(words) for _, value in self._arguments]
        except KeyError as exc:
            raise LibraryError(f"{self.symbol} wants {exc}, but the model has no such tensor") from exc
        return self._call(*given)


def _argument(text: str) -> tuple[Any, Callable[[Mapping[str, Any]], Any]]:
    """Return the C type of an argument, and a function that picks its value out of all words."""
    if text.startswith("'"):
        literal = text[1:-1].encode()
        return ctypes.c_char_p, lambda _: literal
    word, _, kind = text.partition(":")
    if word[0].isdigit() or word[0] == "-":
        number = float(word) if "." in word else int(word)
        return _TYPES[kind or ("double" if "." in word else "int32")], lambda _: number
    if word == "path":
        return ctypes.c_char_p, lambda words: words["path"]
    if word in _NUMBERS:
        return _TYPES[kind or _NUMBERS[word]], lambda words: words[word]
    return ctypes.c_void_p, lambda words: _pointer(words[word])


def _pointer(value: Any) -> Any:
    return ctypes.cast(value, ctypes.c_void_p) if isinstance(value, ctypes.Array) else value


def _open_library(name: str, mode: int) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=mode)
    except OSError as exc:
        raise LibraryError(f"cannot load the library {name}: {exc}") from exc


class Native(TensorModel):
    """A model that a closed runtime computes: inputs and outputs by position, of the declared sizes."""

    def __init__(self, path: str, inputs: Signature, outputs: Signature, declared: Mapping[str, Any]) -> None:
        super().__init__(inputs, outputs)
        self._runtime = BinaryRuntimeAdapter(declared)
        try:
            self._runtime.load(path)
        except LibraryError:
            self._runtime.close()  # else the device would be held by what nobody can reach
            raise

    def close(self) -> None:
        """Free the model and the devices. A second call does nothing."""
        self._runtime.close()

    def _compute(self, arrays: Mapping[str, Array]) -> Sequence[Array]:
        import numpy

        given = [numpy.ascontiguousarray(arrays[tensor.name]) for tensor in self.inputs]
        rows = given[0].shape[0] if given[0].ndim else 1
        answers = [
            numpy.zeros([rows if size < 0 else size for size in tensor.shape], tensor.dtype) for tensor in self.outputs
        ]
        self._runtime.run(given, answers)
        return answers
