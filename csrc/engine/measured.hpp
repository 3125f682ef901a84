// A gradient that is measured before its step, as soon as it exists: what that finds, in memory of
// its own, until the step takes it over.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/scratch.hpp"
#include "engine/tensor_step.hpp"
#include "owned_array.hpp"

namespace adafactor {

// Below this nothing is gained: a step finds such a gradient in a cache, and measures it in less
// time than it takes to keep what was measured.
constexpr std::size_t kLeastMeasured = 4096;

// Some elements of an array, by which a later look tells whether somebody has written to it: one of
// each 4096, but at least 3 and about 64, among them the first, a middle and the last. One of them
// is not zero, if any is: so an array that is scaled as a whole never looks the same.
class Samples {
public:
    explicit Samples(const Array& array);

    bool still_hold(const Array& array) const { return bits_of(array) == bits_; }

private:
    // Of all samples together.
    std::uint64_t bits_of(const Array& array) const;

    std::size_t step_;         // between samples, in C order
    std::size_t nonzero_ = 0;  // another one, by its index in C order
    std::uint64_t bits_;
};

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

    // Whether somebody has written to the gradient, or to param, as far as samples tell.
    bool grad_has_changed() const { return !grad_samples_.still_hold(tensor_.grad); }
    bool param_has_changed() const { return !param_samples_.still_hold(tensor_.param); }

    std::size_t n_bytes() const { return sizeof *this + memory_.allocated(); }

private:
    Scratch memory_;
    OwnedArray param_, grad_, m_, copy_;
    Tensor tensor_;  // of these; what step_ refers to
    TensorReport report_;
    TensorStep* step_;
    bool looked_at_all_;  // of v
    Samples grad_samples_, param_samples_;
};

}  // namespace adafactor
