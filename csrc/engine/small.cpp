// A factored tensor of many small matrices, as of a convolution: measure, resolve, apply. A special
// case because a matrix of a few elements is less work than a task: many are taken in one call, and
// their running means are finished twice instead of kept.
#include <algorithm>
#include <cmath>
#include <new>

#include "engine/elementwise_step.hpp"
#include "engine/part.hpp"
#include "engine/small_calls.hpp"

namespace adafactor {
namespace {

class SmallStep final : public ElementwiseStep {
public:
    SmallStep(const Tensor& tensor, TensorReport& report, const KernelTable& kernels)
        : ElementwiseStep(tensor, report, kernels),
          measures_param_(hyper_.scale_parameter),
          param_(tensor.param, tensor.row_axis, tensor.col_axis, false),
          grad_(tensor.grad, tensor.row_axis, tensor.col_axis, false),
          m_(tensor.m, tensor.row_axis, tensor.col_axis, false),
          copy_(tensor.copy, tensor.row_axis, tensor.col_axis, false),
          rows_(param_.outer()),
          cols_(param_.inner()),
          n_matrices_(param_.size()),
          calls_(rows_ * cols_),
          n_tasks_((n_matrices_ + calls_.per_task - 1) / calls_.per_task),
          n_sums_(hyper_.per_matrix ? n_matrices_ : n_tasks_) {}

    void allocate(Scratch& for_step) override {
        descent_ = for_step.take<Descent>(hyper_.per_matrix ? n_matrices_ : 1);
        param_sq_ = for_step.take<double>(n_sums_);
    }

    void allocate_sums(Scratch& for_measure) override {
        u_sq_ = for_measure.take<double>(n_sums_);
        grad_sq_ = for_measure.take<double>(n_tasks_);
        overflows_ = for_measure.take<bool>(n_tasks_);
    }

    void keep_sums(Scratch& own) override {
        u_sq_ = std::copy_n(u_sq_, n_sums_, own.take<double>(n_sums_)) - n_sums_;
        grad_sq_ = std::copy_n(grad_sq_, n_tasks_, own.take<double>(n_tasks_)) - n_tasks_;
        overflows_ = std::copy_n(overflows_, n_tasks_, own.take<bool>(n_tasks_)) - n_tasks_;
    }

    std::size_t n_measure_tasks() const override { return n_tasks_; }

    void measure(std::size_t task, char*) override {
        SmallSums sums{};
        overflows_[task] = false;
        for_calls(task, [&](std::size_t first, std::size_t n) {
            Copies copies;
            if (hyper_.per_matrix) {
                sums.each_u_sq = u_sq_ + first;
                sums.each_param_sq = param_sq_ + first;
            }
            const Block grad = grad_.run(first, n, copies.grad);
            const Block param = measures_param_ ? param_.run(first, n, copies.param) : Block{};
            Means means(*this, first, n);
            kernels_.measure_small(param, grad, means.state, moment(), sums);
            if (may_exceed_float(sums) && exceeds_float(grad, means.state)) overflows_[task] = true;
        });
        grad_sq_[task] = sums.grad_sq;
        if (hyper_.per_matrix) return;
        u_sq_[task] = sums.u_sq;
        if (measures_param_) param_sq_[task] = sums.param_sq;
    }

    ElementSums sums(const Team&) override {
        measures_param_ = false;
        const auto sum = [](const double* values, std::size_t n) {
            double total = 0;
            for (std::size_t k = 0; k < n; ++k) total += values[k];
            return total;
        };
        ElementSums sums;
        sums.grad_sq.add(sum(grad_sq_, n_tasks_));
        sums.u_sq.add(sum(u_sq_, n_sums_));
        if (hyper_.scale_parameter) sums.param_sq.add(sum(param_sq_, n_sums_));
        sums.overflows = std::any_of(overflows_, overflows_ + n_tasks_,
                                     [](bool overflows) { return overflows; });
        return sums;
    }

    Each each() const override {
        if (!hyper_.per_matrix) return {};
        return {u_sq_, hyper_.scale_parameter ? param_sq_ : nullptr, n_matrices_};
    }

