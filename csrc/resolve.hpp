// Between the sweeps: what the numbers of measure decide.
#pragma once

#include "adafactor.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// A matrix's new running means, as measure leaves them.
struct SecondMoment {
    Axis rows, cols;
    Range row_range, col_range;
    double mean;  // of the rows' running means
};

// Whether u is finite for every finite gradient: no running mean is negative, infinite or nan, not
// all are zero, and none is while eps is.
bool is_usable(const SecondMoment& moment, double eps);

// Whether sqrt(V) + eps is sqrt(V), to `digits` binary digits, wherever the gradient is not zero.
bool eps_is_lost(const SecondMoment& moment, double eps, int digits);

double step_size(const HyperParameters& hyper, double mean_u_squared, double mean_param_squared);

// The two forms of struct Update.
enum class Form { separable, direct };

// Whether floats hold eps, the factors of all live lines, and the products that apply forms.
bool factors_fit_float(const SecondMoment& moment, Form form, double step, double eps);

FactorRule row_rule(const SecondMoment& moment, Form form, bool literal);
FactorRule col_rule(Form form, bool literal, double step);

}  // namespace adafactor
