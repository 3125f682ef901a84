#include <pybind11/numpy.h>

#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
    // At its first use it would let the GIL go, in a thread that must not be unwound there.
    pybind11::detail::npy_api::get();
    adafactor::bind_plan(m);
    adafactor::bind_tensors(m);
    adafactor::bind_torch(m);
    adafactor::bind_config(m);
}
