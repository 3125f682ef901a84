#include "resolve.hpp"

#include <algorithm>
#include <cmath>

namespace adafactor {
namespace {

// The products that apply forms from float factors within these stay normal floats.
constexpr double kRowRange = 1e12;
constexpr double kColRange = 1e24;

bool within(double smallest, double largest, double range) {
    return smallest >= 1 / range && largest <= range;
}

}  // namespace

bool is_usable(const SecondMoment& moment, double eps) {
    const double smallest = std::min(moment.row_range.smallest, moment.col_range.smallest);
    return std::isfinite(moment.row_range.sum) && std::isfinite(moment.col_range.sum) &&
           moment.mean > 0 && (smallest > 0 || (smallest == 0 && eps > 0));
}

bool eps_is_lost(const SecondMoment& moment, double eps, int digits) {
    const double root = std::sqrt(moment.row_range.smallest_live / moment.mean) *
                        std::sqrt(moment.col_range.smallest_live);
    return std::ldexp(eps, digits) <= root;
}

double step_size(const HyperParameters& hyper, double mean_u_squared, double mean_param_squared) {
    const double ratio = std::sqrt(mean_u_squared) / hyper.clip_threshold;
    const double divisor = ratio > 1 ? ratio : 1;  // 1 for nan, as Python's max(1.0, nan)
    const double scale = hyper.scale_parameter ? std::sqrt(mean_param_squared) : 1;
    return hyper.lr * scale / divisor;
}

bool factors_fit_float(const SecondMoment& moment, Form form, double step, double eps) {
    const Range& rows = moment.row_range;
    const Range& cols = moment.col_range;
    const bool none_live = rows.largest_live == 0;
    if (none_live) return true;
    const double least = std::sqrt(cols.smallest_live), most = std::sqrt(cols.largest_live);
    const bool steps_fit =
        step == 0 || (form == Form::separable ? within(step / most, step / least, kColRange)
                                              : within(step, step, kColRange));
    return steps_fit && eps <= kColRange && within(least, most, kColRange) &&
           within(std::sqrt(rows.smallest_live / moment.mean),
                  std::sqrt(rows.largest_live / moment.mean), kRowRange);
}

FactorRule row_rule(const SecondMoment& moment, Form form, bool literal) {
    const bool inverse = form == Form::separable;
    return {inverse, literal, std::sqrt(moment.mean), inverse ? 0.0 : 1.0};
}

FactorRule col_rule(Form form, bool literal, double step) {
    const bool inverse = form == Form::separable;
    return {inverse, literal, inverse ? step : 1.0, inverse ? 0.0 : 1.0};
}

}  // namespace adafactor
