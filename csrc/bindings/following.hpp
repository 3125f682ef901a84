// Masters and lower halves that follow params which somebody else wrote, for a step that may fail:
// the old ones are kept aside until it cannot, and given back where it did.
#pragma once

#include <cstddef>
#include <vector>

#include "bindings/held_tensor.hpp"

namespace adafactor {

class Following {
public:
    explicit Following(std::vector<TensorReport>& reports, std::vector<std::size_t>& positions)
        : reports_(reports), positions_(positions) {}

    // Gives back what was not kept, but for tensors that have been stepped.
    ~Following();

    Following(const Following&) = delete;
    Following& operator=(const Following&) = delete;

    // Makes the tensor's master or lower half what `follow(position)` returns: an array of its
    // shape, which gets the old one, or None where nothing follows. Returns whether anything did.
    bool let_follow(HeldTensor& held, std::size_t position, const py::function& follow);

    // The step took place, or nothing can fail any more.
    void keep_all() { old_.clear(); }

private:
    struct Old {
        std::size_t position;
        HeldTensor& held;
        py::array its, other;  // the tensor's own array, and the one with the elements it had
    };

    bool was_stepped(std::size_t position) const;

    std::vector<TensorReport>& reports_;
    std::vector<std::size_t>& positions_;  // of the reports' tensors, ascending
    std::vector<Old> old_;
};

}  // namespace adafactor
