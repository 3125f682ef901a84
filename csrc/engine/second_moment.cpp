#include "engine/second_moment.hpp"

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
    const double smallest = std::min(moment.row_summary.smallest, moment.col_summary.smallest);
    const bool zero_is_fine = hyper.eps_root > 0 || hyper.root_floor > 0;
    return std::isfinite(moment.row_summary.sum) && std::isfinite(moment.col_summary.sum) &&
           (moment.mean > 0 || hyper.eps_means > 0) &&
           (smallest > 0 || (smallest == 0 && zero_is_fine));
}

double least_root(const SecondMoment& moment) {
    return std::sqrt(moment.row_summary.smallest_live / moment.mean) *
           std::sqrt(moment.col_summary.smallest_live);
}

bool eps_is_lost(const SecondMoment& moment, const HyperParameters& hyper, int digits) {
    const double root = least_root(moment);
    return std::ldexp(hyper.eps_root, digits) <= root && hyper.root_floor <= root;
}

bool float_holds(const SecondMoment& moment, bool separable, const Descent& descent,
                 const HyperParameters& hyper) {
    if (!is_narrow_decay(descent.decay)) return false;
    const AxisSummary& rows = moment.row_summary;
    const AxisSummary& cols = moment.col_summary;
    const bool none_live = rows.largest_live == 0;
    if (none_live) return true;
    const double least = std::sqrt(cols.smallest_live), most = std::sqrt(cols.largest_live);
    const double weight = std::abs(descent.weight), rate = descent.rate;
    const bool holds_weights =
        weight == 0 || (separable ? within(weight / most, weight / least, kColRange)
                                  : within(weight, weight, kColRange));
    const bool holds_rate = rate == 0 || within(rate, rate, kColRange);
    return holds_weights && holds_rate && hyper.eps_root <= kColRange &&
           hyper.root_floor <= kColRange && within(least, most, kColRange) &&
           within(std::sqrt(rows.smallest_live / moment.mean),
                  std::sqrt(rows.largest_live / moment.mean), kRowRange);
}

}  // namespace adafactor
