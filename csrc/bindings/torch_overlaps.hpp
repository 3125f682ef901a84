// Which of a step's tensors share memory: a parameter set by `p.data = other`, a parameter that is
// in a group twice, a state that was loaded into two.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "bindings/torch_gather.hpp"

namespace adafactor {

// Remembers the memory of the last list and what was found, because most steps' is the same.
class Overlaps {
public:
    // The first tensor that writes to bytes of one before it, or the number of tensors. Interleaved
    // arrays count as if they shared bytes.
    std::size_t first_in(const std::vector<GatheredTensor>& tensors);

    // The first tensor of that list whose own arrays share bytes, or the number of tensors.
    std::size_t first_in_itself() const { return first_in_itself_; }

    // Whether an array may share bytes with what the last list writes to.
    bool is_written(const Array& array) const;

private:
    struct Piece {
        const char *low, *high;
        std::size_t tensor;

        bool operator==(const Piece& other) const {
            return low == other.low && high == other.high && tensor == other.tensor;
        }
    };

    bool lower_first();

    std::vector<Piece> given_, now_, sorted_;
    std::size_t n_tensors_ = 0, first_ = 0, first_in_itself_ = 0;
    bool are_disjoint_ = true;
};

}  // namespace adafactor
