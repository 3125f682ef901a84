#include "bindings/sharded_step.hpp"

#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "bindings/bindings.hpp"
#include "bindings/constructor.hpp"
#include "bindings/take_step.hpp"
#include "bindings/without_gil.hpp"

namespace adafactor {
namespace {

const char* name_of(const ShardedOutcome& outcome) {
    if (outcome.presence_differs) return "presence";
    if (outcome.grad_format_differs) return "grad_dtype";
    switch (outcome.outcome.fault) {
        case Fault::grad:
            return "grad";
        case Fault::param:
            return "param";
        case Fault::second_moment:
            return "second_moment";
        case Fault::first_moment:
            return "first_moment";
        case Fault::result:
            return "result";
        case Fault::state_format:
            return "state_format";
        default:
            return "none";
    }
}

std::string place_of(std::ptrdiff_t index, const std::vector<std::ptrdiff_t>& shape) {
    std::string place;
    for (auto length = shape.rbegin(); length != shape.rend(); ++length) {
        place = std::to_string(index % *length) + (place.empty() ? "" : ", ") + place;
        index /= *length;
    }
    return place.empty() ? "()" : place;
}

// Of struct SharedLines.
using GivenLines = std::tuple<bool, int, std::size_t, std::size_t>;

std::string shown(double value) { return py::str(py::float_(value)).cast<std::string>(); }

}  // namespace

std::string sharded_fault_text(const ShardedOutcome& of, const Tensor& tensor, const Name& param,
                               const Name& grad, const Name& m) {
    if (of.presence_differs)
        return grad.text() + " is None on some ranks and given on others, must be alike on all";
    if (of.grad_format_differs)
        return grad.text() + " is of different dtypes on the ranks, must be of one";
    const Fault fault = of.outcome.fault;
    const std::string of_tensor = param.of_tensor();
    if (fault == Fault::state_format)
        return (tensor.v != nullptr ? "v" : "exp_row or exp_col") + of_tensor +
               " would have a mean of squares above 3.4e38, must be at most that in float32: "
               "state_dtype='float64' holds it";
    if (fault == Fault::second_moment && !of.has_unsound_state)
        return useless_second_moment(tensor.v != nullptr, of_tensor);
    if (fault == Fault::second_moment)
        return (tensor.v != nullptr ? "v" : "exp_row and exp_col") + of_tensor +
               (tensor.v != nullptr ? " is" : " are") +
               " not finite, or negative, or zero while eps is zero: the update would not be "
               "finite";
    const bool is_state = fault == Fault::first_moment;
    const Name& name = fault == Fault::grad ? grad : is_state ? m : param;
    if (of.outcome.index < 0)
        return "the squares of " + (is_state ? m.word + of_tensor : name.text()) +
               " add up to more than float64 holds";
    const std::string place = "[" + place_of(of.outcome.index, tensor.part->shape) + "]";
    const std::string element =
        (is_state ? m.word + place + of_tensor : name.text() + place) + " is " + shown(of.value);
    if (!std::isfinite(of.value)) return element + ", must be finite";
    if (fault == Fault::result)
        return element +
               ", and this step would make it, its copy or its first moment infinite: it must be "
               "smaller, the step too, or the dtype wider";
    return element + ", whose square overflows float64";
}

DrivenStep::DrivenStep(std::unique_ptr<ShardedHost> host, ShardedMemory& memory,
                       const Buckets& buckets, bool exact)
    : host_(std::move(host)) {
    host_->reports.assign(host_->tensors.size(), {});
    step_ = std::make_unique<ShardedStep>(host_->tensors.data(), host_->given, host_->options,
                                          host_->reports.data(), memory, buckets, exact);
}

ShardedHost& DrivenStep::host() const {
    if (host_ == nullptr)
        throw py::value_error("this step is over: begin another by begin_sharded_step");
    return *host_;
}

py::array_t<double> array_of_message(const MessageArray& array) {
    auto held = std::make_unique<MessageArray>(array);
    const py::capsule owner(held.get(), [](void* p) { delete static_cast<MessageArray*>(p); });
    static_cast<void>(held.release());
    return py::array_t<double>({py::ssize_t(array->size())}, {py::ssize_t(sizeof(double))},
                               array->data(), owner);
}

py::object DrivenStep::next_exchange(bool in_slices) {
    host();
    Exchange exchange;
    {
        const WithoutGil no_python_below;
        exchange = step_->next(in_slices);
    }
    if (step_->is_done()) return py::none();
    py::list messages;
    for (const Message& message : exchange.begins)
        messages.append(py::make_tuple(array_of_message(message.array),
                                       message.is_max ? "max" : "sum", message.group));
    return py::make_tuple(messages, exchange.n_over);
}

py::object DrivenStep::fault() const {
    host();
    const ShardedOutcome& of = step_->outcome();
    if (!of.is_fault()) return py::none();
    return py::make_tuple(name_of(of), of.outcome.tensor, of.outcome.index, of.value);
}

std::string DrivenStep::message() const {
    const ShardedOutcome& of = step_->outcome();
    const std::size_t k = of.outcome.tensor;
    if (!of.is_fault()) return "";
    return sharded_fault_text(of, host().tensors[k], host().name_of(k, "param"),
                              host().name_of(k, "grad"), host().name_of(k, "m"));
}

py::object DrivenStep::fault_text() const {
    host();
    if (!step_->outcome().is_fault()) return py::none();
    return py::cast(message());
}

py::object DrivenStep::apply() {
    host();
    if (!step_->is_done())
        throw py::value_error(
            "the step has exchanges left: apply() comes after next_exchange() is None");
    const std::string text = message();
    if (step_->is_ready()) {
        const WithoutGil no_python_below;
        step_->apply();
    }
    const std::unique_ptr<ShardedHost> over = std::move(host_);
    const std::unique_ptr<ShardedStep> last = std::move(step_);
    return over->end(last->outcome(), text);
}

void DrivenStep::abandon() {
    step_.reset();
    host_.reset();
}

void bind_sharded_step(py::module_& m) {
    py::class_<Part> part(
        m, "Part",
        "Which part of a tensor a rank has. shape: of the whole tensor. start: where the local box "
        "begins in it, or (the first element,) of a range in C order. layout: how the tensor is "
        "cut. speaks: whether this rank adds its numbers, as one of each set of replicas does. "
        "shared: of grids and ranges, (are rows, group of ranks, begin, end) of runs of this "
        "rank's "
        "lines of the state whose sums others have parts of; None: all ranks exchange all lines.");
    allocate_safely(part);
    def_constructor<std::vector<std::ptrdiff_t>, std::vector<std::ptrdiff_t>, const std::string&,
                    bool, const std::optional<std::vector<GivenLines>>&>(
        part,
        [](std::vector<std::ptrdiff_t> shape, std::vector<std::ptrdiff_t> start,
           const std::string& layout, bool speaks,
           const std::optional<std::vector<GivenLines>>& shared) {
            auto made = std::make_unique<Part>();
            made->shape = std::move(shape);
            made->start = std::move(start);
            made->layout = layout_of(layout);
            made->speaks = speaks;
            if (shared) made->shared.emplace();
            for (const auto& [are_rows, group, begin, end] :
                 shared.value_or(std::vector<GivenLines>{}))
                made->shared->push_back({are_rows, group, begin, end});
            return made;
        },
        py::arg("shape"), py::arg("start"), py::arg("layout"), py::arg("speaks") = true,
        py::arg("shared") = py::none());
    part.def_readonly("shape", &Part::shape)
        .def_readonly("start", &Part::start)
        .def_readonly("speaks", &Part::speaks);

    py::class_<DrivenStep>(m, "ShardedStep", "A step of tensors in pieces, between its exchanges.")
        .def(
            "next_exchange", &DrivenStep::next_exchange,
            "What is to be exchanged next: messages to begin, in their order, each an array to be "
            "reduced in place, by \"max\" or \"sum\", over which group of ranks, 0 being all; and "
            "how many more must be over before the next call, the oldest of all that were begun. "
            "None at the end. in_slices: now and then there is nothing to begin or to wait for, so "
            "that what is under way can be seen to.",
            py::arg("in_slices") = false)
        .def_property_readonly("fault", &DrivenStep::fault)
        .def("fault_text", &DrivenStep::fault_text)
        .def("apply", &DrivenStep::apply, "Write, or end a step that is left out; the report.")
        .def("abandon", &DrivenStep::abandon, "End the step and write nothing.");
}

}  // namespace adafactor
