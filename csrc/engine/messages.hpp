// What a sharded step has its caller exchange with other ranks.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace adafactor {

// Shared with whoever reduces it.
using MessageArray = std::shared_ptr<std::vector<double>>;

// An array that is to be reduced, in place: by the maximum over ranks, or their sum.
struct Message {
    MessageArray array;
    bool is_max;
    int group = 0;  // which of this rank's groups of ranks it goes over: 0 is all
};

// What the caller does before the step goes on: it begins these messages, in their order, then
// waits until `n_over` more are over, the oldest of all that it has begun.
struct Exchange {
    std::vector<Message> begins;
    std::size_t n_over = 0;
};

// Arrays that are kept between steps; each step takes them in turn.
class MessageArrays {
public:
    void begin_step() { n_taken_ = 0; }

    // Of this size, filled, and this step's to its end. Another than the last step's where somebody
    // has that still.
    MessageArray take(std::size_t size, double value) {
        if (n_taken_ == arrays_.size()) arrays_.emplace_back();
        MessageArray& array = arrays_[n_taken_++];
        if (array == nullptr || array.use_count() > 1)
            array = std::make_shared<std::vector<double>>();
        array->assign(size, value);
        return array;
    }

private:
    std::vector<MessageArray> arrays_;
    std::size_t n_taken_ = 0;
};

}  // namespace adafactor
