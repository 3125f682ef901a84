#include "engine/sharded_tensor.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch/isa.hpp"
#include "engine/strided.hpp"

namespace adafactor {
namespace {

float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

}  // namespace

double number_of(const Block& element) {
    std::uint16_t half = 0, low = 0;
    if (element.format == Format::float64 || element.format == Format::float32) {
        double wide;
        float narrow;
        if (element.format == Format::float64) return std::memcpy(&wide, element.data, 8), wide;
        return std::memcpy(&narrow, element.data, 4), double(narrow);
    }
    std::memcpy(&half, element.data, 2);
    if (element.format == Format::split) std::memcpy(&low, element.data + element.low, 2);
    if (element.format != Format::float16) return float_of(std::uint32_t(half) << 16 | low);
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const double sign = half >> 15 ? -1 : 1;
    if (exponent == 31)
        return fraction ? std::numeric_limits<double>::quiet_NaN()
                        : sign * std::numeric_limits<double>::infinity();
    return sign *
           (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

void ShardedTensor::put_max(double* to) const {
    std::fill_n(to, n_max(), kNeutral);
    if (part_.has_a_say) to[given_ ? 0 : 1] = 1;
    if (!given_) return;
    if (part_.has_a_say) {
        to[2] = double(int(tensor_.grad.format));
        to[3] = -to[2];
    }
    to[4] = 0;
    to[5] = 0;
    to[6] = 0;
    for (const TensorStep* step : steps_) {
        if (!step->has_sound_state()) to[4] = 1;
        if (has_momentum()) to[5] = std::max(to[5], for_maximum(step->bound_of_m()));
        if (step->needs_bound_of_param())
            to[6] = std::max(to[6], for_maximum(step->bound_of_param()));
    }
    put_own_max(to + kCommon);
}

void ShardedTensor::take_max(const double* from) {
    is_given_anywhere_ = from[0] == 1;
    presence_differs_ = from[0] == 1 && from[1] == 1;
    if (!is_given_anywhere_ || presence_differs_) return;
    grad_format_differs_ = from[2] != -from[3];
    grad_format_ = Format(int(from[2]));
    is_unsound_ = from[4] == 1;
    bound_of_m_ = from[5];
    bound_of_param_ = from[6];
    take_own_max(from + kCommon);
}

void ShardedTensor::bound(const Descent* descents, std::size_t n, double sum_u_sq,
                          double sum_param_sq) {
    descents_ = descents;
    n_descents_ = n;
    sum_u_sq_ = sum_u_sq;
    sum_param_sq_ = sum_param_sq;
}

// As TensorStep::check, by the bounds of all ranks.
Fault ShardedTensor::check() {
    needs_look_ = false;
    if (is_unsound_) return Fault::second_moment;
    const ResultBounds bounds(tensor_, descents_, n_descents_,
                              std::sqrt(sum_u_sq_ / grad_sq_scale()));
    double m = 0, param = KnownNumbers::kUnknown;
    if (has_momentum()) {
        m = bound_of_m_;
        if (!std::isfinite(m)) return Fault::first_moment;
        next_m_ = bounds.m_after(m);
    }
    const bool tracks_param = !hyper_.scale_parameter && !is_bounded_by_move(tensor_);
    if (hyper_.scale_parameter)
        param = std::sqrt(sum_param_sq_) * kSumMargin;
    else if (tracks_param)
        param = bound_of_param_;
    if (tracks_param) next_param_ = bounds.param_after(param, m);
    needs_look_ = !bounds.are_finite(param, m);
    return Fault::none;
}

Fault ShardedTensor::look(const Team& team) {
    Fault fault = Fault::none;
    for (TensorStep* step : steps_) {
        step->bound(descents_, n_descents_, sum_u_sq_, sum_param_sq_);
        if (fault == Fault::none) fault = step->check_closely(team);
    }
    next_m_ = next_param_ = KnownNumbers::kUnknown;
    return fault;
}

void ShardedTensor::begin_apply() {
    for (TensorStep* step : steps_) step->begin_apply();
}

void ShardedTensor::end_apply() {
    for (TensorStep* step : steps_) step->end_apply();
}

void ShardedTensor::carry_bounds(bool propagate) {
    for (TensorStep* step : steps_) {
        step->carry_bounds(next_param_, next_m_);
        if (propagate)
            step->forget();
        else
            step->remember();
    }
}

std::ptrdiff_t ShardedTensor::bad_index(Fault fault, double& value) const {
    const Array* const array = array_at_fault(tensor_, fault);
    if (!given_ || array == nullptr) return -1;
    const std::ptrdiff_t index = first_of(*array, [&](const Block& element) {
        if (fault != Fault::result)
            return !std::isfinite(running_kernels().sum_squares(element).high);
        return std::any_of(steps_.begin(), steps_.end(), [&](const TensorStep* step) {
            return step->infinite_param() == element.data;
        });
    });
    if (index < 0) return -1;
    // Of a param in two halves its upper one, which is the caller's array.
    const Format format = array->format == Format::split ? Format::bfloat16 : array->format;
    value = number_of({element_at(*array, std::size_t(index)), 0, 1, 1, format, 0});
    return part_.index_of(index, *array);
}

std::unique_ptr<ShardedTensor> make_sharded(const Tensor& tensor, bool given, TensorReport& report,
                                            const ShardedPlaces& places) {
    if (tensor.part->layout == Layout::elements || tensor.part->n_elements() == 0)
        return make_sharded_elements(tensor, given, report, places);
    if (places.exact) return make_sharded_exact(tensor, given, report, places);
    if (is_small(tensor)) return make_sharded_elements(tensor, given, report, places);
    return make_sharded_factored(tensor, given, report, places);
}

}  // namespace adafactor
