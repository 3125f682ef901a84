// The phases of one tensor's step, each but resolve as tasks that threads may take in any order.
#pragma once

#include <atomic>
#include <cmath>

#include "adafactor.hpp"
#include "engine/finite_result.hpp"
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

// By which sums of grad^2 become those of g^2.
inline double grad_sq_scale_of(const HyperParameters& hyper) {
    return hyper.grad_scale * hyper.grad_scale;
}

// What the running means of a step go by.
inline Moment moment_of(const HyperParameters& hyper) {
    return {hyper.beta2,    hyper.eps_squares, grad_sq_scale_of(hyper), hyper.eps_means,
            hyper.eps_root, hyper.root_floor,  hyper.mean_floor};
}

// Whether sums and products of float32 will do; halves are read as float32.
inline bool is_all_float(const Tensor& tensor) {
    return tensor.param.format != Format::float64 && tensor.grad.format != Format::float64;
}

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
    // Beside measure: what of m and param is to be looked at in this step.
    void look_at_due(std::size_t task) {
        if (looks_at_numbers()) look_at_due(task, n_measure_tasks());
    }
    // Those that a step has left to do: what was measured before it was not looked at then.
    std::size_t n_measure_tasks_left() const {
        return is_measured_ && !looks_at_numbers() ? 0 : n_measure_tasks();
    }
    // Whether measure looks at all of v, not at its turn only.
    bool looks_at_all() const { return tensor_.known == nullptr || !tensor_.known->means; }
    // Finds what apply needs. With a fault, only if it is to `propagate`.
    virtual Fault resolve(const Team& team, bool propagate) = 0;

    // After resolve, before apply: whether the state is sound, and all is finite that apply leaves.
    Fault check(const Team& team);

    virtual std::size_t n_apply_tasks() const = 0;
    virtual void begin_apply() {}
    virtual void apply(std::size_t task, char* scratch) = 0;
    virtual void end_apply() {}

    // After apply: carries the bounds of numbers over to the next step, or forgets them.
    void remember();
    void forget() {
        if (tensor_.known != nullptr) tensor_.known->forget();
    }

    // Of a sharded step, whose ranks share these bounds: of |m| and |param| before it, as far as
    // this rank's part tells; unknown without them.
    double bound_of_m() const { return largest(known_m(), seen_m_sq_); }
    double bound_of_param() const { return largest(known_param(), seen_param_sq_); }
    bool has_sound_state() const { return has_sound_means(); }
    bool needs_bound_of_param() const { return tracks_param(); }
    void carry_bounds(double param, double m) {
        next_param_ = param;
        next_m_ = m;
    }
    // What check does where bounds leave it open, by numbers that bound() was given.
    Fault check_closely(const Team& team);

    // For check, of the descents of n matrices. `sum_u_sq`: of u times grad_scale; `sum_param_sq`
    // matters with scale_parameter.
    void bound(const Descent* descents, std::size_t n, double sum_u_sq, double sum_param_sq) {
        descents_ = descents;
        n_descents_ = n;
        sum_u_sq_ = sum_u_sq;
        sum_param_sq_ = sum_param_sq;
    }

    // Where the param lies whose result is not finite, the first in memory.
    const char* infinite_param() const { return first_infinite_; }

    // Whether the step is rounded as float64 is, and so has a use for a norm as exact.
    bool is_wide() const { return !is_all_float(); }
    // The sum of grad^2 in float64 throughout; measure sums what is narrower in float32. `sums`:
    // one for each of n_tiles().
    double sum_grad_sq_in_double(const Team& team, double* sums) const;
    std::size_t n_tiles() const;  // of kTaskElements elements

    // Of a step that propagates what is not finite. After resolve: whether it leaves finite what is
    // so. After apply: gives all nans that it may have left the bits of one; which bits arithmetic
    // gives them is the compiler's and the machine's choice.
    void note_whether_sound(const Team& team) {
        is_sound_ = report_->fault == Fault::none && check(team) == Fault::none;
    }
    void make_nans_one(const Team& team);

    double grad_scale() const { return hyper_.grad_scale; }
    // Scales the gradient of a step that is measured again.
    void scale_grad(double factor) {
        hyper_.grad_scale *= factor;
        is_measured_ = false;
    }

    // Of a gradient that was scaled by 2^exponent before it was measured.
    void note_grad_exponent(int exponent) { grad_exponent_ = exponent; }
    // After resolve: the report's sum of grad^2 becomes that of the gradient as it was given.
    void finish_grad_sq() {
        if (grad_exponent_ == 0) return;
        report_->grad_sq = std::ldexp(report_->grad_sq, -2 * grad_exponent_);
        if (report_->fault == Fault::none && !std::isfinite(report_->grad_sq))
            report_->fault = Fault::grad;
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
    double grad_sq_scale() const { return grad_sq_scale_of(hyper_); }
    bool is_all_float() const { return adafactor::is_all_float(tensor_); }

    Moment moment() const { return moment_of(hyper_); }

    // Looks at the chunk of v with this number, if it is due. Any thread may.
    void look_at_v(std::size_t chunk, const Block& v) {
        if (!looks_at_all() && (chunk + tensor_.known->turn) % KnownNumbers::kRotation != 0) return;
        if (!kernels_.are_within(v, largest_mean())) v_is_sound_ = false;
    }

    // Does what the task of apply with this number will, in memory of its own, and calls
    // note_infinite for a param that it makes infinite, or a copy or m of it.
    virtual void look(std::size_t task) = 0;
    void note_infinite(const char* param);

    // The rounding of elements that are numbered as in struct Rounding.
    Rounding rounding(std::uint64_t first, std::uint64_t row_step = 0) const {
        return {tensor_.stochastic, tensor_.random.key, tensor_.random.stream, first, row_step};
    }

    const Tensor& tensor_;
    HyperParameters hyper_;
    TensorReport* report_;
    const KernelTable& kernels_;

private:
    Fault check_numbers(const Team& team);
    bool rewrite_nans(const Team& team) const;
    bool looks_at_numbers() const { return has_momentum() || tracks_param(); }
    bool has_sound_means() const;
    double largest_mean() const;
    // What of n things is looked at in this step.
    TurnOf due(std::size_t n, bool all) const {
        TurnOf part(n, all ? 0 : tensor_.known->turn);
        if (all) part.end = n;
        return part;
    }
    void look_at_due(std::size_t task, std::size_t n_tasks);
    double largest_sum_sq(const Array& array, std::size_t begin, std::size_t end) const;
    // A bound of the absolute values of an array, likewise infinite.
    double largest_in(const Array& array, const Team& team) const;

    // What was seen counts more than what is said to be known.
    static double largest(double known, double seen_sq);
    void note_bounds(const ResultBounds& bounds, double param, double m);
    Fault look_at_all_numbers(const Team& team, const ResultBounds& bounds);

    // Whether a bound of |param| is carried from step to step.
    bool tracks_param() const { return !hyper_.scale_parameter && !is_bounded_by_move(tensor_); }
    double known_m() const { return tensor_.known ? tensor_.known->m : KnownNumbers::kUnknown; }
    double known_param() const {
        return tensor_.known ? tensor_.known->param : KnownNumbers::kUnknown;
    }

    const Descent* descents_ = nullptr;
    std::size_t n_descents_ = 0;
    double sum_u_sq_ = 0, sum_param_sq_ = 0;
    // Bounds of what apply leaves, for the next step.
    double next_param_ = KnownNumbers::kUnknown, next_m_ = KnownNumbers::kUnknown;
    std::atomic<bool> v_is_sound_{true};
    std::atomic<double> seen_m_sq_{0}, seen_param_sq_{0};  // sums over chunks of numbers
    std::atomic<const char*> first_infinite_{nullptr};

    int grad_exponent_ = 0;
    bool is_measured_ = false;
    bool is_sound_ = false;
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
