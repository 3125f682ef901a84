// A gradient that is measured before its step, as soon as it exists: what that finds, in memory of
// its own, until the step takes it over.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "engine/scratch.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {

// Takes the step's first sweep over one tensor ahead of the step, and writes nothing of the tensor.
// Until the step its gradient, param and state must stay as they are. A step takes it over by
// Tensor::measured, with the same bits as if it had measured itself, and once: it is then used up.
class Measured {
public:
    // The tensor has elements. May throw std::bad_alloc.
    Measured(const Tensor& tensor, int threads);

    Measured(const Measured&) = delete;
    Measured& operator=(const Measured&) = delete;

    // Whether a step of `tensor` would measure the same: it has the same arrays, and the same of
    // those numbers that measure goes by.
    bool serves(const Tensor& tensor) const;

    // For a step of such a tensor, to be reported in `report`. It lives as long as this object.
    TensorStep* take_over(const Tensor& tensor, TensorReport& report);

    // Whether somebody has written to the gradient, or to param, as far as a few elements tell.
    bool grad_has_changed() const { return samples_of(tensor_.grad) != grad_samples_; }
    bool param_has_changed() const { return samples_of(tensor_.param) != param_samples_; }

    std::size_t n_bytes() const { return sizeof *this + memory_.allocated(); }

private:
    // The bits of the first, a middle and the last element.
    using Samples = std::array<std::uint64_t, 3>;
    static Samples samples_of(const Array& array);

    void own_shapes();

    Scratch memory_;
    Tensor tensor_;  // what step_ refers to; its shapes and strides are these:
    std::vector<std::ptrdiff_t> lengths_;  // the shape, then the strides of each array
    TensorReport report_;
    TensorStep* step_;
    bool looked_at_all_;  // of v
    Samples grad_samples_, param_samples_;
};

}  // namespace adafactor
