// One function per binding file; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace adafactor {

namespace py = pybind11;

void bind_plan(py::module_& m);
void bind_sharded_step(py::module_& m);
void bind_tensors(py::module_& m);
void bind_torch(py::module_& m);
void bind_config(py::module_& m);

}  // namespace adafactor
