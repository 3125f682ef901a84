#include <pybind11/numpy.h>

#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core_of_main, m, pybind11::mod_gil_not_used()) {
    // At its first use it would let the GIL go, in a thread that must not be unwound there.
    pybind11::detail::npy_api::get();
    adafactor::bind_plan(m);
    adafactor::bind_sharded_step(m);
    adafactor::bind_tensors(m);
    adafactor::bind_torch(m);
    adafactor::bind_config(m);
}

// What Python calls. A sub-interpreter, which _runtime.py refuses, is refused before pybind11 looks
// for its own things there: where the main interpreter has not loaded them, it would wait forever.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(
            PyExc_ImportError,
            "module adafactor_native._core does not support loading in subinterpreters");
        return nullptr;
    }
    return PyInit__core_of_main();
}