    void decide(const ElementSums& of_all, double n_all) override {
        const double u_sq = of_all.u_sq.value() * grad_sq_scale();
        const double param_sq = of_all.param_sq.value();
        const StepSize size =
            reported_step_size(hyper_, has_momentum(), u_sq / n_all, param_sq / n_all, *report_);
        if (!hyper_.per_matrix) {
            descent_[0] = size.descent;
            return bound(descent_, 1, u_sq, param_sq);
        }
        const double n = double(rows_ * cols_);
        for (std::size_t m = 0; m < n_matrices_; ++m)
            find_step_size(m, u_sq_[m] * grad_sq_scale() / n,
                           hyper_.scale_parameter ? param_sq_[m] / n : 0);
        bound(descent_, n_matrices_, u_sq, param_sq);
    }

    std::size_t n_apply_tasks() const override { return n_tasks_; }

    void apply(std::size_t task, char*) override {
        for_calls(task, [&](std::size_t first, std::size_t n) {
            Copies copies;
            const StepBlocks blocks{param_.run(first, n, copies.param), m_.run(first, n, copies.m),
                                    grad_.run(first, n, copies.grad),
                                    copy_.run(first, n, copies.copy)};
            const Descent* const descent = descent_ + (hyper_.per_matrix ? first : 0);
            const Rounding by = rounding(first_number(first));
            Means means(*this, first, n);
            kernels_.apply_small(blocks, means.state, moment(), descent, hyper_.per_matrix, by);
            means.put_back();
            if (blocks.param.data == copies.param) param_.scatter_run(blocks.param, first, n);
            if (blocks.m.data == copies.m) m_.scatter_run(blocks.m, first, n);
            if (blocks.copy.data == copies.copy) copy_.scatter_run(blocks.copy, first, n);
        });
    }

private:
    // Places for the elements of the matrices of a call.
    struct Copies {
        static constexpr std::size_t kSize = kSmallRun * sizeof(double);
        alignas(64) char param[kSize], m[kSize], grad[kSize], copy[kSize];
    };

    // The running means of a call's matrices: the tensor's own doubles, or copies of its floats.
    struct Means {
        SmallState state;

        Means(const SmallStep& step, std::size_t first, std::size_t n)
            : state{nullptr, nullptr, n, step.rows_, step.cols_} {
            const std::size_t row = first * step.rows_, col = first * step.cols_;
            if (step.tensor_.state_format == Format::float64) {
                state.exp_row = static_cast<double*>(step.tensor_.exp_row) + row;
                state.exp_col = static_cast<double*>(step.tensor_.exp_col) + col;
                return;
            }
            row_ = static_cast<float*>(step.tensor_.exp_row) + row;
            col_ = static_cast<float*>(step.tensor_.exp_col) + col;
            state.exp_row = doubles_;
            std::copy_n(row_, n * state.rows, state.exp_row);
            state.exp_col = doubles_ + n * state.rows;
            std::copy_n(col_, n * state.cols, state.exp_col);
        }
        Means(const Means&) = delete;
        Means& operator=(const Means&) = delete;

        void put_back() const {
            if (row_ == nullptr) return;
            for (std::size_t k = 0; k < state.n * state.rows; ++k)
                row_[k] = float(state.exp_row[k]);
            for (std::size_t k = 0; k < state.n * state.cols; ++k)
                col_[k] = float(state.exp_col[k]);
        }

    private:
        float *row_ = nullptr, *col_ = nullptr;
        double doubles_[2 * kSmallRun];
    };

    // Whether a new running mean may be more than a state of float32 holds: each lies between the
    // old one, which is a float, and what is less than this.
    bool may_exceed_float(const SmallSums& sums) const {
        return tensor_.state_format == Format::float32 &&
               !(sums.grad_sq * grad_sq_scale() + hyper_.eps_squares < kLargestFloat / 2);
    }

