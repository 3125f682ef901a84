// The tensors of a step, gathered in the order of an optimizer's groups: each with its gradient and
// its state as they are now.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "adafactor.hpp"
#include "bindings/torch_group.hpp"
#include "bindings/torch_tensors.hpp"

namespace adafactor {

// A param group as a step is given it.
struct GatheredGroup {
    py::object held;  // whose memory this is:
    const TorchGroup* group;
    double lr, decay;
    py::list params;
    std::int64_t first_position;  // of its first parameter, among all of the optimizer's
    py::object names;             // of its parameters: a list of str, or None
    py::object grads;             // likewise: a list, or None where each has its own

    // What the parameter is called: its name, or else its position.
    std::string name_of(std::size_t index) const;
    bool has_names() const { return !names.is_none(); }
};

// One tensor of a step, beside its Tensor.
struct GatheredTensor {
    using Extent = std::pair<const char*, const char*>;  // the first byte, and one past the last

    const GatheredGroup* group;
    std::size_t index;  // in the group
    py::object param, grad;
    py::object state;    // its dict
    py::object held[5];  // tensors of the state: the second moment, m, master or low; step
    std::int64_t t;      // the step to be taken
    char* step;          // the count, if it is a tensor
    TorchDtype step_dtype = TorchDtype::other;
    Extent written[6];  // what the step writes to
    int n_written = 0;
};

// Looks parameters up in an optimizer's state, which usually has them in the order of the groups:
// then none is hashed.
class StateCursor {
public:
    explicit StateCursor(py::handle state) : state_(state) { advance(); }

    // The parameter's state, or null. Parameters must be shown in their order, also those whose
    // state does not matter.
    py::object find(py::handle param);

private:
    void advance();

    py::handle state_;
    Py_ssize_t cursor_ = 0;
    py::object key_, value_;  // held: attributes of parameters run code, which may change the dict
};

// What is found. Tensors that cannot be stepped as they are are Python's affair.
struct Gathered {
    std::vector<GatheredTensor> tensors;
    std::vector<Tensor> steps;  // of each: what the engine takes, without hyper-parameters. Borrows
                                // from what is held, and from the arena
    py::list unready;  // (index of the group, param) where the state is missing or must be changed
    py::list foreign;  // likewise, where param or grad is no plain tensor in this machine's memory
    AxesArena arena;

    void reset();
    void clear();  // of references to tensors, without an allocation
};

class Gatherer {
public:
    Gatherer(const TorchReader& reader, const TorchNames& names, py::handle state)
        : reader_(reader), names_(names), state_(state) {}

    // All tensors with a gradient, from a place in a group on.
    void gather(const std::vector<GatheredGroup>& groups, std::size_t first_group,
                std::size_t first_index, Gathered& found) const;

    // The most steps that any tensor of the groups has taken.
    std::int64_t most_steps(const std::vector<GatheredGroup>& groups) const;

private:
    // False if param or grad is no plain tensor in this machine's memory.
    bool find_arrays(GatheredTensor& one, Tensor& step, AxesArena& arena) const;
    // False if the state, null if there is none, must be made or changed first.
    bool find_state(GatheredTensor& one, py::handle state, Tensor& step, AxesArena& arena) const;
    bool find_count(py::handle state, GatheredTensor& one, AxesArena& arena) const;
    bool find_second_moment(GatheredTensor& one, Tensor& step, AxesArena& arena) const;
    bool find_moment(GatheredTensor& one, Tensor& step, AxesArena& arena) const;
    bool find_master(GatheredTensor& one, Tensor& step, AxesArena& arena) const;

    // A plain tensor of the state by its key, or false.
    bool read(const GatheredTensor& one, py::handle key, py::object& held, AxesArena& arena,
              TorchTensor& found) const;

    const TorchReader& reader_;
    const TorchNames& names_;
    py::handle state_;
};

}  // namespace adafactor
