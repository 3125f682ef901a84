#include "engine/finite_result.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace adafactor {
namespace {

// The largest number of a format, and half its unit in the last place.
struct Top {
    double largest, half_unit;
};

Top top_of(Format format) {
    switch (format) {
        case Format::float16:
            return {65504, 16};
        case Format::bfloat16:
            return {0x1.fep127, 0x1p119};
        case Format::float64:
            return {std::numeric_limits<double>::max(), 0x1p970};
        default:
            return {std::numeric_limits<float>::max(), 0x1p103};
    }
}

constexpr double kMargin = 0.99;  // for what is rounded on the way, up at random too

template <class Bits>
bool run_is_finite(const char* run, std::size_t n, Bits exponent) {
    for (std::size_t k = 0; k < n; ++k) {
        Bits bits;
        std::memcpy(&bits, run + k * sizeof(Bits), sizeof(Bits));
        if ((bits & exponent) == exponent) return false;
    }
    return true;
}

bool run_is_finite(const char* run, std::size_t n, Format format) {
    switch (format) {
        case Format::float16:
            return run_is_finite(run, n, std::uint16_t(0x7c00));
        case Format::bfloat16:
        case Format::split:  // the exponent is in the upper half
            return run_is_finite(run, n, std::uint16_t(0x7f80));
        case Format::float32:
            return run_is_finite(run, n, std::uint32_t(0x7f800000));
        case Format::float64:
            return run_is_finite(run, n, std::uint64_t(0x7ff) << 52);
        default:
            return true;
    }
}

}  // namespace

ResultBounds bound_result(const Descent* descents, std::size_t n, bool has_momentum,
                          double sum_u_sq, double sum_m_sq) {
    ResultBounds bounds;
    const double u = std::sqrt(sum_u_sq), m = std::sqrt(sum_m_sq);
    // A nan must stay: it bounds nothing.
    const auto widen = [](double& bound, double by) {
        if (!(by <= bound)) bound = by;
    };
    for (std::size_t k = 0; k < n; ++k) {
        const Descent& descent = descents[k];
        const double x = std::abs(descent.weight) * u;
        const double new_m = has_momentum ? std::abs(descent.beta1) * m + x : 0;
        widen(bounds.m, new_m);
        widen(bounds.step, has_momentum ? std::abs(descent.rate) * new_m : x);
        widen(bounds.param_factor, std::abs(1 - descent.decay));
        bounds.decay_shrinks = bounds.decay_shrinks && descent.decay >= 0 && descent.decay <= 1;
        if (std::isnan(bounds.step) || std::isnan(bounds.m)) break;
    }
    return bounds;
}

bool is_certainly_finite(const Tensor& tensor, const ResultBounds& bounds, double param) {
    if (tensor.m.data != nullptr && !(bounds.m <= kMargin * top_of(tensor.m.format).largest))
        return false;
    const Format format = tensor.param.format;
    const bool has_copy = tensor.copy.data != nullptr;
    const bool is_nearest =
        !tensor.stochastic || (format != Format::float16 && format != Format::bfloat16);
    if (!has_copy && is_nearest && bounds.decay_shrinks &&
        bounds.step <= top_of(format).half_unit / 2)
        return true;
    double largest = top_of(format).largest;
    if (has_copy) largest = std::min(largest, top_of(tensor.copy.format).largest);
    return param * bounds.param_factor + bounds.step <= kMargin * largest;
}

bool all_are_finite(const Block& block) {
    for (std::size_t i = 0; i < block.rows; ++i)
        if (!run_is_finite(block.data + std::ptrdiff_t(i) * block.stride, block.cols, block.format))
            return false;
    return true;
}

}  // namespace adafactor
