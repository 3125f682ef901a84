// A gradient that Optimizer.measure was given: it waits for the step that takes it.
#pragma once

#include <memory>
#include <optional>

#include "bindings/buffers.hpp"
#include "engine/measured.hpp"
#include "owned_array.hpp"

namespace adafactor {

class MeasuredGrad {
public:
    // `scale` as the step's grad_scale will be, if that was said. Holds the array.
    MeasuredGrad(py::object object, const Array& array, std::optional<double> scale);

    const py::object& object() const { return object_; }

    // Throws ValueError unless `array` is of the memory, shape, strides and dtype that were given.
    void require_same(const Array& array, const Name& name) const;

    // Throws ValueError if the step's grad_scale is not what was said.
    void require_scale(double scale, const Name& name) const;

    // Measures, unless the tensor is so small that its step does so as fast. Without the GIL.
    void measure(const Tensor& tensor, int threads);

    // Null where the step has to measure. Throws ValueError if param or gradient was written to, as
    // far as that is free to see.
    Measured* measured(const Name& param_name, const Name& grad_name) const;

    // The step measures: what was measured does not hold any more, or is used up.
    void forget() { measured_.reset(); }

    std::size_t n_bytes() const;

private:
    py::object object_;
    OwnedArray array_;
    std::optional<double> scale_;
    std::unique_ptr<Measured> measured_;
};

}  // namespace adafactor