    // Whether one is: `state`, which is a copy, gets what apply would make of it with a param of
    // zeros.
    bool exceeds_float(const Block& grad, const SmallState& state) const {
        double zeros[kSmallRun] = {};
        const Block param{reinterpret_cast<char*>(zeros), 0, 1, grad.cols, Format::float64};
        const Descent none{};
        kernels_.apply_small({param, {}, grad, {}}, state, moment(), &none, false, {});
        const auto exceeds = [](double mean) { return !(mean <= kLargestFloat); };
        return std::any_of(state.exp_row, state.exp_row + state.n * state.rows, exceeds) ||
               std::any_of(state.exp_col, state.exp_col + state.n * state.cols, exceeds);
    }

    // Of the elements that begin with a call's first matrix, as in Rounding.
    std::uint64_t first_number(std::size_t first) const {
        if (tensor_.box != nullptr) first += tensor_.box->matrices[0];
        return calls_.number_of(first);
    }

    template <class Body>  // body(first matrix, number)
    void for_calls(std::size_t task, const Body& body) const {
        const std::size_t begin = task * calls_.per_task;
        const std::size_t end = std::min(begin + calls_.per_task, n_matrices_);
        for (std::size_t m = begin; m < end; m += calls_.per_call)
            body(m, std::min(calls_.per_call, end - m));
    }

    void look(std::size_t task) override {
        for_calls(task, [&](std::size_t first, std::size_t n) {
            Copies copies;
            double rows[kSmallRun], cols[kSmallRun];
            const Means old(*this, first, n);
            SmallState means = old.state;
            std::copy_n(means.exp_row, n * rows_, rows);
            std::copy_n(means.exp_col, n * cols_, cols);
            means.exp_row = rows;
            means.exp_col = cols;
            const auto run = [&](const MatrixBatch& batch, char* to) {
                return copied_run(batch.run(first, n, to), to);
            };
            const StepBlocks blocks{run(param_, copies.param), run(m_, copies.m),
                                    run(grad_, copies.grad), run(copy_, copies.copy)};
            const Descent* const descent = descent_ + (hyper_.per_matrix ? first : 0);
            const Rounding by = rounding(first_number(first));
            kernels_.apply_small(blocks, means, moment(), descent, hyper_.per_matrix, by);
            for (const Block& block : {blocks.param, blocks.m, blocks.copy}) {
                const std::ptrdiff_t found = first_infinite(block);
                if (found < 0) continue;
                const std::size_t k = std::size_t(found) % (rows_ * cols_);
                const MatrixView view = param_[first + std::size_t(found) / (rows_ * cols_)];
                note_infinite(view.at(k / cols_, k % cols_));
            }
        });
    }

    void find_step_size(std::size_t m, double mean_u_sq, double mean_param_sq) {
        const StepSize size = clip_and_scale(hyper_, has_momentum(), mean_u_sq, mean_param_sq);
        descent_[m] = size.descent;
        note(size, m == 0, *report_);
    }

    bool measures_param_;  // RMS(param) is still to be found
    MatrixBatch param_, grad_, m_, copy_;
    std::size_t rows_, cols_, n_matrices_;
    SmallCalls calls_;
    std::size_t n_tasks_;
    std::size_t n_sums_;          // of u^2, and of param^2: one for each matrix, or each task
    Descent* descent_ = nullptr;  // (n_matrices,) or of all
    double* param_sq_ = nullptr;  // (n_sums,)
    double* u_sq_ = nullptr;      // (n_sums,), until resolve is done
    double* grad_sq_ = nullptr;   // (n_tasks,), likewise
    bool* overflows_ =
        nullptr;  // (n_tasks,), whether a new running mean exceeds the state's format
};

}  // namespace

TensorStep* make_small_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                            const KernelTable& kernels) {
    return new (for_step.take<SmallStep>(1)) SmallStep(tensor, report, kernels);
}

bool is_small(const Tensor& tensor) {
    if (const Part* const part = tensor.part)
        return part->layout == Layout::batch &&
               SmallCalls::take(part->n_rows * part->n_cols, part->n_matrices);
    const auto rows = std::size_t(tensor.param.shape[tensor.row_axis]);
    const auto cols = std::size_t(tensor.param.shape[tensor.col_axis]);
    return SmallCalls::take(rows * cols, size_of(tensor.param) / (rows * cols));
}

}  // namespace adafactor
