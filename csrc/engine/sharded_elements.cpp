// Sharded tensors whose ranks need nothing of each other but three sums.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>

#include "engine/elementwise_step.hpp"
#include "engine/fixed_sum.hpp"
#include "engine/measured.hpp"
#include "engine/sharded_tensor.hpp"
#include "engine/small_calls.hpp"

namespace adafactor {
namespace {

class ShardedElements final : public ShardedTensor {
public:
    ShardedElements(const Tensor& tensor, bool given, TensorReport& report,
                    const ShardedPlaces& places)
        : ShardedTensor(tensor, given, report), exact_(places.exact) {
        of_each_.resize(2 * n_each());
        if (!given || size_of(tensor.param) == 0) return;
        if (tensor.stochastic && tensor.v == nullptr) require_whole_tasks();
        if (!exact_ && tensor.measured != nullptr && tensor.measured->serves(tensor)) {
            steps_.push_back(tensor.measured->take_over(tensor, own_report_));
        } else {
            steps_.push_back(
                make_step(tensor, own_report_, places.for_step, places.kernels, places.place));
            steps_[0]->allocate(places.for_step);
        }
    }

    std::size_t n_sum() const override { return kSums * kWords + 2 * n_each(); }
    std::size_t bucket_length() const override {
        return kSums * kWords + (part_.layout == Layout::batch ? 2 * part_.n_matrices : 0);
    }

    void finish_measure(const Team& team) override {
        if (steps_.empty()) return;
        own_ = step().sums(team);
        if (n_each() > 0) each_ = step().each();
        if (exact_) {
            step().widen();
            find_largest(team);
        }
    }

    void add_up(const Team& team) override {
        if (!exact_ || steps_.empty()) return;
        const std::size_t n_tasks = steps_[0]->n_measure_tasks();
        std::vector<std::array<Int128, kSums>> of_task(n_tasks);
        team.for_tasks(n_tasks, Order::forwards, [&](std::size_t task, int, char*) {
            const auto add = [&](double grad_sq, double u_sq, double param_sq) {
                const double squares[kSums] = {grad_sq, u_sq, param_sq};
                for (std::size_t k = 0; k < kSums; ++k)
                    if (is_summable(exponent_[k]))
                        of_task[task][k] += fixed(squares[k], int(exponent_[k]));
            };
            step().for_squares(task, std::cref(add));
        });
        fixed_ = {};
        for (const auto& sums : of_task)
            for (std::size_t k = 0; k < kSums; ++k) fixed_[k] += sums[k];
    }

    void put_sum(double* to) override {
        std::fill_n(to, n_sum(), 0.0);
        if (!part_.speaks || steps_.empty()) return;
        const TwoWords* const sums[kSums] = {&own_.grad_sq, &own_.u_sq, &own_.param_sq};
        for (std::size_t k = 0; k < kSums; ++k)
            if (exact_)
                put_fixed(fixed_[k], to + k * kWords);
            else
                put_words(*sums[k], exponent_[k], to + k * kWords);
        double* const each = to + kSums * kWords;
        for (std::size_t k = 0; k < each_.n; ++k) {
            const std::size_t m = part_.boxes[0].matrices[k];
            each[m] = each_.u_sq[k];
            if (each_.param_sq != nullptr) each[n_each() + m] = each_.param_sq[k];
        }
    }

    void take_sum(double* from) override {
        TwoWords* const sums[kSums] = {&all_.grad_sq, &all_.u_sq, &all_.param_sq};
        for (std::size_t k = 0; k < kSums; ++k)
            if (exact_)
                *sums[k] = SumWords{fixed_value(from + k * kWords, exponent_[k]), 0};
            else
                *sums[k] = sum_of_words(from + k * kWords, exponent_[k]);
        std::copy_n(from + kSums * kWords, of_each_.size(), of_each_.begin());
        report_.grad_sq = all_.grad_sq.value();
    }

    bool scale_grad(double factor) override {
        hyper_.grad_scale *= factor;
        for (TensorStep* each : steps_) each->scale_grad(factor);
        return true;
    }

    Fault decide(const Team&, bool) override { return ElementwiseStep::fault_in(all_, hyper_); }

