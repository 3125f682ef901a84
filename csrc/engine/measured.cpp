#include "engine/measured.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch/isa.hpp"
#include "engine/float_environment.hpp"
#include "engine/threads.hpp"

namespace adafactor {
namespace {

bool are_same(const Array& a, const Array& b) {
    return a.data == b.data && a.format == b.format && a.ndim == b.ndim && a.low == b.low &&
           std::equal(a.shape, a.shape + a.ndim, b.shape) &&
           std::equal(a.strides, a.strides + a.ndim, b.strides);
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

Measured::Measured(const Tensor& tensor, int threads) : tensor_(tensor) {
    const DefaultFloatEnvironment while_this_works;
    own_shapes();
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

    grad_samples_ = samples_of(tensor_.grad);
    param_samples_ = samples_of(tensor_.param);
}

bool Measured::serves(const Tensor& tensor) const {
    return are_same(tensor_.param, tensor.param) && are_same(tensor_.grad, tensor.grad) &&
           are_same(tensor_.m, tensor.m) && are_same(tensor_.copy, tensor.copy) &&
           tensor_.row_axis == tensor.row_axis && tensor_.col_axis == tensor.col_axis &&
           tensor_.exp_row == tensor.exp_row && tensor_.exp_col == tensor.exp_col &&
           tensor_.v == tensor.v && tensor_.state_format == tensor.state_format &&
           tensor_.carried == tensor.carried && tensor_.known == tensor.known &&
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

void Measured::own_shapes() {
    Array* const arrays[] = {&tensor_.param, &tensor_.grad, &tensor_.m, &tensor_.copy};
    const auto n = std::size_t(tensor_.param.ndim);
    lengths_.resize(5 * n);
    std::copy_n(tensor_.param.shape, n, lengths_.data());
    std::ptrdiff_t* strides = lengths_.data() + n;
    for (Array* array : arrays) {
        if (array->data == nullptr) continue;
        std::copy_n(array->strides, n, strides);
        array->shape = lengths_.data();
        array->strides = strides;
        strides += n;
    }
}

Measured::Samples Measured::samples_of(const Array& array) {
    const std::size_t size = size_of(array), places[] = {0, size / 2, size - 1};
    Samples samples{};
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const char* p = array.data;
        std::size_t rest = places[i];
        for (int d = array.ndim - 1; d >= 0; --d) {
            p += std::ptrdiff_t(rest % std::size_t(array.shape[d])) * array.strides[d];
            rest /= std::size_t(array.shape[d]);
        }
        std::memcpy(&samples[i], p, item_size(array.format));
    }
    return samples;
}

}  // namespace adafactor
