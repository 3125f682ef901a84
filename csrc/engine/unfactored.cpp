// A tensor with its full second moment: measure, resolve, apply. A special case because all of its
// arithmetic is elementwise: nothing is left to decide between the sweeps but the step size.
#include <algorithm>
#include <cmath>
#include <new>

#include "engine/elementwise_step.hpp"
#include "engine/geometry.hpp"
#include "engine/param_squares.hpp"
#include "engine/sharded_tensor.hpp"

namespace adafactor {
namespace {

enum { kParam, kGrad, kV, kM, kCopy, kArrays };

ElementOrder order_of(const Tensor& tensor) {
    const Array& param = tensor.param;
    std::ptrdiff_t strides[ElementOrder::kMaxAxes];
    auto stride = std::ptrdiff_t(item_size(tensor.state_format));
    for (int d = param.ndim - 1; d >= 0; --d) {
        strides[d] = stride;
        stride *= param.shape[d];
    }
    const Array v{static_cast<char*>(tensor.v), tensor.state_format, param.ndim, param.shape,
                  strides};
    // Random bits of a part go by the places of its elements in the whole tensor.
    const bool in_c_order = tensor.part != nullptr && tensor.stochastic;
    return ElementOrder({&param, &tensor.grad, &v, &tensor.m, &tensor.copy}, in_c_order);
}

// Threads take tiles of kTaskElements, kernels runs of kChunk. Elements that are no neighbours in
// memory are copied, so that kernels see the same runs, and add in the same order, for any strides.
class UnfactoredStep final : public ElementwiseStep {
public:
    UnfactoredStep(const Tensor& tensor, TensorReport& report, const KernelTable& kernels)
        : ElementwiseStep(tensor, report, kernels),
          param_squares_(tensor),
          order_(order_of(tensor)),
          n_tiles_((order_.size() + kTaskElements - 1) / kTaskElements) {}

    void allocate(Scratch& for_step) override { sums_ = for_step.take<TileSums>(n_tiles_); }

    void allocate_sums(Scratch& for_measure) override {
        param_squares_.allocate(tensor_.param, n_tiles_, for_measure);
    }

    void keep_sums(Scratch& own) override { param_squares_.keep(n_tiles_, own); }

    std::size_t n_measure_tasks() const override { return n_tiles_; }

    void measure(std::size_t tile, char*) override {
        measure_moment(tile);
        measure_param(tile);
    }

    ElementSums sums(const Team& team) override {
        if (param_squares_.is_unknown()) {
            const SumWords* const squares = param_squares_.complete([&] {
                team.for_tasks(n_tiles_, Order::forwards,
                               [&](std::size_t tile, int, char*) { measure_param(tile); });
            });
            for (std::size_t tile = 0; tile < n_tiles_; ++tile) param_sq_.add(squares[tile]);
        }
        ElementSums sums;
        for (std::size_t tile = 0; tile < n_tiles_; ++tile) {
            sums.grad_sq.add(sums_[tile].grad_sq);
            sums.u_sq.add(sums_[tile].u_sq);
            sums.overflows = sums.overflows || sums_[tile].v_overflows;
        }
        sums.param_sq = param_sq_;
        return sums;
    }

    void decide(const ElementSums& of_all, double n) override {
        const double mean_u_sq = of_all.u_sq.value() / n * grad_sq_scale();
        const double mean_param_sq = of_all.param_sq.value() / n;
        descent_ =
            reported_step_size(hyper_, has_momentum(), mean_u_sq, mean_param_sq, *report_).descent;
        bound(&descent_, 1, mean_u_sq * n, mean_param_sq * n);
    }

    void widen() override {
        for (std::size_t tile = 0; tile < n_tiles_; ++tile) sums_[tile].wide = true;
    }

    void for_squares(std::size_t tile,
                     const std::function<void(double, double, double)>& take) override {
        const Moment by = moment();
        const std::size_t end = std::min((tile + 1) * kTaskElements, order_.size());
        const auto number = [&](int array, Format format, std::ptrdiff_t low, std::size_t k) {
            return number_of({order_.at(array, k), 0, 1, 1, format, low});
        };
        for (std::size_t k = tile * kTaskElements; k < end; ++k) {
            const double g = number(kGrad, tensor_.grad.format, 0, k);
            const double old = number(kV, tensor_.state_format, 0, k);
            const double p = number(kParam, tensor_.param.format, tensor_.param.low, k);
            const double V =
                by.beta2 * old + (1 - by.beta2) * (g * g * by.scale + by.eps) + by.eps_means;
            const double root = std::sqrt(V) + by.eps_root;
            const double u = g == 0 ? 0 : g / (root < by.root_floor ? by.root_floor : root);
            take(g * g, u * u, p * p);
        }
    }

    std::size_t n_apply_tasks() const override { return n_tiles_; }

    void begin_apply() override { param_squares_.begin_apply(); }

    void apply(std::size_t tile, char*) override {
        SumWords* const written = param_squares_.written(tile);
        SumWords param_sq{};
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            Copies copies;
            const auto run = [&](int array) { return order_.run(array, k, n, copies.of[array]); };
            const StepBlocks blocks{run(kParam), run(kM), run(kGrad), run(kCopy)};
            const Block v = run(kV);
            apply_run(blocks, v, k, sums_[tile].wide);
            if (written != nullptr) add_to(param_sq, kernels_.sum_squares(blocks.param));
            const auto put_back = [&](const Block& from, int array) {
                if (from.data == copies.of[array]) order_.scatter(from, array, k, n);
            };
            put_back(blocks.param, kParam);
            put_back(blocks.m, kM);
            put_back(blocks.copy, kCopy);
            put_back(v, kV);
        });
        if (written != nullptr) *written = param_sq;
    }

