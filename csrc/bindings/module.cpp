#include "bindings/bindings.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
    adafactor::bind_update(m);
    adafactor::bind_model(m);
    adafactor::bind_config(m);
}
