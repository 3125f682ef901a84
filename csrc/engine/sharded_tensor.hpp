// One tensor of a sharded step: what its ranks exchange, and what each makes of it. All that is
// decided is decided from exchanged numbers, so that every rank decides alike, with or without
// elements of its own.
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <vector>

#include "engine/exchanged_sum.hpp"
#include "engine/part.hpp"
#include "engine/tensor_step.hpp"

namespace adafactor {

// Where a step gets its memory from.
struct ShardedPlaces {
    Scratch& for_step;
    Scratch& for_measure;
    const KernelTable& kernels;
    Place place;
    bool exact;  // sums are integers
};

// An element of any format.
double number_of(const Block& element);

class ShardedTensor {
public:
    // `given`: there is a gradient in this step, or this rank has no say in that. Without one only
    // n_max() is asked for, and put_max.
    ShardedTensor(const Tensor& tensor, bool given, TensorReport& report)
        : tensor_(tensor),
          part_(*tensor.part),
          given_(given),
          hyper_(tensor.hyper),
          report_(report) {}
    virtual ~ShardedTensor() = default;
    ShardedTensor(const ShardedTensor&) = delete;
    ShardedTensor& operator=(const ShardedTensor&) = delete;

    bool is_given() const { return given_; }
    // The steps of this rank's boxes, whose measure and apply are taken.
    const std::vector<TensorStep*>& steps() const { return steps_; }

    // Round A. Numbers that are exchanged, alike on all ranks whatever they have.
    std::size_t n_max() const { return kCommon + n_own_max(); }
    virtual std::size_t n_sum() const = 0;
    // How much of a bucket it fills: by the whole tensor's shape alone, for even a rank whose
    // hyper-parameters are wrong has to cut as all others do.
    virtual std::size_t bucket_length() const { return n_sum(); }
    virtual void finish_measure(const Team& team) = 0;  // after measure, before put_max
    void put_max(double* to) const;
    void take_max(const double* from);
    virtual void add_up(const Team&) {}  // where a sum is to be cut by the maximum of all ranks
    virtual void put_sum(double* to) = 0;
    virtual void take_sum(double* from) = 0;  // from stays until the step is done
    // Sums that go over a group of ranks, beside the sum over all. place_in_groups, before put_sum,
    // adds to the size of each group's array what this tensor has of it; put_in_groups comes after
    // put_sum, take_from_groups before take_sum.
    virtual void place_in_groups(std::vector<std::size_t>&) {}
    virtual void put_in_groups(const std::vector<double*>&) {}
    virtual void take_from_groups(const std::vector<double*>&) {}

    // Then report.grad_sq is known. A gradient that is scaled has to be measured again and round A
    // repeated, if this returns true.
    virtual bool scale_grad(double factor) = 0;
    // Then: whether round B may follow. It is taken beside the repeated round A, u being measured
    // by means that are guessed; decide() finds whether they were right.
    virtual bool anticipates_second() { return false; }

    // Decides how to step; with a fault only if it is to `propagate`.
    virtual Fault decide(const Team& team, bool propagate) = 0;

    // Round B, if decide() found a need of it.
    virtual bool needs_second() const { return false; }
    virtual std::size_t n_second_max() const { return 0; }
    virtual std::size_t n_second_sum() const { return 0; }
    virtual void measure_second(const Team&) {}
    virtual void put_second_max(double*) const {}
    virtual void take_second_max(const double*) {}
    virtual void add_up_second(const Team&) {}
    virtual void put_second_sum(double*) const {}
    virtual void take_second_sum(const double*) {}

    // Step sizes and the report, and whether all stays finite, as far as bounds tell.
    virtual Fault finish(bool propagate) = 0;
    Fault check();
    bool needs_look() const { return needs_look_; }
    Fault look(const Team& team);

    virtual void prepare_apply() {}  // throws nothing, as put_sum and take_sum
    virtual void begin_apply();
    virtual void end_apply();
    void carry_bounds(bool propagate);

    // Whether ranks disagree on whether there is a gradient, or of what dtype it is.
    bool presence_differs() const { return presence_differs_; }
    bool grad_format_differs() const { return grad_format_differs_; }
    bool has_unsound_state() const { return is_unsound_; }  // on any rank
    bool is_given_anywhere() const { return is_given_anywhere_; }

    // The first bad element of this rank for a fault, as an index of the whole tensor, or -1.
    std::ptrdiff_t bad_index(Fault fault, double& value) const;

    double grad_scale() const { return hyper_.grad_scale; }
    // As TensorStep's.
    void note_grad_exponent(int exponent) { grad_exponent_ = exponent; }
    void finish_grad_sq() {
        if (grad_exponent_ != 0) report_.grad_sq = std::ldexp(report_.grad_sq, -2 * grad_exponent_);
    }
    bool has_lost_grad_sq() const { return grad_exponent_ != 0 && !std::isfinite(report_.grad_sq); }

    const Part& part() const { return part_; }
    const Tensor& tensor() const { return tensor_; }
    TensorReport& report() { return report_; }

protected:
    static constexpr std::size_t kCommon = 7;

    virtual std::size_t n_own_max() const = 0;
    virtual void put_own_max(double* to) const = 0;
    virtual void take_own_max(const double* from) = 0;

    bool has_momentum() const { return tensor_.m.data != nullptr; }
    double grad_sq_scale() const { return grad_sq_scale_of(hyper_); }
    // By the dtype of the gradient of those who have elements of it.
    bool is_all_float() const {
        return tensor_.param.format != Format::float64 && grad_format_ != Format::float64;
    }
    // As TensorStep's, of the whole tensor.
    void bound(const Descent* descents, std::size_t n, double sum_u_sq, double sum_param_sq);

    const Tensor& tensor_;
    const Part& part_;
    bool given_;
    HyperParameters hyper_;
    TensorReport& report_;
    std::vector<TensorStep*> steps_;

private:
    int grad_exponent_ = 0;
    bool is_given_anywhere_ = false, presence_differs_ = false, grad_format_differs_ = false;
    bool is_unsound_ = false, needs_look_ = false;
    Format grad_format_ = Format::none;
    double bound_of_m_ = 0, bound_of_param_ = 0;
    double next_m_ = KnownNumbers::kUnknown, next_param_ = KnownNumbers::kUnknown;
    const Descent* descents_ = nullptr;
    std::size_t n_descents_ = 0;
    double sum_u_sq_ = 0, sum_param_sq_ = 0;
};

std::unique_ptr<ShardedTensor> make_sharded(const Tensor& tensor, bool given, TensorReport& report,
                                            const ShardedPlaces& places);
// A factored tensor whose sums are integers.
std::unique_ptr<ShardedTensor> make_sharded_exact(const Tensor& tensor, bool given,
                                                  TensorReport& report,
                                                  const ShardedPlaces& places);
std::unique_ptr<ShardedTensor> make_sharded_factored(const Tensor& tensor, bool given,
                                                     TensorReport& report,
                                                     const ShardedPlaces& places);
std::unique_ptr<ShardedTensor> make_sharded_elements(const Tensor& tensor, bool given,
                                                     TensorReport& report,
                                                     const ShardedPlaces& places);

}  // namespace adafactor
