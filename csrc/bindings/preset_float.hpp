// A float of Python that is made before its number is known, so that giving it cannot fail.
#pragma once

#include <pybind11/pybind11.h>

namespace adafactor {

namespace py = pybind11;

class PresetFloat {
public:
    PresetFloat() : object_(-1.0) {}  // no number that an interpreter may share

    // Once, before anybody else has the object.
    const py::float_& with(double number) {
        reinterpret_cast<PyFloatObject*>(object_.ptr())->ob_fval = number;
        return object_;
    }

private:
    py::float_ object_;
};

}  // namespace adafactor
