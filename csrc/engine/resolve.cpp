#include "engine/resolve.hpp"

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

bool is_usable(const SecondMoment& moment, const HyperParameters& hyper) {
    const double smallest = std::min(moment.row_range.smallest, moment.col_range.smallest);
    const bool zero_is_fine = hyper.eps_root > 0 || hyper.root_floor > 0;
    return std::isfinite(moment.row_range.sum) && std::isfinite(moment.col_range.sum) &&
           (moment.mean > 0 || hyper.eps_means > 0) &&
           (smallest > 0 || (smallest == 0 && zero_is_fine));
}

bool eps_is_lost(const SecondMoment& moment, const HyperParameters& hyper, int digits) {
    const double root = std::sqrt(moment.row_range.smallest_live / moment.mean) *
                        std::sqrt(moment.col_range.smallest_live);
    return std::ldexp(hyper.eps_root, digits) <= root && hyper.root_floor <= root;
}

StepSize step_size(const HyperParameters& hyper, bool has_momentum, double mean_u_squared,
                   double mean_param_squared) {
    const double ratio = std::sqrt(mean_u_squared) / hyper.clip_threshold;
    const double divisor = ratio > 1 ? ratio : 1;  // 1 for nan, as Python's max(1.0, nan)
    double size = hyper.lr;
    if (hyper.scale_parameter) {
        double rms = std::sqrt(mean_param_squared);
        if (hyper.scale_after_decay) rms *= std::abs(1 - hyper.decay);
        size *= rms < hyper.eps_scale ? hyper.eps_scale : rms;
    }
    Move move{};
    move.decay = hyper.decay;
    if (hyper.decay_by_step != 0) move.decay += hyper.decay_by_step * size;
    move.weight = size / divisor;
    if (has_momentum) {
        move.beta1 = hyper.beta1;
        move.rate = hyper.momentum_of_u ? size : 1;
        move.weight = (1 - hyper.beta1) * (hyper.momentum_of_u ? 1 / divisor : move.weight);
    }
    move.weight *= hyper.grad_scale;
    return {divisor, size, move};
}

bool factors_fit_float(const SecondMoment& moment, Form form, const Move& move,
                       const HyperParameters& hyper) {
    const Range& rows = moment.row_range;
    const Range& cols = moment.col_range;
    const bool none_live = rows.largest_live == 0;
    if (none_live) return true;
    const double least = std::sqrt(cols.smallest_live), most = std::sqrt(cols.largest_live);
    const double weight = std::abs(move.weight);
    const bool weights_fit =
        weight == 0 || (form == Form::separable ? within(weight / most, weight / least, kColRange)
                                                : within(weight, weight, kColRange));
    const bool rates_fit = move.rate == 0 || within(move.rate, move.rate, kColRange);
    return weights_fit && rates_fit && hyper.eps_root <= kColRange &&
           hyper.root_floor <= kColRange && within(least, most, kColRange) &&
           within(std::sqrt(rows.smallest_live / moment.mean),
                  std::sqrt(rows.largest_live / moment.mean), kRowRange);
}

FactorRule row_rule(const SecondMoment& moment, Form form, bool literal) {
    const bool inverse = form == Form::separable;
    return {inverse, literal, std::sqrt(moment.mean), inverse ? 0.0 : 1.0};
}

FactorRule col_rule(Form form, bool literal, double weight) {
    const bool inverse = form == Form::separable;
    return {inverse, literal, inverse ? weight : 1.0, inverse ? 0.0 : 1.0};
}

}  // namespace adafactor
