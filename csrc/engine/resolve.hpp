// Between the sweeps: what the numbers of measure decide.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// A matrix's new running means, as measure leaves them.
struct SecondMoment {
    Axis rows, cols;
    Range row_range, col_range;
    double mean;  // of the rows' running means, or its floor
};

// Whether u is finite for every finite gradient: no running mean is negative, infinite or nan, not
// all are zero, and none is while nothing is added to the root.
bool is_usable(const SecondMoment& moment, const HyperParameters& hyper);

// Whether max(sqrt(V) + eps_root, root_floor) is sqrt(V), to `digits` binary digits, wherever the
// gradient is not zero.
bool eps_is_lost(const SecondMoment& moment, const HyperParameters& hyper, int digits);

struct StepSize {
    double divisor;    // of u, by the clip
    double step_size;  // of u, before the clip
    Move move;
};

StepSize step_size(const HyperParameters& hyper, bool has_momentum, double mean_u_squared,
                   double mean_param_squared);

// The two forms of struct Update.
enum class Form { separable, direct };

// Whether floats hold eps, the factors of all live lines, and the products that apply forms.
bool factors_fit_float(const SecondMoment& moment, Form form, const Move& move,
                       const HyperParameters& hyper);

FactorRule row_rule(const SecondMoment& moment, Form form, bool literal);
FactorRule col_rule(Form form, bool literal, double weight);

}  // namespace adafactor
