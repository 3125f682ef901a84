#include "engine/finite_result.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "engine/strided.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

constexpr double kMargin = 0.99;        // of the largest number, for what is rounded on the way
constexpr double kMostSquared = 1e150;  // whose square float64 holds
// What an element of u may be whose square is lost in a sum of float32.
constexpr double kLostU = 0x1p-70;

double largest_of(Format format) {
    switch (format) {
        case Format::float16:
            return 65504;
        case Format::bfloat16:
        case Format::split:  // the upper half
            return 0x1.fep127;
        case Format::float64:
            return std::numeric_limits<double>::max();
        default:
            return std::numeric_limits<float>::max();
    }
}

// Half a unit in the last place of the largest number.
double half_unit_of(Format format) {
    switch (format) {
        case Format::float16:
            return 16;
        case Format::bfloat16:
            return 0x1p119;
        case Format::float64:
            return 0x1p970;
        default:
            return 0x1p103;
    }
}

// By how much a number may grow when it is rounded, at random too.
double slack_of(Format format) {
    return format == Format::bfloat16  ? 1 + 0x1p-7
           : format == Format::float16 ? 1 + 0x1p-10
                                       : 1 + 0x1p-20;
}

template <class Bits>
std::ptrdiff_t first_infinite(const char* run, std::size_t n, Bits exponent) {
    for (std::size_t k = 0; k < n; ++k) {
        Bits bits;
        std::memcpy(&bits, run + k * sizeof(Bits), sizeof(Bits));
        if ((bits & exponent) == exponent) return std::ptrdiff_t(k);
    }
    return -1;
}

std::ptrdiff_t first_infinite(const char* run, std::size_t n, Format format) {
    switch (format) {
        case Format::float16:
            return first_infinite(run, n, std::uint16_t(0x7c00));
        case Format::bfloat16:
        case Format::split:  // the exponent is in the upper half
            return first_infinite(run, n, std::uint16_t(0x7f80));
        case Format::float32:
            return first_infinite(run, n, std::uint32_t(0x7f800000));
        case Format::float64:
            return first_infinite(run, n, std::uint64_t(0x7ff) << 52);
        default:
            return -1;
    }
}

constexpr std::size_t kChunksPerTask = 64;

void raise_to(std::atomic<double>& largest, double x) {
    double before = largest;
    while (before < x && !largest.compare_exchange_weak(before, x)) continue;
}

}  // namespace

std::ptrdiff_t first_infinite(const Block& block) {
    for (std::size_t i = 0; i < block.rows; ++i) {
        const std::ptrdiff_t j =
            first_infinite(block.data + std::ptrdiff_t(i) * block.stride, block.cols, block.format);
        if (j >= 0) return std::ptrdiff_t(i * block.cols) + j;
    }
    return -1;
}

bool is_bounded_by_move(const Tensor& tensor) {
    const Format format = tensor.param.format;
    const bool is_half_at_random = tensor.stochastic && is_half(format);
    return tensor.copy.data == nullptr && format != Format::split && !is_half_at_random;
}

ResultBounds::ResultBounds(const Tensor& tensor, const Descent* descents, std::size_t n,
                           double largest_u)
    : has_m_(tensor.m.data != nullptr) {
    double weight = 0, least_decay = 0, most_decay = 0;
    for (std::size_t k = 0; k < n; ++k) {
        const Descent& descent = descents[k];
        weight = std::max(weight, std::abs(descent.weight));
        rate_ = std::max(rate_, std::abs(descent.rate));
        beta1_ = std::max(beta1_, std::abs(descent.beta1));
        least_decay = std::min(least_decay, descent.decay);
        most_decay = std::max(most_decay, descent.decay);
    }
    x_ = weight * (largest_u * kSumMargin + kLostU);
    param_factor_ = std::max(1 - least_decay, most_decay - 1);
    const Format format = tensor.param.format;
    largest_param_ = kMargin * largest_of(format);
    param_slack_ = slack_of(format);
    if (tensor.copy.data != nullptr)
        largest_param_ = std::min(largest_param_, kMargin * largest_of(tensor.copy.format));
    if (is_bounded_by_move(tensor) && most_decay <= 1 && least_decay >= 0)
        least_move_ = half_unit_of(format) / 2;
    if (has_m_) {
        largest_m_ = kMargin * largest_of(tensor.m.format);
        m_slack_ = slack_of(tensor.m.format);
    }
}

bool ResultBounds::are_finite(double param, double m) const {
    if (has_m_ && !(m_after(m) <= largest_m_)) return false;
    return move(m) <= least_move_ || param_after(param, m) <= largest_param_;
}

// Whether this turn's running means are what steps leave; v was looked at by measure.
bool TensorStep::has_sound_means() const {
    if (tensor_.v != nullptr) return v_is_sound_;
    const bool all = looks_at_all();
    const Array& param = tensor_.param;
    auto n_rows = std::size_t(param.shape[tensor_.row_axis]);
    auto n_cols = std::size_t(param.shape[tensor_.col_axis]);
    if (param.ndim > 2) {
        const std::size_t n_matrices = size_of(param) / n_rows / n_cols;
        n_rows *= n_matrices;
        n_cols *= n_matrices;
    }
    const auto are_sound = [&](void* means, std::size_t n) {
        constexpr std::size_t unit = 64;
        const TurnOf part = due((n + unit - 1) / unit, all);
        if (part.is_empty()) return true;
        const std::size_t begin = part.begin * unit;
        const Block run{static_cast<char*>(means) + begin * item_size(tensor_.state_format), 0, 1,
                        std::min(part.end * unit, n) - begin, tensor_.state_format};
        return kernels_.are_within(run, largest_mean());
    };
    return are_sound(tensor_.exp_row, n_rows) && are_sound(tensor_.exp_col, n_cols);
}

