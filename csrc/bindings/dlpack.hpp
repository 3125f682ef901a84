// What DLPack holds and NumPy cannot read: bfloat16.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace adafactor {

namespace py = pybind11;

// A tensor of bfloat16 on the CPU as a NumPy array of the same values: of ml_dtypes' bfloat16 and
// in the same memory where ml_dtypes is installed, else a copy in float32. A null object for
// anything else. What its __dlpack__ raises is thrown.
py::object bfloat16_of_dlpack(py::handle object);

}  // namespace adafactor
