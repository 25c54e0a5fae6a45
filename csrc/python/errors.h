// A status of the C API, or the exception of the classes behind it, as a Python exception.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "error.h"
#include "gil.h"
#include "unet_fast.h"

namespace uf::python {

inline py::object exception_type(uf_status status) {
    const auto builtin = [](PyObject *type) { return py::reinterpret_borrow<py::object>(type); };
    const auto own = [](const char *name) -> py::object { return py::module_::import("unet_fast.errors").attr(name); };
    switch (status) {
    case UF_ERR_INVALID_ARGUMENT:
        return builtin(PyExc_ValueError);
    case UF_ERR_IO:
        return builtin(PyExc_OSError);
    case UF_ERR_OUT_OF_MEMORY:
        return builtin(PyExc_MemoryError);
    case UF_ERR_BAD_FILE:
    case UF_ERR_VERSION:
        return own("EngineFileError");
    case UF_ERR_UNSUPPORTED:
        return own("UnsupportedError");
    case UF_ERR_DEVICE:
    case UF_ERR_DEVICE_LOST:
        return own("DeviceError");
    default:
        return builtin(PyExc_RuntimeError);
    }
}

[[noreturn]] inline void raise(uf_status status, const std::string &message) {
    // It may name a file whose name is not UTF-8.
    const auto text = py::reinterpret_steal<py::object>(
        PyUnicode_DecodeUTF8(message.data(), static_cast<py::ssize_t>(message.size()), "surrogateescape"));
    if (text)
        PyErr_SetObject(exception_type(status).ptr(), text.ptr());
    throw py::error_already_set();
}

// Runs `call` without the GIL; raises what it reports.  The message is read on the thread that failed.
template <class Call> void checked(const Call &call) {
    uf_status status = UF_OK;
    std::string message;
    without_gil([&] {
        status = call();
        if (status != UF_OK) {
            message = uf_last_error();
        }
    });
    if (status != UF_OK) {
        raise(status, message);
    }
}

// The same for what throws uf::Error.
template <class Body> void translated(const Body &body) {
    uf_status status = UF_OK;
    std::string message;
    without_gil([&] {
        try {
            body();
        } catch (const Error &error) {
            status = error.status();
            message = error.what();
        }
    });
    if (status != UF_OK) {
        raise(status, message);
    }
}

} // namespace uf::python
