// The numbers of a report that are told to users, once a step is over.
#pragma once

#include <cmath>
#include <limits>

#include "adafactor.hpp"

namespace adafactor {

// A nan without sign and payload for any, as in what is written.
inline double one_nan(double x) {
    return std::isnan(x) ? std::numeric_limits<double>::quiet_NaN() : x;
}

// Of a gradient of n elements; `grad_scale` is the caller's, before max_grad_norm.
inline void finish_report(TensorReport& report, double n, double grad_scale) {
    report.rms_grad = std::sqrt(report.grad_sq / n) * std::abs(grad_scale);
    for (double* number : {&report.grad_sq, &report.rms_grad, &report.rms_u, &report.clip_divisor,
                           &report.rms_param, &report.step_size})
        *number = one_nan(*number);
}

}  // namespace adafactor
