// A step from Python: the GIL, and what is not finite.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "adafactor.hpp"
#include "bindings/buffers.hpp"
#include "bindings/held_tensor.hpp"

namespace adafactor {

namespace py = pybind11;

// Takes the step without the GIL, unless it is so short that another thread could not use the time.
Outcome take_step(const Tensor* tensors, std::size_t n_tensors, const Options& options,
                  TensorReport* reports);

// An array of Python's, and how a message calls it.
struct NamedArray {
    py::handle object;
    Name name;
};

// What FloatingPointError says of a tensor: which number is bad, and why. `m` matters with a first
// moment; `held`, which may be null, holds the running means whose bad element is to be named.
// What is wrong with running means that are what gradients made them.
std::string useless_second_moment(bool is_v, const std::string& of_tensor);
std::string fault_text(const Outcome& outcome, const Tensor& tensor, const NamedArray& param,
                       const NamedArray& grad, const NamedArray& m, const HeldTensor* held);

[[noreturn]] void throw_floating_point_error(const std::string& message);

}  // namespace adafactor
