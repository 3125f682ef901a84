// A sharded step as Python drives it, whoever has the tensors.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "engine/sharded_step.hpp"

namespace adafactor {

namespace py = pybind11;

// Who has the tensors of a sharded step, and keeps them alive until it is over.
class ShardedHost {
public:
    virtual ~ShardedHost() = default;

    virtual Name name_of(std::size_t position, const char* word) const = 0;
    // After the step was applied, or left out for a fault or as a spike: counts, and returns what
    // the caller of apply() gets. `message` is empty without a fault; may throw it.
    virtual py::object end(const ShardedOutcome& outcome, const std::string& message) = 0;

    std::vector<Tensor> tensors;
    std::vector<bool> given;
    std::vector<TensorReport> reports;
    Options options{};
};

// The object that Python has.
class DrivenStep {
public:
    DrivenStep(std::unique_ptr<ShardedHost> host, ShardedMemory& memory, const Buckets& buckets,
               bool exact);

    // ([(array, "max" or "sum", group)], n_over) as in Exchange, or None after the last.
    py::object next_exchange(bool in_slices);
    // (name of the fault, position, index or -1, value), or None.
    py::object fault() const;
    py::object fault_text() const;
    py::object apply();
    void abandon();

private:
    std::string message() const;
    ShardedHost& host() const;  // throws ValueError if the step is over

    std::unique_ptr<ShardedHost> host_;
    std::unique_ptr<ShardedStep> step_;
};

// The array of a message, float64, which shares its memory.
py::array_t<double> array_of_message(const MessageArray& array);

// What a fault says, alike on all ranks.
std::string sharded_fault_text(const ShardedOutcome& outcome, const Tensor& tensor,
                               const Name& param, const Name& grad, const Name& m);

}  // namespace adafactor
