// A matrix's second moment as resolve sees it, and what can be said of it before u is formed.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

struct SecondMoment {
    Axis rows, cols;
    AxisSummary row_summary, col_summary;
    double mean;  // of the rows' running means, or its floor
};

// Whether u is finite for every finite gradient: no running mean is negative, infinite or nan, not
// all are zero, and none is while nothing is added to the root.
bool is_usable(const SecondMoment& moment, const HyperParameters& hyper);

// The smallest sqrt(V) where the gradient is not zero.
double least_root(const SecondMoment& moment);

// Whether max(sqrt(V) + eps_root, root_floor) is sqrt(V), to `digits` binary digits, wherever the
// gradient is not zero.
bool eps_is_lost(const SecondMoment& moment, const HyperParameters& hyper, int digits);

// Whether floats hold eps, the factors of all live lines, and the products that apply forms.
bool float_holds(const SecondMoment& moment, bool separable, const Descent& descent,
                 const HyperParameters& hyper);

}  // namespace adafactor