double TensorStep::largest_mean() const {
    return largest_second_moment(tensor_.grad.format) * std::max(1., grad_sq_scale());
}

// The largest sum of squares of a chunk's numbers, of chunks [begin, end) of an array; infinity if
// one is not finite, or if its square is not.
double TensorStep::largest_sum_sq(const Array& array, std::size_t begin, std::size_t end) const {
    const ElementOrder order({&array});
    double largest = 0;
    for (std::size_t c = begin; c < end; ++c) {
        alignas(64) char copies[kChunk * sizeof(double)];
        const std::size_t n = std::min(kChunk, order.size() - c * kChunk);
        Block run = order.run(0, c * kChunk, n, copies);
        if (n == kChunk) {  // four rows are summed faster than one
            run.rows = 4;
            run.cols = kChunk / 4;
            run.stride = std::ptrdiff_t(run.cols * item_size(run.format));
        }
        const double sum_sq = kernels_.sum_squares(run).high;
        if (!(sum_sq <= largest))
            largest = std::isnan(sum_sq) ? std::numeric_limits<double>::infinity() : sum_sq;
    }
    return largest;
}

void TensorStep::look_at_due(std::size_t task, std::size_t n_tasks) {
    const std::size_t n_chunks = (size_of(tensor_.param) + kChunk - 1) / kChunk;
    const auto look = [&](const Array& array, double known, std::atomic<double>& largest_sq) {
        const TurnOf part = due(n_chunks, std::isnan(known));
        const std::size_t begin = part.begin + part.size() * task / n_tasks;
        const std::size_t end = part.begin + part.size() * (task + 1) / n_tasks;
        if (begin < end) raise_to(largest_sq, largest_sum_sq(array, begin, end));
    };
    if (has_momentum()) look(tensor_.m, known_m(), seen_m_sq_);
    if (tracks_param()) look(tensor_.param, known_param(), seen_param_sq_);
}

double TensorStep::largest_in(const Array& array, const Team& team) const {
    const std::size_t n_chunks = (size_of(array) + kChunk - 1) / kChunk;
    std::atomic<double> largest_sq{0};
    team.for_tasks((n_chunks + kChunksPerTask - 1) / kChunksPerTask, Order::forwards,
                   [&](std::size_t task, int, char*) {
                       const std::size_t begin = task * kChunksPerTask;
                       const std::size_t end = std::min(begin + kChunksPerTask, n_chunks);
                       raise_to(largest_sq, largest_sum_sq(array, begin, end));
                   });
    return std::sqrt(largest_sq) * kSumMargin;
}

Fault TensorStep::check(const Team& team) {
    if (!has_sound_means()) return Fault::second_moment;
    // Nearly every step without a first moment: of numbers that a small move leaves finite.
    if (!has_momentum() && is_bounded_by_move(tensor_) && n_descents_ == 1) {
        const Descent& descent = descents_[0];
        const double most = std::min(kMostSquared, half_unit_of(tensor_.param.format) / 4);
        const double weight = descent.weight / hyper_.grad_scale;
        if (descent.decay >= 0 && descent.decay <= 1 &&
            weight * weight * sum_u_sq_ <= most * most && std::abs(descent.weight) * kLostU <= most)
            return Fault::none;
    }
    return check_numbers(team);
}

double TensorStep::largest(double known, double seen_sq) {
    const double seen = std::sqrt(seen_sq) * kSumMargin;
    return known > seen ? known : seen;
}

Fault TensorStep::check_numbers(const Team& team) {
    const ResultBounds bounds(tensor_, descents_, n_descents_,
                              std::sqrt(sum_u_sq_ / grad_sq_scale()));
    double m = 0, param = KnownNumbers::kUnknown;
    if (has_momentum()) {
        m = bound_of_m();
        if (!std::isfinite(m)) return Fault::first_moment;
    }
    if (hyper_.scale_parameter)
        param = std::sqrt(sum_param_sq_) * kSumMargin;
    else if (tracks_param())
        param = bound_of_param();
    note_bounds(bounds, param, m);
    if (bounds.are_finite(param, m)) return Fault::none;
    return look_at_all_numbers(team, bounds);
}

Fault TensorStep::check_closely(const Team& team) {
    return look_at_all_numbers(team, ResultBounds(tensor_, descents_, n_descents_,
                                                  std::sqrt(sum_u_sq_ / grad_sq_scale())));
}

void TensorStep::note_bounds(const ResultBounds& bounds, double param, double m) {
    if (has_momentum()) next_m_ = bounds.m_after(m);
    if (tracks_param()) next_param_ = bounds.param_after(param, m);
}

// By closer bounds, and by what apply would write.
Fault TensorStep::look_at_all_numbers(const Team& team, const ResultBounds& bounds) {
    const double m = has_momentum() ? largest_in(tensor_.m, team) : 0;
    if (!std::isfinite(m)) return Fault::first_moment;
    const double param = largest_in(tensor_.param, team);
    note_bounds(bounds, param, m);
    if (bounds.are_finite(param, m)) return Fault::none;
    first_infinite_ = nullptr;
    team.for_tasks(n_apply_tasks(), Order::forwards,
                   [&](std::size_t task, int, char*) { look(task); });
    return first_infinite_.load() != nullptr ? Fault::result : Fault::none;
}

void TensorStep::remember() {
    if (tensor_.known == nullptr) return;
    *tensor_.known = {next_param_, next_m_, true, tensor_.known->turn};
}

void TensorStep::note_infinite(const char* param) {
    const char* before = first_infinite_;
    while ((before == nullptr || param < before) &&
           !first_infinite_.compare_exchange_weak(before, param))
        continue;
}

}  // namespace adafactor