    void end_apply() override { param_squares_.end_apply(); }

private:
    // Places for the copies of a run of each array.
    struct Copies {
        alignas(64) char of[kArrays][kChunk * sizeof(double)];
    };

    // A run that begins with element k. A part's elements have the numbers of the whole tensor, by
    // which their random bits are drawn: where these do not begin a draw, zeros stand before them.
    void apply_run(const StepBlocks& blocks, const Block& v, std::size_t k, bool wide) const {
        const Part* const part = tensor_.stochastic ? tensor_.part : nullptr;
        if (part == nullptr) {
            kernels_.apply_unfactored(blocks, v, moment(), descent_, rounding(k), wide);
            return;
        }
        const std::size_t n = blocks.param.cols, length = part->run_of(tensor_.param);
        for (std::size_t done = 0; done < n;) {
            const std::size_t at = k + done, in_run = at % length;
            const auto number =
                std::size_t(part->index_of(std::ptrdiff_t(at - in_run), tensor_.param)) + in_run;
            const std::size_t pad = number % kNumbered;
            const std::size_t taken = std::min({n - done, length - in_run, kChunk - pad});
            Copies copies;
            const auto sub_run = [&](const Block& run) {
                Block sub = run;
                if (run.format == Format::none) return sub;
                sub.data += done * item_size(run.format);
                sub.cols = taken;
                return sub;
            };
            const StepBlocks own{sub_run(blocks.param), sub_run(blocks.m), sub_run(blocks.grad),
                                 sub_run(blocks.copy)};
            const StepBlocks padded{padded_block(own.param, pad, copies.of[kParam]),
                                    padded_block(own.m, pad, copies.of[kM]),
                                    padded_block(own.grad, pad, copies.of[kGrad]),
                                    padded_block(own.copy, pad, copies.of[kCopy])};
            const Block own_v = sub_run(v), padded_v = padded_block(own_v, pad, copies.of[kV]);
            kernels_.apply_unfactored(padded, padded_v, moment(), descent_, rounding(number - pad),
                                      wide);
            put_padded_back(padded.param, pad, own.param);
            put_padded_back(padded.m, pad, own.m);
            put_padded_back(padded.copy, pad, own.copy);
            put_padded_back(padded_v, pad, own_v);
            done += taken;
        }
    }

    void look(std::size_t tile) override {
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            Copies copies;
            const auto run = [&](int array) {
                return copied_run(order_.run(array, k, n, copies.of[array]), copies.of[array]);
            };
            const Block v = run(kV);
            const StepBlocks blocks{run(kParam), run(kM), run(kGrad), run(kCopy)};
            apply_run(blocks, v, k, sums_[tile].wide);
            for (const Block& block : {blocks.param, blocks.m, blocks.copy}) {
                const std::ptrdiff_t found = first_infinite(block);
                if (found >= 0) note_infinite(order_.at(kParam, k + std::size_t(found)));
            }
        });
    }

    // Over the runs of a tile. wide, v_overflows: in one of them.
    struct TileSums {
        SumWords grad_sq, u_sq;
        bool wide, v_overflows;

        void add(const UnfactoredSums& run) {
            add_to(grad_sq, {run.grad_sq, 0});
            add_to(u_sq, {run.u_sq, 0});
            wide = wide || run.wide;
            v_overflows = v_overflows || run.v_overflows;
        }
    };

    template <class Body>  // body(first element, number)
    void for_runs(std::size_t tile, const Body& body) const {
        const std::size_t end = std::min((tile + 1) * kTaskElements, order_.size());
        for (std::size_t k = tile * kTaskElements; k < end; k += kChunk)
            body(k, std::min(kChunk, end - k));
    }

    void measure_moment(std::size_t tile) {
        TileSums sums{};
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            Copies copies;
            const Block v = order_.run(kV, k, n, copies.of[kV]);
            look_at_v(k / kChunk, v);
            sums.add(kernels_.measure_unfactored(order_.run(kGrad, k, n, copies.of[kGrad]), v,
                                                 moment(), !is_all_float()));
        });
        sums_[tile] = sums;
    }

    // Sums what is not carried.
    void measure_param(std::size_t tile) {
        SumWords* const sum = param_squares_.to_measure(tile);
        if (sum == nullptr) return;
        *sum = {};
        for_runs(tile, [&](std::size_t k, std::size_t n) {
            Copies copies;
            add_to(*sum, kernels_.sum_squares(order_.run(kParam, k, n, copies.of[kParam])));
        });
    }

    ParamSquares param_squares_;
    ElementOrder order_;
    std::size_t n_tiles_;
    TileSums* sums_ = nullptr;  // (n_tiles,)
    TwoWords param_sq_;
    Descent descent_{};
};

}  // namespace

TensorStep* make_unfactored_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                                 const KernelTable& kernels) {
    return new (for_step.take<UnfactoredStep>(1)) UnfactoredStep(tensor, report, kernels);
}

}  // namespace adafactor
