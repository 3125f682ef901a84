// The phases of one tensor's step, each but resolve as tasks that threads may take in any order.
#pragma once

#include "adafactor.hpp"
#include "engine/scratch.hpp"
#include "engine/threads.hpp"
#include "kernel/kernels.hpp"

namespace adafactor {

// Threads that work on one thing together. Each has a room of its own for copies and sums.
class Team {
public:
    Team(int threads, char* rooms, std::size_t room_size, int first = 0)
        : threads_(threads), first_(first), rooms_(rooms), room_size_(room_size) {}

    int threads() const { return threads_; }

    // This team's `thread` by itself.
    Team alone(int thread) const { return {1, rooms_, room_size_, first_ + thread}; }

    template <class Body>  // body(task, thread, its room)
    void for_tasks(std::size_t n_tasks, Order order, const Body& body) const {
        parallel_for(n_tasks, threads_, order, [&](std::size_t task, int thread) {
            body(task, thread, rooms_ + std::size_t(first_ + thread) * room_size_);
        });
    }

private:
    int threads_, first_;
    char* rooms_;
    std::size_t room_size_;
};

// Lives in scratch memory and is never destroyed. measure and resolve write nothing of the tensor.
class TensorStep {
public:
    // Everything that may fail does so here. `passing` lasts until resolve is done, `kept` longer.
    virtual void allocate(Scratch& kept, Scratch& passing) = 0;
    virtual std::size_t room_size() const = 0;

    virtual std::size_t n_measure_tasks() const = 0;
    virtual void measure(std::size_t task, char* room) = 0;
    // Finds what apply needs. With a fault, only if it is to `propagate`.
    virtual Fault resolve(const Team& team, bool propagate) = 0;

    virtual std::size_t n_apply_tasks() const = 0;
    virtual void begin_apply() = 0;
    virtual void apply(std::size_t task, char* room) = 0;
    virtual void end_apply() = 0;

    // For a step that is measured again.
    void scale_grad(double factor) { hyper_.grad_scale *= factor; }

    TensorReport& report() { return report_; }

protected:
    TensorStep(const Tensor& tensor, TensorReport& report)
        : tensor_(tensor),
          hyper_(tensor.hyper),
          report_(report),
          carried_(hyper_.scale_parameter ? tensor.carried : nullptr),
          needs_param_(hyper_.scale_parameter) {}
    ~TensorStep() = default;

    bool has_copy() const { return tensor_.copy.data != nullptr; }
    bool has_momentum() const { return tensor_.m.data != nullptr; }
    double grad_sq_scale() const { return hyper_.grad_scale * hyper_.grad_scale; }

    Moment moment() const {
        return {hyper_.beta2,    hyper_.eps_squares, grad_sq_scale(),  hyper_.eps_means,
                hyper_.eps_root, hyper_.root_floor,  hyper_.mean_floor};
    }

    // Of elements that are numbered as in Rounding.
    Rounding rounding(std::uint64_t first, std::uint64_t row_step = 0) const {
        return {tensor_.stochastic, tensor_.random.key, tensor_.random.stream, first, row_step};
    }

    const Tensor& tensor_;
    HyperParameters hyper_;
    TensorReport& report_;
    CarriedSquares* carried_;  // null if RMS(param) is measured, or not needed
    bool needs_param_;         // RMS(param) is still to be found
};

// Each makes a step in the memory of `kept`.
template <class P, class G>
TensorStep* make_factored_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                               const KernelTable& table, const Kernels<P, G>& kernels);

template <class P, class G>
TensorStep* make_unfactored_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                                 const Kernels<P, G>& kernels);

// For factored tensors of many small matrices.
template <class P, class G>
TensorStep* make_small_step(const Tensor& tensor, TensorReport& report, Scratch& kept,
                            const Kernels<P, G>& kernels);

bool is_small(const Tensor& tensor);

// Calls define(P, G) for each pair of element types.
#define ADAFACTOR_FOR_EACH_PAIR(define) \
    define(float, float) define(float, double) define(double, float) define(double, double)

}  // namespace adafactor
