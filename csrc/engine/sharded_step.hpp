// A step of tensors that lie in pieces in several processes ("ranks"), in phases: between them the
// caller has the ranks' arrays reduced, by whatever engine there is. All ranks end alike: all have
// stepped, or none has written anything.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/sharded_tensor.hpp"

namespace adafactor {

// An array of a round, shared with whoever reduces it.
using RoundArray = std::shared_ptr<std::vector<double>>;

// Working memory, kept between steps.
struct ShardedMemory {
    Scratch for_step, for_measure;
    RoundArray max, sum, sum_again, second_sum, fault;
    std::vector<RoundArray> group_sums;  // by group of ranks; the first is not used
};

// An array that is to be reduced, in place: by the maximum over ranks, or their sum.
struct Message {
    RoundArray array;
    bool is_max;
    int group = 0;  // which of this rank's groups of ranks it goes over: 0 is all
};

// What the caller does before the step goes on: it begins these messages, in their order, then
// waits until `n_over` more are over, the oldest of all that it has begun.
struct Exchange {
    std::vector<Message> begins;
    std::size_t n_over = 0;
};

// As Outcome, alike on all ranks.
struct ShardedOutcome {
    Outcome outcome;   // the index is one of the whole tensor
    double value = 0;  // of the bad element, if there is an index
    bool presence_differs = false, grad_format_differs = false;  // of that tensor, on some ranks
    bool has_unsound_state = false;  // likewise: running means that no gradient makes

    bool is_fault() const {
        return outcome.fault != Fault::none || presence_differs || grad_format_differs;
    }
};

class ShardedStep {
public:
    // All tensors of a model have a part, whether or not a gradient is given[k]; one whose part has
    // no say in that is always given. May throw
    // std::bad_alloc, as may next(). The arrays of the first maximum and sum begin with so many
    // free numbers of the caller's. `exact`: sums are integers, of the same bits for all layouts.
    ShardedStep(const Tensor* tensors, const std::vector<bool>& given, const Options& options,
                TensorReport* reports, ShardedMemory& memory, std::size_t n_header_max,
                std::size_t n_header_sum, bool exact);
    ~ShardedStep();

    // Takes this rank's part up to the next exchange; is_done() if there is none left.
    Exchange next();

    const ShardedOutcome& outcome() const { return outcome_; }

    // Writes, if is_ready().
    void apply();

    // Whether all rounds are done, and apply() is right.
    bool is_ready() const {
        const bool is_well = !outcome_.is_fault() && !outcome_.outcome.is_spike;
        return stage_ == Stage::done && is_well;
    }
    bool is_done() const { return stage_ == Stage::done; }

    // What the first maximum begins as: a rank that cannot step takes part with it once, and tells
    // the others so in its header.
    static std::vector<double> mute_round(const Tensor* tensors, std::size_t n_tensors,
                                          std::size_t n_header_max, bool exact);

private:
    enum class Stage { begin, max, sum, look, index, value, done };

    // Where the tasks of a step begin among those of all.
    struct Tasks {
        TensorStep* step;
        std::size_t first;
    };

    template <class Body>
    void for_each(const std::vector<ShardedTensor*>& tensors, const Body& body);
    template <class Count, class Body>
    void for_all_tasks(const std::vector<ShardedTensor*>& tensors, Order order, const Count& count,
                       const Body& body);
    Exchange exchange(const RoundArray& array, bool is_max, Stage stage);
    Exchange end();

    void measure();
    Exchange put_max();
    Exchange after_max();
    Exchange put_sum();
    void put_group_sums(const std::vector<std::size_t>& sizes, Exchange& exchange);
    Exchange after_sum();
    Exchange finish();
    Exchange after_look();
    Exchange faulty(Fault fault, std::size_t tensor);
    Exchange after_index();
    void note_norm();
    std::size_t position_of(ShardedTensor& tensor) const;

    std::vector<bool> given_;
    Options options_;
    TensorReport* reports_;
    ShardedMemory& memory_;
    std::size_t n_header_max_, n_header_sum_;
    std::vector<std::unique_ptr<ShardedTensor>> all_;
    std::vector<ShardedTensor*> stepping_;  // with a gradient
    // Whose round A is under way, which those that are measured again come to twice; and whose
    // round B is, in the same exchange.
    std::vector<ShardedTensor*> first_, second_;
    std::vector<std::size_t> place_;  // of each of first_ and second_ in the sum
    RoundArray summed_;
    std::vector<double*> group_sums_;  // as in memory_
    std::vector<Tasks> tasks_;
    Team team_{1, nullptr, 0};
    bool is_first_ = true;
    Stage stage_ = Stage::begin;
    double own_value_ = 0;
    std::ptrdiff_t own_index_ = -1;
    ShardedOutcome outcome_;
};

}  // namespace adafactor
