// A tensor with its full second moment: measure, resolve, apply.
#include <algorithm>
#include <cmath>
#include <new>

#include "engine/blocks.hpp"
#include "engine/carried.hpp"
#include "engine/resolve.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

enum { kParam, kGrad, kV, kM, kCopy };

// Of param, grad, v, m and copy; of param once more where there is no m, or copy.
ElementOrder order_of(const Tensor& tensor) {
    const Array& param = tensor.param;
    std::ptrdiff_t strides[ElementOrder::kMaxAxes], stride = sizeof(double);
    for (int d = param.ndim - 1; d >= 0; --d) {
        strides[d] = stride;
        stride *= param.shape[d];
    }
    const Array v{reinterpret_cast<char*>(tensor.v), Format::float64, param.ndim, param.shape,
                  strides};
    return {&param, &tensor.grad, &v, tensor.m.data != nullptr ? &tensor.m : &param,
            tensor.copy.data != nullptr ? &tensor.copy : &param};
}

// Threads take tiles of kTile elements, kernels runs of kChunk. Elements that are no neighbours in
// memory are copied, so that kernels see the same runs, and add in the same order, for any strides.
template <class P, class G>
class UnfactoredStep final : public TensorStep {
public:
    UnfactoredStep(const Tensor& tensor, TensorReport& report, const Kernels<P, G>& kernels)
        : TensorStep(tensor, report),
          kernels_(kernels),
          order_(order_of(tensor)),
          n_tiles_((order_.size() + kTile - 1) / kTile) {}

    std::size_t room_size() const override { return 0; }

    void allocate(Scratch& kept, Scratch& passing) override {
        sums_ = kept.take<Sums>(n_tiles_);
        param_sq_ = passing.take<double>(n_tiles_);
        if (carried_ != nullptr && needs_param_) carried_->expect(tensor_.param, n_tiles_);
    }

    std::size_t n_measure_tasks() const override { return n_tiles_; }

    void measure(std::size_t tile, char*) override {
        measure_moment(tile);
        if (needs_param_ && (carried_ == nullptr || carried_->is_unknown(tile)))
            param_sq_[tile] = sum_param_squares(tile);
    }

    Fault resolve(const Team& team, bool propagate) override {
        const auto n = double(order_.size());
        if (needs_param_) {
            if (carried_ != nullptr && !carried_->complete(param_sq_))
                team.for_tasks(n_tiles_, Order::forwards, [&](std::size_t tile, int, char*) {
                    param_sq_[tile] = sum_param_squares(tile);
                });
            mean_param_sq_ = 0;
            for (std::size_t t = 0; t < n_tiles_; ++t) mean_param_sq_ += param_sq_[t];
            mean_param_sq_ /= n;
            needs_param_ = false;
        }
        Sums total{};
        for (std::size_t t = 0; t < n_tiles_; ++t) total.add(sums_[t]);
        report_.grad_sq = total.grad_sq;
        const Fault fault = fault_of(total);
        if (fault != Fault::none && !propagate) return fault;

        const double mean_u_sq = total.u_sq / n * grad_sq_scale();
        const StepSize size = step_size(hyper_, has_momentum(), mean_u_sq, mean_param_sq_);
        move_ = size.move;
        report_.rms_u = std::sqrt(mean_u_sq);
        report_.clip_divisor = size.divisor;
        report_.step_size = size.step_size;
        if (hyper_.scale_parameter) report_.rms_param = std::sqrt(mean_param_sq_);
        return fault;
    }

    std::size_t n_apply_tasks() const override { return n_tiles_; }

    void begin_apply() override { written_ = carried_ != nullptr ? carried_->written() : nullptr; }

