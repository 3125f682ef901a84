// Constructors that raise a MemoryError where memory runs out. pybind11's own (3.1) end the
// process: they look for fields of an object that Python could not allocate, and note the new
// object where no exception may pass. These do the same steps in another order.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <new>
#include <utility>

namespace adafactor {

namespace py = pybind11;

inline PyObject* new_object(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* const self = type->tp_alloc(type, 0);
    if (self == nullptr) return nullptr;
    try {
        reinterpret_cast<py::detail::instance*>(self)->allocate_layout();
    } catch (const std::bad_alloc&) {
        type->tp_free(self);
        Py_DECREF(type);
        return PyErr_NoMemory();
    }
    return self;
}

// Lets a class have no constructors but those of def_constructor.
template <class Class>
void allocate_safely(Class& bound) {
    reinterpret_cast<PyTypeObject*>(bound.ptr())->tp_new = new_object;
}

// Defines the constructor that makes what `make` returns, a std::unique_ptr, of these arguments.
template <class... Arguments, class Class, class Make, class... Extra>
void def_constructor(Class& bound, const Make& make, const Extra&... extra) {
    bound.def(
        "__init__",
        [make](py::detail::value_and_holder& self, Arguments... arguments) {
            auto value = make(std::forward<Arguments>(arguments)...);
            self.value_ptr() = value.get();
            try {
                self.type->init_instance(self.inst, nullptr);
            } catch (...) {
                self.value_ptr() = nullptr;  // it has no owner but `value`
                throw;
            }
            static_cast<void>(value.release());
        },
        py::detail::is_new_style_constructor(), extra...);
}

}  // namespace adafactor
