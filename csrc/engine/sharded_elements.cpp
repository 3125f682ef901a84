// Sharded tensors whose ranks need nothing of each other but three sums.
#include <algorithm>
#include <cmath>
#include <new>

#include "engine/elementwise_step.hpp"
#include "engine/measured.hpp"
#include "engine/sharded_tensor.hpp"

namespace adafactor {
namespace {

class ShardedElements final : public ShardedTensor {
public:
    ShardedElements(const Tensor& tensor, bool given, TensorReport& report,
                    const ShardedPlaces& places)
        : ShardedTensor(tensor, given, report) {
        if (!given || size_of(tensor.param) == 0) return;
        if (tensor.measured != nullptr && tensor.measured->serves(tensor)) {
            steps_.push_back(tensor.measured->take_over(tensor, own_report_));
        } else {
            steps_.push_back(
                make_step(tensor, own_report_, places.for_step, places.kernels, places.place));
            steps_[0]->allocate(places.for_step);
        }
    }

    std::size_t n_sum() const override { return kSums * kWords + 2 * n_each(); }

    void finish_measure(const Team& team) override {
        if (steps_.empty()) return;
        own_ = step().sums(team);
        if (n_each() > 0) each_ = step().each();
    }

    void put_sum(double* to) const override {
        std::fill_n(to, n_sum(), 0.0);
        if (!part_.speaks || steps_.empty()) return;
        const TwoWords* const sums[kSums] = {&own_.grad_sq, &own_.u_sq, &own_.param_sq};
        for (std::size_t k = 0; k < kSums; ++k)
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
            *sums[k] = sum_of_words(from + k * kWords, exponent_[k]);
        of_each_ = from + kSums * kWords;
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
        descents_.assign(1, reported_step_size(hyper_, has_momentum(), mean_u_sq, param_sq / n,
                                               report_)
                                .descent);
        if (n_each() > 0) find_each_step_size();
        bound(descents_.data(), descents_.size(), is_small ? u_sq * scale : mean_u_sq * n,
              is_small ? param_sq : param_sq / n * n);
        return Fault::none;
    }

protected:
    std::size_t n_own_max() const override { return kSums + 1; }

    void put_own_max(double* to) const override {
        if (steps_.empty()) return;
        to[0] = exponent_of(own_.grad_sq);
        to[1] = exponent_of(own_.u_sq);
        to[2] = exponent_of(own_.param_sq);
        to[3] = own_.overflows;
    }

    void take_own_max(const double* from) override {
        std::copy_n(from, kSums, exponent_);
        all_.overflows = from[kSums] == 1;
    }

private:
    static constexpr std::size_t kSums = 3;

    ElementwiseStep& step() { return static_cast<ElementwiseStep&>(*steps_[0]); }

    // Matrices that each have a step size of their own.
    std::size_t n_each() const {
        return hyper_.per_matrix && part_.layout == Layout::batch ? part_.n_matrices : 0;
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

    TensorReport own_report_;
    ElementSums own_, all_;
    ElementwiseStep::Each each_;
    double exponent_[kSums] = {};
    const double* of_each_ = nullptr;
    std::vector<Descent> descents_;
};

}  // namespace

std::unique_ptr<ShardedTensor> make_sharded_elements(const Tensor& tensor, bool given,
                                                     TensorReport& report,
                                                     const ShardedPlaces& places) {
    return std::make_unique<ShardedElements>(tensor, given, report, places);
}

}  // namespace adafactor
