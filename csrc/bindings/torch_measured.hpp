// Gradients of torch that backward has measured, until the step that takes them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <unordered_map>
#include <vector>

#include "bindings/torch_gather.hpp"
#include "engine/measured.hpp"

namespace adafactor {

// Keeps no tensor alive. What was measured serves while param, gradient and state are the same
// tensors in the same memory, and their versions and samples show that nobody has written to them.
class TorchMeasured {
public:
    // Takes the first sweep over a tensor of the next step, without the GIL, in the place of what
    // was measured of it before. False, and nothing is measured, where there is nothing to gain.
    bool measure(const GatheredTensor& one, const Tensor& tensor, int threads);

    // For a step of a tensor whose hyper-parameters are known: null if it has to measure.
    Measured* find(const GatheredTensor& one, const Tensor& tensor);

    // Drops what was measured of gradients that are gone.
    void drop_gone();

    std::size_t size() const { return waiting_.size(); }
    std::size_t n_bytes() const;
    std::size_t n_taken() const { return n_taken_; }  // what find has found

private:
    // A torch.Tensor as it was: which object, and how often torch had written to it.
    struct Seen {
        py::object reference;
        long long version;

        explicit Seen(const py::object& tensor);
        bool is(py::handle tensor) const;
    };
    struct Waiting {
        std::vector<Seen> seen;  // the gradient, then all else
        std::unique_ptr<Measured> measured;
    };

    std::unordered_map<PyObject*, Waiting> waiting_;  // by param
    std::size_t n_taken_ = 0;
};

}  // namespace adafactor
