// The GIL, which is let go of while something waits.
#pragma once

#include <pybind11/pybind11.h>

namespace uf::python {

namespace py = pybind11;

// Runs `body` without the GIL.  Taking the GIL back ends a daemon thread whose interpreter has exited meanwhile, by
// unwinding its stack; py::gil_scoped_release does that in a destructor, which would end the process.
template <class Body> void without_gil(const Body &body) {
    PyThreadState *const state = PyEval_SaveThread();
    try {
        body();
    } catch (...) {
        PyEval_RestoreThread(state);
        throw;
    }
    PyEval_RestoreThread(state);
}

// For a class whose objects wait for a GPU when they go, on which a callback may wait for the GIL: `close()`, which
// must not throw, is called without it, and before the destructor, which could not take it back.
template <class Object> py::custom_type_setup closed_without_gil() {
    return py::custom_type_setup([](PyHeapTypeObject *type) {
        static const destructor deallocate = type->ht_type.tp_base->tp_dealloc;
        type->ht_type.tp_dealloc = [](PyObject *self) {
            auto value = reinterpret_cast<py::detail::instance *>(self)->get_value_and_holder();
            if (value.holder_constructed()) // else its constructor has thrown
                without_gil([&] { value.template value_ptr<Object>()->close(); });
            deallocate(self);
        };
    });
}

} // namespace uf::python
