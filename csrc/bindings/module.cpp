#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
    adafactor::bind_plan(m);
    adafactor::bind_tensors(m);
    adafactor::bind_torch(m);
    adafactor::bind_config(m);
}