    void apply(std::size_t tile, char*) override {
        double param_sq = 0;
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            P param_place[kChunk], m_place[kChunk];
            G grad_place[kChunk];
            double v_place[kChunk];
            P* const param = run_of(kParam, k, n, param_place);
            P* const m = has_momentum() ? run_of(kM, k, n, m_place) : nullptr;
            double* const v = run_of(kV, k, n, v_place);
            kernels_.apply_unfactored(param, m, run_of(kGrad, k, n, grad_place), v, n, moment(),
                                      move_, sums_[tile].wide);
            if (param == param_place) order_.scatter(param, kParam, k, n, rounding(k));
            if (has_copy()) order_.scatter(param, kCopy, k, n, rounding(k));
            if (m == m_place) order_.scatter(m, kM, k, n);
            if (v == v_place) order_.scatter(v, kV, k, n);
            if (written_ != nullptr) param_sq += sum_run_squares(k, n);
        });
        if (written_ != nullptr) written_[tile] = param_sq;
    }

    void end_apply() override {
        if (carried_ != nullptr) carried_->remember();
    }

private:
    struct Sums {
        double grad_sq, u_sq;
        bool wide;  // in one of the runs
        void add(const Sums& other) {
            grad_sq += other.grad_sq;
            u_sq += other.u_sq;
            wide = wide || other.wide;
        }
    };

    Fault fault_of(const Sums& total) const {
        if (!std::isfinite(total.grad_sq)) return Fault::grad;
        if (hyper_.scale_parameter && !std::isfinite(mean_param_sq_)) return Fault::param;
        if (!std::isfinite(total.u_sq)) return Fault::second_moment;
        return Fault::none;
    }

    template <class Body>  // body(first element, number)
    void for_runs(std::size_t tile, const Body& body) const {
        const std::size_t end = std::min((tile + 1) * kTile, order_.size());
        for (std::size_t k = tile * kTile; k < end; k += kChunk) body(k, std::min(kChunk, end - k));
    }

    // The run itself where kernels can take it, otherwise a copy of it in `place`.
    template <class T>
    T* run_of(int array, std::size_t k, std::size_t n, T* place) const {
        char* start;
        if (order_.is_direct(array, k, n, start)) return reinterpret_cast<T*>(start);
        order_.gather(array, k, n, place);
        return place;
    }

    double sum_param_squares(std::size_t tile) const {
        double sum = 0;
        for_runs(tile, [&](std::size_t k, std::size_t n) { sum += sum_run_squares(k, n); });
        return sum;
    }

    double sum_run_squares(std::size_t k, std::size_t n) const {
        P param_place[kChunk];
        return kernels_.sum_squares({run_of(kParam, k, n, param_place), 0, 1, n});
    }

    void measure_moment(std::size_t tile) const {
        Sums sums{};
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            G grad_place[kChunk];
            double v_place[kChunk];
            const UnfactoredSums run = kernels_.measure_unfactored(
                run_of(kGrad, k, n, grad_place), run_of(kV, k, n, v_place), n, moment());
            sums.add({run.grad_sq, run.u_sq, run.wide});
        });
        sums_[tile] = sums;
    }

    const Kernels<P, G>& kernels_;
    ElementOrder order_;
    std::size_t n_tiles_;
    Sums* sums_ = nullptr;        // (n_tiles,)
    double* param_sq_ = nullptr;  // (n_tiles,), until resolve is done
    double mean_param_sq_ = 1;
    Move move_{};
    double* written_ = nullptr;  // (n_tiles,) sums that are carried to the next step
};

}  // namespace

template <class P, class G>
TensorStep* make_unfactored_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                                 const Kernels<P, G>& kernels) {
    return new (kept.take<UnfactoredStep<P, G>>(1)) UnfactoredStep<P, G>(tensor, report, kernels);
}

#define ADAFACTOR_INSTANTIATE(P, G)                                                   \
    template TensorStep* make_unfactored_step(const Tensor&, TensorReport&, Scratch&, \
                                              const Kernels<P, G>&);
ADAFACTOR_FOR_EACH_PAIR(ADAFACTOR_INSTANTIATE)

}  // namespace adafactor