    Fault finish(bool) override {
        const double n = part_.n_elements();
        const bool is_small = tensor_.v == nullptr;
        if (!steps_.empty()) step().decide(all_, n);
        const double scale = grad_sq_scale(), u_sq = all_.u_sq.value();
        const double mean_u_sq = is_small ? u_sq * scale / n : u_sq / n * scale;
        const double param_sq = all_.param_sq.value();
        descents_.assign(
            1,
            reported_step_size(hyper_, has_momentum(), mean_u_sq, param_sq / n, report_).descent);
        if (n_each() > 0) find_each_step_size();
        bound(descents_.data(), descents_.size(), is_small ? u_sq * scale : mean_u_sq * n,
              is_small ? param_sq : param_sq / n * n);
        return Fault::none;
    }

protected:
    std::size_t n_own_max() const override { return kSums + 1; }

    void put_own_max(double* to) const override {
        if (steps_.empty()) return;
        const TwoWords* const sums[kSums] = {&own_.grad_sq, &own_.u_sq, &own_.param_sq};
        for (std::size_t k = 0; k < kSums; ++k)
            to[k] = exact_ ? fixed_exponent_of(largest_[k]) : exponent_of(*sums[k]);
        to[3] = own_.overflows;
    }

    void take_own_max(const double* from) override {
        std::copy_n(from, kSums, exponent_);
        all_.overflows = from[kSums] == 1;
    }

private:
    static constexpr std::size_t kSums = 3;

    // Small matrices are numbered for their random bits in the groups that they are taken in.
    void require_whole_tasks() const {
        const std::vector<std::size_t>& matrices = part_.boxes[0].matrices;
        const std::size_t group = SmallCalls(part_.n_rows * part_.n_cols).per_task;
        const bool are_neighbours = matrices.back() - matrices[0] + 1 == matrices.size();
        if (matrices[0] % group != 0 || !are_neighbours)
            throw std::invalid_argument(
                "a batch of small matrices that is rounded at random must be cut between groups "
                "of " +
                std::to_string(group) + " of them, or have masters");
    }

    ElementwiseStep& step() { return static_cast<ElementwiseStep&>(*steps_[0]); }

    // Matrices that each have a step size of their own.
    std::size_t n_each() const {
        return hyper_.per_matrix && part_.layout == Layout::batch ? part_.n_matrices : 0;
    }

    void find_largest(const Team& team) {
        const std::size_t n_tasks = steps_[0]->n_measure_tasks();
        std::vector<std::array<double, kSums>> of_task(n_tasks);
        team.for_tasks(n_tasks, Order::forwards, [&](std::size_t task, int, char*) {
            const auto look = [&](double grad_sq, double u_sq, double param_sq) {
                raise(of_task[task][0], grad_sq);
                raise(of_task[task][1], u_sq);
                if (hyper_.scale_parameter) raise(of_task[task][2], param_sq);
            };
            step().for_squares(task, std::cref(look));
        });
        largest_ = {};
        for (const auto& largest : of_task)
            for (std::size_t k = 0; k < kSums; ++k) raise(largest_[k], largest[k]);
    }

    void find_each_step_size() {
        const double n = double(part_.n_rows * part_.n_cols);
        descents_.clear();
        for (std::size_t m = 0; m < n_each(); ++m) {
            const StepSize size =
                clip_and_scale(hyper_, has_momentum(), of_each_[m] * grad_sq_scale() / n,
                               hyper_.scale_parameter ? of_each_[n_each() + m] / n : 0);
            descents_.push_back(size.descent);
            note(size, m == 0, report_);
        }
    }

    bool exact_;
    std::array<double, kSums> largest_{};  // of the numbers that are added up, if exact
    std::array<Int128, kSums> fixed_{};
    TensorReport own_report_;
    ElementSums own_, all_;
    ElementwiseStep::Each each_;
    double exponent_[kSums] = {};
    std::vector<double> of_each_;  // sums of u^2, then of param^2, of each matrix
    std::vector<Descent> descents_;
};

}  // namespace

std::unique_ptr<ShardedTensor> make_sharded_elements(const Tensor& tensor, bool given,
                                                     TensorReport& report,
                                                     const ShardedPlaces& places) {
    return std::make_unique<ShardedElements>(tensor, given, report, places);
}

}  // namespace adafactor
