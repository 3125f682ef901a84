// A round of a sharded step: tensors are measured, then their maxima over all ranks are taken, then
// their sums, by which the maxima go. Tensors are cut into buckets, in their order: one bucket's
// numbers are under way while the next is measured.
//
//     measure 0 | max 0     measure 1 | max 1, sum 0   measure 2 | max 2, sum 1  ...
//
// What stands behind a bar is begun there; a maximum is waited for at the next bar, a sum at the
// one after it. All ranks have the same buckets, so they begin the same messages in the same order.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/messages.hpp"
#include "engine/sharded_tasks.hpp"
#include "engine/sharded_tensor.hpp"

namespace adafactor {

// How the tensors of a round are cut.
struct Buckets {
    static constexpr std::size_t kLength = std::size_t(1) << 20;

    std::size_t length = kLength;  // numbers of a sum at most, but for those of a single tensor
    // Free numbers of the caller's, at the beginning of the first bucket's maximum and sum.
    std::size_t n_header_max = 0, n_header_sum = 0;

    // Where the bucket ends that begins with the tensor `begin`. Of tensors with these lengths.
    std::size_t end_of(std::size_t begin, const std::vector<std::size_t>& lengths) const;
};

// A tensor with round A's numbers, `first`, or round B's, or both.
struct TakesPart {
    ShardedTensor* tensor;
    bool first, second;
};

class ExchangeRound {
public:
    ExchangeRound(const std::vector<TakesPart>& tensors, const Buckets& buckets,
                  MessageArrays& arrays, Scratch& for_measure);

    // As ShardedStep::next, until is_over().
    Exchange next(const Team& team, bool in_slices);

    bool is_over() const { return phase_ == Phase::over; }
    // On whose gradient ranks do not agree: the round then ended early. Or null.
    ShardedTensor* disagreed() const { return disagreed_; }

private:
    struct Bucket {
        std::vector<ShardedTensor*> first, second;
        std::size_t header_max = 0, header_sum = 0;
        std::vector<std::size_t> place;  // of each of both in the sum
        MessageArray max, sum;
        std::vector<double*> group_sums;  // by group of ranks; the first is not used
        // How many messages have been begun up to each of these, if they have.
        std::size_t max_number = 0, sum_number = 0;
    };
    enum class Phase { measure, exchange, end, over };

    bool measure(const Team& team, bool in_slices);
    void prepare_measure(Bucket& bucket);
    void measure_some(Bucket& bucket, const Team& team, bool in_slices);
    void begin_max(Bucket& bucket, Exchange& exchange);
    void take_max(Bucket& bucket);
    void begin_sum(Bucket& bucket, const Team& team, Exchange& exchange);
    void take_sums(const Team& team);
    void begin_group_sums(Bucket& bucket, const Team& team, Exchange& exchange,
                          const std::vector<std::size_t>& sizes);
    std::size_t begin(const Message& message, Exchange& exchange);
    std::size_t wait_for(std::size_t number);

    std::vector<Bucket> buckets_;
    MessageArrays& arrays_;
    Scratch& for_measure_;
    Phase phase_ = Phase::measure;
    std::size_t at_ = 0;                    // the bucket that is measured
    std::size_t n_begun_ = 0, n_over_ = 0;  // messages
    std::size_t n_summed_ = 0;              // buckets
    ShardedTasks tasks_;                    // of the bucket that is measured
    // How much of it is done: tasks, then what follows them of each tensor.
    std::size_t n_measured_ = 0, n_to_measure_ = 0;
    ShardedTensor* disagreed_ = nullptr;
};

}  // namespace adafactor
