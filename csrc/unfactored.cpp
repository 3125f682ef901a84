// Anything that is not a matrix: measure, resolve, apply with the full second moment.
#include <algorithm>
#include <cmath>

#include "blocks.hpp"
#include "carried.hpp"
#include "resolve.hpp"
#include "scratch.hpp"
#include "step.hpp"
#include "threads.hpp"

namespace adafactor {
namespace {

enum { kParam, kGrad, kV };

// Threads take tiles of kTile elements, kernels runs of kChunk. Elements that are no neighbours in
// memory are copied, so that kernels see the same runs, and add in the same order, for any strides.
template <class P, class G>
class UnfactoredStep {
public:
    UnfactoredStep(const Tensor& tensor, const Array& v, const HyperParameters& hyper, int threads,
                   const Kernels<P, G>& kernels)
        : param_(tensor.param),
          hyper_(hyper),
          kernels_(kernels),
          carried_(tensor.carried),
          order_({&tensor.param, &tensor.grad, &v}),
          threads_(team_size(order_.size(), threads)),
          n_tiles_((order_.size() + kTile - 1) / kTile) {}

    Outcome take(bool propagate) {
        Scratch& scratch = Scratch::of_this_thread();
        scratch.reset();
        sums_ = scratch.take<Sums>(n_tiles_);
        param_sq_ = scratch.take<double>(n_tiles_);
        if (carried_ != nullptr) carried_->expect(param_, n_tiles_);
        measure();
        Sums total{};
        double param_sq = 0;
        for (std::size_t t = 0; t < n_tiles_; ++t) {
            total.add(sums_[t]);
            param_sq += param_sq_[t];
        }
        const Fault fault = fault_of(total, param_sq);
        if (fault != Fault::none && !propagate) return {fault};

        const auto n = double(order_.size());
        const double step = step_size(hyper_, total.u_sq / n, param_sq / n);
        apply(step);
        return {};
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

    static Fault fault_of(const Sums& total, double param_sq) {
        if (!std::isfinite(total.grad_sq)) return Fault::grad;
        if (!std::isfinite(param_sq)) return Fault::param;
        if (!std::isfinite(total.u_sq)) return Fault::second_moment;
        return Fault::none;
    }

    Unfactored moment() const { return {hyper_.beta2, hyper_.eps}; }

    template <class Body>  // body(first element, number)
    void for_runs(std::size_t tile, const Body& body) const {
        const std::size_t end = std::min((tile + 1) * kTile, order_.size());
        for (std::size_t k = tile * kTile; k < end; k += kChunk) body(k, std::min(kChunk, end - k));
    }

    // The run itself where its elements are neighbours, otherwise a copy of it in `place`.
    template <class T>
    T* run_of(int array, std::size_t k, std::size_t n, T* place) const {
        char* start;
        if (order_.is_run(array, k, n, start)) return reinterpret_cast<T*>(start);
        order_.gather(array, k, n, place);
        return place;
    }

    void measure() {
        parallel_for(n_tiles_, threads_, [&](std::size_t tile, int) {
            measure_moment(tile);
            const bool needed =
                carried_ == nullptr ? hyper_.scale_parameter : carried_->is_unknown(tile);
            param_sq_[tile] = needed ? sum_param_squares(tile) : 0;
        });
        if (carried_ != nullptr && !carried_->complete(param_sq_))
            parallel_for(n_tiles_, threads_,
                         [&](std::size_t tile, int) { param_sq_[tile] = sum_param_squares(tile); });
    }

    double sum_param_squares(std::size_t tile) const {
        double sum = 0;
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            P param_place[kChunk];
            sum += kernels_.sum_squares({run_of(kParam, k, n, param_place), 0, 1, n});
        });
        return sum;
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

    void apply(double step) {
        double* const written = carried_ != nullptr ? carried_->written() : nullptr;
        // Backwards: what measure read last is still in the outer cache.
        parallel_for(n_tiles_, threads_, Order::backwards, [&](std::size_t tile, int) {
            const double param_sq = apply(tile, step);
            if (carried_ != nullptr) written[tile] = param_sq;
        });
        if (carried_ != nullptr) carried_->remember();
    }

    // Returns the sum of squares of what it wrote, if that is carried.
    double apply(std::size_t tile, double step) const {
        double param_sq = 0;
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            P param_place[kChunk];
            G grad_place[kChunk];
            double v_place[kChunk];
            P* param = run_of(kParam, k, n, param_place);
            double* v = run_of(kV, k, n, v_place);
            kernels_.apply_unfactored(param, run_of(kGrad, k, n, grad_place), v, n, moment(), step,
                                      sums_[tile].wide);
            if (carried_ != nullptr) param_sq += kernels_.sum_squares({param, 0, 1, n});
            if (param == param_place) order_.scatter(param, kParam, k, n);
            if (v == v_place) order_.scatter(v, kV, k, n);
        });
        return param_sq;
    }

    const Array& param_;
    HyperParameters hyper_;
    const Kernels<P, G>& kernels_;
    CarriedSquares* carried_;  // null if RMS(param) is measured, or not needed
    ElementOrder order_;
    int threads_;
    std::size_t n_tiles_;
    Sums* sums_ = nullptr;        // (n_tiles,)
    double* param_sq_ = nullptr;  // (n_tiles,)
};

}  // namespace

template <class P, class G>
Outcome step_unfactored(const Tensor& tensor, const HyperParameters& hyper, bool propagate,
                        int threads, const KernelTable&, const Kernels<P, G>& kernels) {
    const int ndim = tensor.param.ndim;
    std::ptrdiff_t v_strides[ElementOrder::kMaxAxes];
    std::ptrdiff_t stride = sizeof(double);
    for (int d = ndim - 1; d >= 0; --d) {
        v_strides[d] = stride;
        stride *= tensor.param.shape[d];
    }
    const Array v{reinterpret_cast<char*>(tensor.v), DType::float64, ndim, tensor.param.shape,
                  v_strides};
    return UnfactoredStep<P, G>(tensor, v, hyper, threads, kernels).take(propagate);
}

#define ADAFACTOR_INSTANTIATE(P, G)                                                    \
    template Outcome step_unfactored(const Tensor&, const HyperParameters&, bool, int, \
                                     const KernelTable&, const Kernels<P, G>&);
ADAFACTOR_FOR_EACH_PAIR(ADAFACTOR_INSTANTIATE)

}  // namespace adafactor
