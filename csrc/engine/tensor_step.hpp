// The phases of one tensor's step, each but resolve as tasks that threads may take in any order.
#pragma once

#include "adafactor.hpp"
#include "engine/scratch.hpp"
#include "engine/threads.hpp"
#include "engine/walk_choice.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// Threads that work on one thing together. Each has scratch memory of its own for copies and sums.
class Team {
public:
    Team(int threads, char* scratch, std::size_t scratch_size, int first = 0)
        : threads_(threads), first_(first), scratch_(scratch), scratch_size_(scratch_size) {}

    int threads() const { return threads_; }

    // This team's `thread` by itself.
    Team alone(int thread) const { return {1, scratch_, scratch_size_, first_ + thread}; }

    template <class Body>  // body(task, thread, its scratch memory)
    void for_tasks(std::size_t n_tasks, Order order, const Body& body) const {
        parallel_for(n_tasks, threads_, order, [&](std::size_t task, int thread) {
            body(task, thread, scratch_ + std::size_t(first_ + thread) * scratch_size_);
        });
    }

private:
    int threads_, first_;
    char* scratch_;
    std::size_t scratch_size_;
};

// Lives in scratch memory and is never destroyed. measure and resolve write nothing of the tensor.
class TensorStep {
public:
    // Everything that may fail does so here. What is taken from `for_step`, once, lasts until the
    // step is done; what from `for_measure`, for every time that measure begins, until resolve is.
    virtual void allocate(Scratch& for_step) = 0;
    virtual void allocate_sums(Scratch& for_measure) = 0;
    // Once measured, before resolve: keeps what was taken from `for_measure` in memory of `own`.
    virtual void keep_sums(Scratch& own) = 0;
    virtual std::size_t scratch_size() const { return 0; }  // bytes of a thread

    virtual std::size_t n_measure_tasks() const = 0;
    virtual void measure(std::size_t task, char* scratch) = 0;
    // Finds what apply needs. With a fault, only if it is to `propagate`.
    virtual Fault resolve(const Team& team, bool propagate) = 0;

    virtual std::size_t n_apply_tasks() const = 0;
    virtual void begin_apply() {}
    virtual void apply(std::size_t task, char* scratch) = 0;
    virtual void end_apply() {}

    // Scales the gradient of a step that is measured again.
    void scale_grad(double factor) {
        hyper_.grad_scale *= factor;
        is_measured_ = false;
    }

    // Whether it was measured before the step: then what it holds is in memory of its own.
    bool is_measured() const { return is_measured_; }
    // What has been measured becomes part of a step with these numbers, which reports there.
    void take_over(const HyperParameters& hyper, TensorReport& report) {
        hyper_ = hyper;
        report_ = &report;
        is_measured_ = true;
    }

    TensorReport& report() { return *report_; }

protected:
    TensorStep(const Tensor& tensor, TensorReport& report, const KernelTable& kernels)
        : tensor_(tensor), hyper_(tensor.hyper), report_(&report), kernels_(kernels) {}
    ~TensorStep() = default;

    bool has_momentum() const { return tensor_.m.data != nullptr; }
    double grad_sq_scale() const { return hyper_.grad_scale * hyper_.grad_scale; }

    // Whether sums and products of float32 will do; halves are read as float32.
    bool is_all_float() const {
        return tensor_.param.format != Format::float64 && tensor_.grad.format != Format::float64;
    }

    Moment moment() const {
        return {hyper_.beta2,    hyper_.eps_squares, grad_sq_scale(),  hyper_.eps_means,
                hyper_.eps_root, hyper_.root_floor,  hyper_.mean_floor};
    }

    // The rounding of elements that are numbered as in struct Rounding.
    Rounding rounding(std::uint64_t first, std::uint64_t row_step = 0) const {
        return {tensor_.stochastic, tensor_.random.key, tensor_.random.stream, first, row_step};
    }

    const Tensor& tensor_;
    HyperParameters hyper_;
    TensorReport* report_;
    const KernelTable& kernels_;

private:
    bool is_measured_ = false;
};

// Each makes a step in memory of `for_step`, the first of the kind that the tensor is of. `place`:
// where the arrays of the whole list are.
TensorStep* make_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                      const KernelTable& kernels, Place place);
TensorStep* make_factored_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                               const KernelTable& kernels, Place place);
TensorStep* make_unfactored_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                                 const KernelTable& kernels);
// This one is for factored tensors of many small matrices.
TensorStep* make_small_step(const Tensor& tensor, TensorReport& report, Scratch& for_step,
                            const KernelTable& kernels);
bool is_small(const Tensor& tensor);

}  // namespace adafactor
