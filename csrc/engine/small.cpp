// A factored tensor of many small matrices, as of a convolution: measure, resolve, apply. A special
// case because a matrix of a few elements is less work than a task: eight are taken at once, a lane
// each, and their running means are finished twice instead of kept.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "engine/clip_and_scale.hpp"
#include "engine/geometry.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {
namespace {

constexpr std::size_t kLanes = kLanesOfSmall;

class SmallStep final : public TensorStep {
public:
    SmallStep(const Tensor& tensor, TensorReport& report, const KernelTable& kernels)
        : TensorStep(tensor, report, kernels),
          measures_param_(hyper_.scale_parameter),
          param_(tensor.param, tensor.row_axis, tensor.col_axis, false),
          grad_(tensor.grad, tensor.row_axis, tensor.col_axis, false),
          m_(tensor.m, tensor.row_axis, tensor.col_axis, false),
          copy_(tensor.copy, tensor.row_axis, tensor.col_axis, false),
          rows_(param_.outer()),
          cols_(param_.inner()),
          n_matrices_(param_.size()),
          matrices_per_task_(kTaskElements / (rows_ * cols_) / kLanes * kLanes),
          n_tasks_((n_matrices_ + matrices_per_task_ - 1) / matrices_per_task_),
          n_sums_(hyper_.per_matrix ? n_matrices_ : n_tasks_) {}

    void allocate(Scratch& for_step) override {
        descent_ = for_step.take<Descent>(hyper_.per_matrix ? n_matrices_ : 1);
        param_sq_ = for_step.take<double>(n_sums_);
    }

    void allocate_sums(Scratch& for_measure) override {
        u_sq_ = for_measure.take<double>(n_sums_);
        grad_sq_ = for_measure.take<double>(n_tasks_);
    }

    std::size_t n_measure_tasks() const override { return n_tasks_; }

    void measure(std::size_t task, char*) override {
        double grad_sq = 0, u_sq = 0, param_sq = 0;
        for_groups(task, [&](std::size_t first, std::size_t n) {
            Copies copies;
            State state(*this, first, n);
            SmallSums sums;
            const Block grad = grad_.gather_lanes(first, n, copies.grad);
            const Block param =
                measures_param_ ? param_.gather_lanes(first, n, copies.param) : Block{};
            kernels_.measure_small(param, grad, state.view, moment(), sums);
            for (std::size_t lane = 0; lane < n; ++lane) {
                grad_sq += sums.grad_sq[lane];
                u_sq += sums.u_sq[lane];
                param_sq += sums.param_sq[lane];
                if (!hyper_.per_matrix) continue;
                u_sq_[first + lane] = sums.u_sq[lane];
                if (measures_param_) param_sq_[first + lane] = sums.param_sq[lane];
            }
        });
        grad_sq_[task] = grad_sq;
        if (hyper_.per_matrix) return;
        u_sq_[task] = u_sq;
        if (measures_param_) param_sq_[task] = param_sq;
    }

    Fault resolve(const Team&, bool propagate) override {
        measures_param_ = false;
        const auto sum = [](const double* values, std::size_t n) {
            double total = 0;
            for (std::size_t k = 0; k < n; ++k) total += values[k];
            return total;
        };
        report_.grad_sq = sum(grad_sq_, n_tasks_);
        const double u_sq = sum(u_sq_, n_sums_) * grad_sq_scale();
        const double param_sq = hyper_.scale_parameter ? sum(param_sq_, n_sums_) : 0;
        const Fault fault =
            fault_of(std::isfinite(report_.grad_sq), std::isfinite(param_sq), std::isfinite(u_sq));
        if (fault != Fault::none && !propagate) return fault;

        const double n = double(rows_ * cols_);
        const double n_all = n * double(n_matrices_);
        report_.rms_u = std::sqrt(u_sq / n_all);
        if (hyper_.scale_parameter) report_.rms_param = std::sqrt(param_sq / n_all);
        if (!hyper_.per_matrix) {
            find_step_size(0, u_sq / n_all, param_sq / n_all);
            return fault;
        }
        for (std::size_t m = 0; m < n_matrices_; ++m)
            find_step_size(m, u_sq_[m] * grad_sq_scale() / n,
                           hyper_.scale_parameter ? param_sq_[m] / n : 0);
        return fault;
    }

    std::size_t n_apply_tasks() const override { return n_tasks_; }

    void apply(std::size_t task, char*) override {
        // Matrices with step sizes of their own are taken one by one.
        for_groups(task, [&](std::size_t begin, std::size_t n_all) {
            const std::size_t n = hyper_.per_matrix ? 1 : n_all;
            for (std::size_t first = begin; first < begin + n_all; first += n)
                apply_group(first, n, descent_[hyper_.per_matrix ? first : 0]);
        });
    }

private:
    // Places for the elements of some matrices, lane by lane.
    struct Copies {
        static constexpr std::size_t kSize = kSmallElements * kLanes * sizeof(double);
        alignas(64) char param[kSize], m[kSize], grad[kSize], copy[kSize];
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

    void find_step_size(std::size_t m, double mean_u_sq, double mean_param_sq) {
        const StepSize size = clip_and_scale(hyper_, has_momentum(), mean_u_sq, mean_param_sq);
        descent_[m] = size.descent;
        note(size, m == 0, report_);
    }

    void apply_group(std::size_t first, std::size_t n, const Descent& descent) const {
        Copies copies;
        State state(*this, first, n);
        const StepBlocks blocks{
            param_.gather_lanes(first, n, copies.param), m_.gather_lanes(first, n, copies.m),
            grad_.gather_lanes(first, n, copies.grad), copy_.lanes_at(copies.copy)};
        // The lanes that a group does not use have numbers too.
        const Rounding by = rounding(first * numbered(rows_ * cols_ * kLanes));
        kernels_.apply_small(blocks, state.view, moment(), descent, by);
        param_.scatter_lanes(blocks.param, first, n);
        m_.scatter_lanes(blocks.m, first, n);
        copy_.scatter_lanes(blocks.copy, first, n);
        state.write(*this, first, n);
    }

    bool measures_param_;  // RMS(param) is still to be found
    MatrixBatch param_, grad_, m_, copy_;
    std::size_t rows_, cols_, n_matrices_, matrices_per_task_, n_tasks_;
    std::size_t n_sums_;          // of u^2, and of param^2: one for each matrix, or each task
    Descent* descent_ = nullptr;  // (n_matrices,) or of all
    double* param_sq_ = nullptr;  // (n_sums,)
    double* u_sq_ = nullptr;      // (n_sums,), until resolve is done
    double* grad_sq_ = nullptr;   // (n_tasks,), likewise
};

}  // namespace

TensorStep* make_small_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                            const KernelTable& kernels) {
    return new (for_step.take<SmallStep>(1)) SmallStep(tensor, report, kernels);
}

bool is_small(const Tensor& tensor) {
    const auto rows = std::size_t(tensor.param.shape[tensor.row_axis]);
    const auto cols = std::size_t(tensor.param.shape[tensor.col_axis]);
    return rows * cols <= kSmallElements && size_of(tensor.param) >= kLanes * rows * cols;
}

}  // namespace adafactor
