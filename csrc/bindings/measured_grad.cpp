#include "bindings/measured_grad.hpp"

#include <string>
#include <utility>

#include "bindings/without_gil.hpp"
#include "engine/part.hpp"

namespace adafactor {
namespace {

constexpr const char* kDiscard = "; opt.discard_measured() drops what was measured";

std::string text_of(double number) { return py::str(py::float_(number)).cast<std::string>(); }

}  // namespace

MeasuredGrad::MeasuredGrad(py::object object, const Array& array, std::optional<double> scale)
    : object_(std::move(object)), array_(array), scale_(scale) {}

void MeasuredGrad::require_same(const Array& array, const Name& name) const {
    if (!array_.is(array))
        throw py::value_error(name.text() +
                              " is another array than opt.measure was given, or has other memory, "
                              "shape, strides or dtype now, must be the same or None" +
                              kDiscard);
}

void MeasuredGrad::require_scale(double scale, const Name& name) const {
    if (scale_ && *scale_ != scale)
        throw py::value_error("grad_scale is " + text_of(scale) + ", must be " + text_of(*scale_) +
                              " as opt.measure was told for " + name.text());
}

void MeasuredGrad::measure(const Tensor& tensor, int threads) {
    // The boxes of a range are measured by the step, which puts them together.
    const bool is_flat = tensor.part != nullptr && tensor.part->layout == Layout::flat;
    if (size_of(tensor.param) < kLeastMeasured || is_flat) return;
    const WithoutGil no_python_below;
    measured_ = std::make_unique<Measured>(tensor, threads);
}

Measured* MeasuredGrad::measured(const Name& param_name, const Name& grad_name) const {
    if (measured_ == nullptr) return nullptr;
    if (measured_->grad_has_changed())
        throw py::value_error(grad_name.text() +
                              " was written to after opt.measure, must stay as it is until the "
                              "step" +
                              kDiscard);
    if (measured_->param_has_changed())
        throw py::value_error(param_name.text() +
                              " was written to after opt.measure, must stay as it is until the "
                              "step; after opt.params_changed() the step measures again");
    return measured_.get();
}

std::size_t MeasuredGrad::n_bytes() const {
    return measured_ == nullptr ? 0 : measured_->n_bytes();
}

}  // namespace adafactor
