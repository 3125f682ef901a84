#include "engine/measured.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "dispatch/isa.hpp"
#include "engine/float_environment.hpp"
#include "engine/strided.hpp"
#include "engine/threads.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kSampled = 4096;  // elements for each sample
constexpr std::size_t kMostSamples = 64;

// 0 and -0 are zero whatever they are scaled by.
bool is_zero(const char* element, std::size_t item) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, element, item);
    return bits << (65 - 8 * item) == 0;
}

// Whether any of n elements is not zero.
template <class Word>
bool has_nonzero(const char* p, std::ptrdiff_t stride, std::size_t n) {
    const auto any = [=](std::ptrdiff_t step) {
        Word all = 0;
        for (std::size_t k = 0; k < n; ++k) {
            Word bits;
            std::memcpy(&bits, p + std::ptrdiff_t(k) * step, sizeof bits);
            all = Word(all | Word(bits << 1));
        }
        return all != 0;
    };
    return stride == sizeof(Word) ? any(sizeof(Word)) : any(stride);
}

// Where an element is that is not zero, by its index in C order; 0 if there is none.
std::size_t place_of_nonzero(const Array& array) {
    const std::size_t size = size_of(array), item = item_size(array.format);
    const std::size_t length = array.ndim == 0 ? 1 : std::size_t(array.shape[array.ndim - 1]);
    const std::ptrdiff_t stride = array.ndim == 0 ? 0 : array.strides[array.ndim - 1];
    for (std::size_t row = 0; row < size; row += length) {
        for (std::size_t k = row; k < row + length; k += kSampled) {
            const std::size_t n = std::min(kSampled, row + length - k);
            const char* const p = element_at(array, k);
            if (!(item == 8   ? has_nonzero<std::uint64_t>(p, stride, n)
                  : item == 4 ? has_nonzero<std::uint32_t>(p, stride, n)
                              : has_nonzero<std::uint16_t>(p, stride, n)))
                continue;
            std::size_t at = k;
            while (is_zero(element_at(array, at), item)) ++at;
            return at;
        }
    }
    return 0;
}

// The numbers that measure goes by. Those of resolve and apply may differ; so may the gradient's
// sign, which leaves all squares as they are.
bool measure_alike(const HyperParameters& a, const HyperParameters& b) {
    return a.beta2 == b.beta2 && a.eps_squares == b.eps_squares && a.eps_means == b.eps_means &&
           a.eps_root == b.eps_root && a.root_floor == b.root_floor &&
           a.mean_floor == b.mean_floor && a.scale_parameter == b.scale_parameter &&
           a.per_matrix == b.per_matrix && std::abs(a.grad_scale) == std::abs(b.grad_scale);
}

}  // namespace

Samples::Samples(const Array& array)
    : step_(size_of(array) / std::clamp<std::size_t>(size_of(array) / kSampled, 1, kMostSamples)) {
    const std::size_t size = size_of(array), item = item_size(array.format);
    bool all_are_zero = true;
    for (std::size_t k = 0; k < size && all_are_zero; k += step_)
        all_are_zero = is_zero(element_at(array, k), item);
    if (all_are_zero) nonzero_ = place_of_nonzero(array);
    bits_ = bits_of(array);
}

std::uint64_t Samples::bits_of(const Array& array) const {
    const std::size_t size = size_of(array), item = item_size(array.format);
    std::uint64_t all = 0;
    const auto add = [&](std::size_t index) {
        std::uint64_t bits = 0;
        std::memcpy(&bits, element_at(array, index), item);
        all = (all ^ bits) * 0x9e3779b97f4a7c15;  // odd: no sample is lost
        all ^= all >> 32;
    };
    for (std::size_t k = 0; k < size; k += step_) add(k);
    for (const std::size_t k : {size / 2, size - 1, nonzero_}) add(k);
    return all;
}

Measured::Measured(const Tensor& tensor, int threads)
    : param_(tensor.param),
      grad_(tensor.grad),
      tensor_(tensor),
      grad_samples_(tensor.grad),
      param_samples_(tensor.param) {
    const DefaultFloatEnvironment while_this_works;
    tensor_.param = param_.array();
    tensor_.grad = grad_.array();
    for (auto [own, array] : {std::pair(&m_, &tensor_.m), std::pair(&copy_, &tensor_.copy)}) {
        if (array->data == nullptr) continue;
        *own = OwnedArray(*array);
        *array = own->array();
    }
    tensor_.measured = nullptr;
    const std::size_t item = item_size(tensor_.param.format) + item_size(tensor_.grad.format);
    const Place place = place_of(item * size_of(tensor_.param));
    step_ = make_step(tensor_, report_, memory_, running_kernels(), place);
    step_->allocate(memory_);
    looked_at_all_ = step_->looks_at_all();

    Scratch& for_step = Scratch::of_this_threads_step();
    Scratch& for_measure = Scratch::of_this_threads_measure();
    for_step.reset();
    for_measure.reset();
    const int n_threads = team_size(size_of(tensor_.param), threads);
    const std::size_t size = (step_->scratch_size() + kPadding - 1) / kPadding * kPadding;
    const Team team(n_threads, for_step.take<char>(size * std::size_t(n_threads)), size);
    step_->allocate_sums(for_measure);
    team.for_tasks(step_->n_measure_tasks(), Order::forwards,
                   [&](std::size_t task, int, char* scratch) { step_->measure(task, scratch); });
    step_->keep_sums(memory_);
}

bool Measured::serves(const Tensor& tensor) const {
    return param_.is(tensor.param) && grad_.is(tensor.grad) && m_.is(tensor.m) &&
           copy_.is(tensor.copy) && tensor_.row_axis == tensor.row_axis &&
           tensor_.col_axis == tensor.col_axis && tensor_.exp_row == tensor.exp_row &&
           tensor_.exp_col == tensor.exp_col && tensor_.v == tensor.v &&
           tensor_.state_format == tensor.state_format && tensor_.carried == tensor.carried &&
           tensor_.known == tensor.known &&
           (looked_at_all_ || (tensor.known != nullptr && tensor.known->means)) &&
           measure_alike(tensor_.hyper, tensor.hyper);
}

TensorStep* Measured::take_over(const Tensor& tensor, TensorReport& report) {
    tensor_.hyper = tensor.hyper;
    tensor_.stochastic = tensor.stochastic;
    tensor_.random = tensor.random;
    step_->take_over(tensor_.hyper, report);
    return step_;
}

}  // namespace adafactor
