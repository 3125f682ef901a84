// The tasks of all steps of some sharded tensors, numbered through, so that threads share them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#include "engine/sharded_tensor.hpp"

namespace adafactor {

class ShardedTasks {
public:
    ShardedTasks() = default;

    template <class Count>  // how many tasks a step has
    ShardedTasks(const std::vector<ShardedTensor*>& tensors, const Count& count) {
        for (ShardedTensor* tensor : tensors)
            for (TensorStep* step : tensor->steps()) {
                steps_.push_back({step, size_});
                size_ += count(*step);
            }
    }

    std::size_t size() const { return size_; }

    // Calls body(step, its task, scratch memory) for the tasks [begin, end).
    template <class Body>
    void run(const Team& team, Order order, std::size_t begin, std::size_t end,
             const Body& body) const {
        team.for_tasks(end - begin, order, [&](std::size_t k, int, char* scratch) {
            const std::size_t task = begin + k;
            const auto next = std::upper_bound(
                steps_.begin(), steps_.end(), task,
                [](std::size_t at, const StepTasks& tasks) { return at < tasks.first; });
            body(*std::prev(next)->step, task - std::prev(next)->first, scratch);
        });
    }

private:
    // Where the tasks of a step begin among those of all.
    struct StepTasks {
        TensorStep* step;
        std::size_t first;
    };

    std::vector<StepTasks> steps_;
    std::size_t size_ = 0;
};

}  // namespace adafactor
