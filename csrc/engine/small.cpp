// A factored tensor of many small matrices, as of a convolution: measure, resolve, apply.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "engine/blocks.hpp"
#include "engine/resolve.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kLanes = kLanesOfSmall;

// `P`: element type of param and its first moment, `G`: of grad.
template <class P, class G>
class SmallStep final : public TensorStep {
public:
    SmallStep(const Tensor& tensor, TensorReport& report, const Kernels<P, G>& kernels)
        : TensorStep(tensor, report),
          kernels_(kernels),
          param_(tensor.param, tensor.row_axis, tensor.col_axis, false),
          grad_(tensor.grad, tensor.row_axis, tensor.col_axis, false),
          m_(has_momentum() ? tensor.m : tensor.param, tensor.row_axis, tensor.col_axis, false),
          copy_(has_copy() ? tensor.copy : tensor.param, tensor.row_axis, tensor.col_axis, false),
          rows_(param_[0].outer),
          cols_(param_[0].inner),
          n_matrices_(param_.size()),
          matrices_per_task_(kTile / (rows_ * cols_) / kLanes * kLanes),
          n_tasks_((n_matrices_ + matrices_per_task_ - 1) / matrices_per_task_) {}

    std::size_t room_size() const override { return 0; }

    void allocate(Scratch& kept, Scratch& passing) override {
        const std::size_t n = hyper_.per_matrix ? n_matrices_ : 1;
        moves_ = kept.take<Move>(n);
        if (param_sq_ == nullptr)
            param_sq_ = kept.take<double>(hyper_.per_matrix ? n_matrices_ : n_tasks_);
        u_sq_ = passing.take<double>(hyper_.per_matrix ? n_matrices_ : n_tasks_);
        grad_sq_ = passing.take<double>(n_tasks_);
    }

    std::size_t n_measure_tasks() const override { return n_tasks_; }

    void measure(std::size_t task, char*) override {
        double grad_sq = 0, u_sq = 0, param_sq = 0;
        for_groups(task, [&](std::size_t first, std::size_t n) {
            Elements elements(*this);
            const auto [param, m, grad] = elements.view;
            State state(*this, first, n);
            SmallSums sums;
            grad_.gather(first, n, grad);
            if (needs_param_) param_.gather(first, n, param);
            kernels_.measure_small(needs_param_ ? param : nullptr, grad, state.view, moment(),
                                   sums);
            for (std::size_t lane = 0; lane < n; ++lane) {
                grad_sq += sums.grad_sq[lane];
                u_sq += sums.u_sq[lane];
                param_sq += sums.param_sq[lane];
                if (!hyper_.per_matrix) continue;
                u_sq_[first + lane] = sums.u_sq[lane];
                if (needs_param_) param_sq_[first + lane] = sums.param_sq[lane];
            }
        });
        grad_sq_[task] = grad_sq;
        if (hyper_.per_matrix) return;
        u_sq_[task] = u_sq;
        if (needs_param_) param_sq_[task] = param_sq;
    }

    Fault resolve(const Team&, bool propagate) override {
        needs_param_ = false;
        const std::size_t n_sums = hyper_.per_matrix ? n_matrices_ : n_tasks_;
        const auto sum = [](const double* values, std::size_t n) {
            double total = 0;
            for (std::size_t k = 0; k < n; ++k) total += values[k];
            return total;
        };
        report_.grad_sq = sum(grad_sq_, n_tasks_);
        const double u_sq = sum(u_sq_, n_sums) * grad_sq_scale();
        const double param_sq = hyper_.scale_parameter ? sum(param_sq_, n_sums) : 0;
        const Fault fault = !std::isfinite(report_.grad_sq) ? Fault::grad
                            : !std::isfinite(param_sq)      ? Fault::param
                            : !std::isfinite(u_sq)          ? Fault::second_moment
                                                            : Fault::none;
        if (fault != Fault::none && !propagate) return fault;

        const double n = double(rows_ * cols_);
        const double n_all = n * double(n_matrices_);
        report_.rms_u = std::sqrt(u_sq / n_all);
        if (hyper_.scale_parameter) report_.rms_param = std::sqrt(param_sq / n_all);
        if (!hyper_.per_matrix) {
            set_move(0, u_sq / n_all, param_sq / n_all);
            return fault;
        }
        for (std::size_t m = 0; m < n_matrices_; ++m)
            set_move(m, u_sq_[m] * grad_sq_scale() / n,
                     hyper_.scale_parameter ? param_sq_[m] / n : 0);
        return fault;
    }

    std::size_t n_apply_tasks() const override { return n_tasks_; }

    void begin_apply() override {}

