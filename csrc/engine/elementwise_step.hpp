// A step whose tensors need nothing of each other but three sums: those of unfactored tensors, and
// of many small matrices.
#pragma once

#include <functional>

#include "engine/clip_and_scale.hpp"
#include "engine/tensor_step.hpp"
#include "engine/two_words.hpp"

namespace adafactor {

// What measure finds; param_sq matters with scale_parameter. u_sq is of u times grad_scale.
struct ElementSums {
    TwoWords grad_sq, u_sq, param_sq;
    bool overflows = false;  // a new running mean exceeds the state's format
};

class ElementwiseStep : public TensorStep {
public:
    virtual ElementSums sums(const Team& team) = 0;
    // By the sums over n elements: these, or the whole tensor's of which they are a part.
    virtual void decide(const ElementSums& of_all, double n) = 0;
    // Where each matrix has a step size of its own, the sums of u^2 and param^2 of each, and how
    // many there are; otherwise none.
    struct Each {
        const double *u_sq = nullptr, *param_sq = nullptr;
        std::size_t n = 0;
    };
    virtual Each each() const { return {}; }
    // After measure: apply is to take no shorter type, whatever this part's numbers allow.
    virtual void widen() {}
    // Calls take(grad^2, u^2, param^2) for the elements of a task of measure; u without grad_scale,
    // by double arithmetic. Threads call this: `take` is best a std::cref, which allocates nothing.
    virtual void for_squares(std::size_t, const std::function<void(double, double, double)>&) {}

    Fault resolve(const Team& team, bool propagate) final {
        const ElementSums own = sums(team);
        report_->grad_sq = own.grad_sq.value();
        const Fault fault = fault_in(own, hyper_);
        if (fault == Fault::none || propagate) decide(own, double(size_of(tensor_.param)));
        return fault;
    }

    static Fault fault_in(const ElementSums& sums, const HyperParameters& hyper) {
        const Fault fault = fault_of(std::isfinite(sums.grad_sq.value()),
                                     !hyper.scale_parameter || std::isfinite(sums.param_sq.value()),
                                     std::isfinite(sums.u_sq.value()));
        return fault == Fault::none && sums.overflows ? Fault::state_format : fault;
    }

protected:
    using TensorStep::TensorStep;
    ~ElementwiseStep() = default;
};

// The step size by these means of squares, and what a report says of it.
inline StepSize reported_step_size(const HyperParameters& hyper, bool has_momentum,
                                   double mean_u_sq, double mean_param_sq, TensorReport& report) {
    const StepSize size = clip_and_scale(hyper, has_momentum, mean_u_sq, mean_param_sq);
    note(size, true, report);
    report.rms_u = std::sqrt(mean_u_sq);
    if (hyper.scale_parameter) report.rms_param = std::sqrt(mean_param_sq);
    return size;
}

}  // namespace adafactor
