// A gradient whose scale is far below 1, as that of a norm that clips: scaled by a power of two in
// memory of its own. Elsewhere u is found before it is scaled, and there its square would leave
// float64's range, or the scale's own square would, though that of the scaled gradient does not.
#pragma once

#include <cmath>

#include "adafactor.hpp"
#include "engine/scratch.hpp"

namespace adafactor {

// Above this no square of a scale underflows, nor does a square of u overflow before it is scaled.
constexpr double kLeastScale = 0x1p-256;

// Whether the gradient is to be scaled in memory. A scale that is 0 or nan is what has no norm.
inline bool is_far_below_1(double grad_scale) {
    return std::abs(grad_scale) > 0 && std::abs(grad_scale) < kLeastScale;
}

// `tensor` with a gradient of float64 that is 2^exponent times as large, in memory of `for_step`,
// and with that much less of a scale, which is then between 1 and 2. What is not lost to underflow
// has the same digits.
const Tensor& with_scaled_gradient(const Tensor& tensor, double grad_scale, int threads,
                                   Scratch& for_step, int& exponent);

}  // namespace adafactor