    void apply(std::size_t task, char*) override {
        // Matrices with moves of their own are taken one by one.
        for_groups(task, [&](std::size_t begin, std::size_t n_all) {
            const std::size_t n = hyper_.per_matrix ? 1 : n_all;
            for (std::size_t first = begin; first < begin + n_all; first += n) {
                Elements elements(*this);
                const auto [param, m, grad] = elements.view;
                State state(*this, first, n);
                grad_.gather(first, n, grad);
                param_.gather(first, n, param);
                if (has_momentum()) m_.gather(first, n, m);
                kernels_.apply_small(param, has_momentum() ? m : nullptr, grad, state.view,
                                     moment(), moves_[hyper_.per_matrix ? first : 0]);
                param_.scatter(param, first, n, rounding_of(first));
                if (has_copy()) copy_.scatter(param, first, n, rounding_of(first));
                if (has_momentum()) m_.scatter(m, first, n);
                state.write(*this, first, n);
            }
        });
    }

    void end_apply() override {}

private:
    // Room for the elements of some matrices, lane by lane.
    struct Elements {
        struct View {
            P *param, *m;
            G* grad;
        };
        alignas(64) char memory[kSmallElements * kLanes * (2 * sizeof(P) + sizeof(G))];
        View view;

        explicit Elements(const SmallStep& step) {
            const std::size_t n = step.rows_ * step.cols_ * kLanes;
            view.param = reinterpret_cast<P*>(memory);
            view.m = view.param + n;
            view.grad = reinterpret_cast<G*>(view.m + n);
        }
    };

    // The running means of some matrices, lane by lane; lanes left over are the first again.
    struct State {
        double lines[2 * kSmallElements * kLanes];
        SmallState view;

        State(const SmallStep& step, std::size_t first, std::size_t n)
            : view{lines, lines + step.rows_ * kLanes, step.rows_, step.cols_} {
            read(step.tensor_.exp_row + first * step.rows_, step.rows_, n, view.exp_row);
            read(step.tensor_.exp_col + first * step.cols_, step.cols_, n, view.exp_col);
        }

        void write(const SmallStep& step, std::size_t first, std::size_t n) const {
            write(view.exp_row, step.tensor_.exp_row + first * step.rows_, step.rows_, n);
            write(view.exp_col, step.tensor_.exp_col + first * step.cols_, step.cols_, n);
        }

        static void read(const double* means, std::size_t size, std::size_t n, double* to) {
            if (size == 1 && n == kLanes) {
                std::memcpy(to, means, kLanes * sizeof(double));
                return;
            }
            for (std::size_t k = 0; k < size; ++k)
                for (std::size_t lane = 0; lane < kLanes; ++lane)
                    to[k * kLanes + lane] = means[(lane < n ? lane : 0) * size + k];
        }

        static void write(const double* from, double* means, std::size_t size, std::size_t n) {
            if (size == 1) {
                std::memcpy(means, from, n * sizeof(double));
                return;
            }
            for (std::size_t k = 0; k < size; ++k)
                for (std::size_t lane = 0; lane < n; ++lane)
                    means[lane * size + k] = from[k * kLanes + lane];
        }
    };

    template <class Body>  // body(first matrix, number)
    void for_groups(std::size_t task, const Body& body) const {
        const std::size_t begin = task * matrices_per_task_;
        const std::size_t end = std::min(begin + matrices_per_task_, n_matrices_);
        for (std::size_t m = begin; m < end; m += kLanes) body(m, std::min(kLanes, end - m));
    }

    // The lanes that a group does not use have numbers too.
    Rounding rounding_of(std::size_t first) const {
        return rounding(first * numbered(rows_ * cols_ * kLanes));
    }

    void set_move(std::size_t m, double mean_u_sq, double mean_param_sq) {
        const StepSize size = step_size(hyper_, has_momentum(), mean_u_sq, mean_param_sq);
        moves_[m] = size.move;
        if (m > 0 && !(size.step_size > report_.step_size)) return;
        report_.step_size = size.step_size;
        report_.clip_divisor = size.divisor;
    }

    const Kernels<P, G>& kernels_;
    MatrixBatch param_, grad_;
    MatrixBatch m_, copy_;  // param_ again where there is none
    std::size_t rows_, cols_, n_matrices_, matrices_per_task_, n_tasks_;
    Move* moves_ = nullptr;       // (n_matrices,) or of all
    double* param_sq_ = nullptr;  // (n_matrices,) or (n_tasks,)
    double* u_sq_ = nullptr;      // the same, until resolve is done
    double* grad_sq_ = nullptr;   // (n_tasks,), likewise
};

}  // namespace

template <class P, class G>
TensorStep* make_small_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                            const Kernels<P, G>& kernels) {
    return new (kept.take<SmallStep<P, G>>(1)) SmallStep<P, G>(tensor, report, kernels);
}

bool is_small(const Tensor& tensor) {
    const auto rows = std::size_t(tensor.param.shape[tensor.row_axis]);
    const auto cols = std::size_t(tensor.param.shape[tensor.col_axis]);
    return rows * cols <= kSmallElements && size_of(tensor.param) >= kLanes * rows * cols;
}

#define ADAFACTOR_INSTANTIATE(P, G)                                              \
    template TensorStep* make_small_step(const Tensor&, TensorReport&, Scratch&, \
                                         const Kernels<P, G>&);
ADAFACTOR_FOR_EACH_PAIR(ADAFACTOR_INSTANTIATE)

}  // namespace adafactor
