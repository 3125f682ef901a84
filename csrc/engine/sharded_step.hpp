// A step of tensors that lie in pieces in several processes ("ranks"), in phases: between them the
// caller has the ranks' arrays reduced, by whatever engine there is. All ranks end alike: all have
// stepped, or none has written anything.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <vector>

#include "engine/exchange_round.hpp"
#include "engine/messages.hpp"
#include "engine/sharded_tensor.hpp"

namespace adafactor {

// Working memory, kept between steps.
struct ShardedMemory {
    Scratch for_step, for_measure;
    MessageArrays arrays;
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
    // no say in that is always given. They last as long as this step. May throw std::bad_alloc, as
    // may next(). `exact`: sums are integers, of the same bits for all layouts. The headers of
    // `buckets` are the first round's.
    ShardedStep(const Tensor* tensors, const std::vector<bool>& given, const Options& options,
                TensorReport* reports, ShardedMemory& memory, const Buckets& buckets, bool exact);
    ~ShardedStep();

    // Takes this rank's part up to the next exchange; is_done() if there is none left. `in_slices`:
    // comes back now and then while a message is under way, with nothing to begin or to wait for.
    // Until all messages are over of which the step is told, no rank may begin another.
    Exchange next(bool in_slices = false);

    const ShardedOutcome& outcome() const { return outcome_; }

    // Writes, if is_ready().
    void apply();

    // Whether all exchanges are over, and apply() is right.
    bool is_ready() const {
        const bool is_well = !outcome_.is_fault() && !outcome_.outcome.is_spike;
        return stage_ == Stage::done && is_well;
    }
    bool is_done() const { return stage_ == Stage::done; }

    // What the first maximum begins as: a rank that cannot step takes part with it once, and tells
    // the others so in its header.
    static std::vector<double> mute_round(const Tensor* tensors, std::size_t n_tensors,
                                          const Buckets& buckets, bool exact);

private:
    enum class Stage { begin, round, look, index, value, done };

    Exchange exchange(Stage stage);
    Exchange end();

    Exchange begin_round(bool in_slices);
    Exchange after_round(bool in_slices);
    Exchange finish();
    Exchange after_look();
    Exchange faulty(Fault fault, std::size_t tensor);
    Exchange after_index();
    void note_norm();
    ShardedPlaces places() const;
    void allocate_scratch();
    std::unique_ptr<ShardedTensor> scaled_tensor(std::size_t k, double scale);
    std::vector<ShardedTensor*> scale_grads(double ratio);
    std::size_t position_of(ShardedTensor& tensor) const;

    const Tensor* tensors_;
    std::vector<bool> given_;
    Options options_;
    TensorReport* reports_;
    ShardedMemory& memory_;
    Buckets buckets_;
    bool exact_;
    Place place_of_all_ = Place::memory;
    std::size_t n_elements_ = 0;
    std::vector<std::unique_ptr<ShardedTensor>> all_;
    std::vector<ShardedTensor*> stepping_;  // with a gradient
    std::vector<TakesPart> taking_part_;    // in the round that is under way
    std::optional<ExchangeRound> round_;
    MessageArray fault_;
    Team team_{1, nullptr, 0};
    bool is_first_ = true;
    Stage stage_ = Stage::begin;
    double own_value_ = 0;
    std::ptrdiff_t own_index_ = -1;
    ShardedOutcome outcome_;
};

}  // namespace adafactor
