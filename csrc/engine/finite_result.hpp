// Whether what apply is about to write is finite: nearly always by a bound, which costs nothing.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// The largest absolute values of a tensor's step.
struct ResultBounds {
    double step = 0;            // of what is taken from param, beside its decay
    double m = 0;               // of the new first moment
    double param_factor = 1;    // 1 - decay
    bool decay_shrinks = true;  // decay is in [0, 1]
};

// Bounds by sums over all elements: no element's square exceeds a sum of squares. `sum_u_sq` is
// that of u as Descent's weight takes it; n descents are those of the tensor's matrices.
ResultBounds bound_result(const Descent* descents, std::size_t n, bool has_momentum,
                          double sum_u_sq, double sum_m_sq);

// Whether every element that is finite now is so after the step. `param` is the largest absolute
// value that param may have, or nan where nobody knows. It does not matter to a param that is
// rounded to the nearest and has no copy: less than half a unit in the last place of the largest
// number makes nothing infinite.
bool is_certainly_finite(const Tensor& tensor, const ResultBounds& bounds, double param);

bool all_are_finite(const Block& block);

// The largest running mean that squares of this format's numbers can have left behind, with room
// for any scale of a loss; of float64, what is left of its range.
inline double largest_second_moment(Format grad) { return grad == Format::float64 ? 1e300 : 1e100; }

}  // namespace adafactor
