// A step from Python: the GIL, and what is not finite.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "adafactor.hpp"
#include "bindings/buffers.hpp"

namespace adafactor {

namespace py = pybind11;

// Takes the step without the GIL, unless it is so short that another thread could not use the time.
Outcome take_step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
                  TensorReport* reports);

// What FloatingPointError says of a tensor, `arrays` being Python's own: the bad element and what
// was changed.
std::string fault_text(const Outcome& outcome, const Tensor& tensor, py::handle param,
                       const Name& param_name, py::handle grad, const Name& grad_name);

[[noreturn]] void throw_floating_point_error(const std::string& message);

}  // namespace adafactor
