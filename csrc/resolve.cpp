#include "resolve.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace adafactor {
namespace {

// The products that apply forms from factors within these stay normal floats.
constexpr double kRowRange = 1e12;
constexpr double kColRange = 1e24;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
bool fits(double factor, double range) {
    if constexpr (std::is_same_v<T, double>) return true;
    return factor >= 1 / range && factor <= range;
}

double smallest_live(const Axis& axis) {
    double smallest = kInfinity;
    for (std::size_t k = 0; k < axis.size; ++k)
        if (axis.sum_sq[k] != 0) smallest = std::min(smallest, axis.running_mean[k]);
    return smallest;
}

// out[k] = factor(running mean), or `otherwise` where there is no gradient.
template <class T, class Factor>
bool fill(const Axis& axis, bool live_only, double otherwise, double range, T* out,
          const Factor& factor) {
    for (std::size_t k = 0; k < axis.size; ++k) {
        if (live_only && axis.sum_sq[k] == 0) {
            out[k] = T(otherwise);
            continue;
        }
        const double x = factor(axis.running_mean[k]);
        if (!fits<T>(x, range)) return false;
        out[k] = T(x);
    }
    return true;
}

}  // namespace

double mean_of(const Axis& axis) {
    double sum = 0;
    for (std::size_t k = 0; k < axis.size; ++k) sum += axis.running_mean[k];
    return sum / double(axis.size);
}

bool is_usable(const SecondMoment& moment, double eps) {
    const auto usable = [eps](const Axis& axis) {
        const double* begin = axis.running_mean;
        return std::all_of(begin, begin + axis.size, [eps](double x) {
            return std::isfinite(x) && (x > 0 || (x == 0 && eps > 0));
        });
    };
    return usable(moment.rows) && usable(moment.cols) && std::isfinite(moment.mean) &&
           moment.mean > 0;
}

bool eps_is_lost(const SecondMoment& moment, double eps, int digits) {
    const double root = std::sqrt(smallest_live(moment.rows) / moment.mean) *
                        std::sqrt(smallest_live(moment.cols));
    return std::ldexp(eps, digits) <= root;
}

double mean_u_squared(const SecondMoment& moment) {
    const Axis& crossed = moment.crossed_rows ? moment.rows : moment.cols;
    double sum = 0;
    for (std::size_t k = 0; k < crossed.size; ++k)
        if (crossed.sum_sq[k] != 0) sum += moment.cross_weighted[k] / crossed.running_mean[k];
    return moment.mean * sum / (double(moment.rows.size) * double(moment.cols.size));
}

double step_size(const HyperParameters& hyper, double mean_u_squared, double mean_param_squared) {
    const double ratio = std::sqrt(mean_u_squared) / hyper.clip_threshold;
    const double divisor = ratio > 1 ? ratio : 1;  // 1 for nan, as Python's max(1.0, nan)
    const double scale = hyper.scale_parameter ? std::sqrt(mean_param_squared) : 1;
    return hyper.lr * scale / divisor;
}

template <class T>
bool separable_factors(const SecondMoment& moment, double step, T* row, T* col) {
    const double mean = moment.mean;
    return fill(moment.rows, true, 0, kRowRange, row,
                [mean](double x) { return std::sqrt(mean / x); }) &&
           fill(moment.cols, true, 0, step == 0 ? kInfinity : kColRange, col,
                [step](double x) { return step / std::sqrt(x); });
}

template <class T>
bool direct_factors(const SecondMoment& moment, bool literal, T* row, T* col) {
    const double mean = moment.mean;
    return fill(moment.rows, !literal, 1, kRowRange, row,
                [mean](double x) { return std::sqrt(x / mean); }) &&
           fill(moment.cols, !literal, 1, kColRange, col, [](double x) { return std::sqrt(x); });
}

template bool separable_factors(const SecondMoment&, double, float*, float*);
template bool separable_factors(const SecondMoment&, double, double*, double*);
template bool direct_factors(const SecondMoment&, bool, float*, float*);
template bool direct_factors(const SecondMoment&, bool, double*, double*);

}  // namespace adafactor
