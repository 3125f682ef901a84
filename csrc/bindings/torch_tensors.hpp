// Where a torch.Tensor lies, asked anew whenever it is needed. Nothing here is built against torch.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "adafactor.hpp"
#include "bindings/dlpack_structs.hpp"

namespace adafactor {

namespace py = pybind11;

// Memory for shapes and strides that stays where it is until all is taken back.
class AxesArena {
public:
    std::ptrdiff_t* take(int n);
    void reset() { chunk_ = 0, used_ = 0; }

private:
    static constexpr std::size_t kChunk = 4096;

    std::vector<std::unique_ptr<std::ptrdiff_t[]>> chunks_;
    std::size_t chunk_ = 0, used_ = 0;
};

enum class TorchDtype { float32, float64, float16, bfloat16, uint16, other };

// A strided tensor in this machine's memory. `array` has a format only where `dtype` is one.
struct TorchTensor {
    Array array{};
    TorchDtype dtype = TorchDtype::other;

    bool is_floating() const {
        return dtype == TorchDtype::float32 || dtype == TorchDtype::float64 ||
               dtype == TorchDtype::float16 || dtype == TorchDtype::bfloat16;
    }
};

std::size_t size_of(TorchDtype dtype);          // bytes of an item; 0 for others
bool is_contiguous(const TorchTensor& tensor);  // in C order

// What a plain tensor's attribute is, or its method returns that takes no argument: asked of the C
// function behind it where there is one, without looking it up by name each time.
class TensorAttribute {
public:
    TensorAttribute(const py::object& tensor_type, const py::object& parameter_type,
                    const char* name);

    py::object of(py::handle tensor) const;

private:
    py::object name_, found_;
    bool is_method_;
    const PyGetSetDef* attribute_ = nullptr;
    PyCFunction method_ = nullptr;
};

// Knows torch's types, and how this version of torch says where a tensor lies: by DLPack's table of
// functions (2.10 and later), or by the tensor's own methods.
class TorchReader {
public:
    // `exchange` is torch.Tensor.__dlpack_c_exchange_api__ or None, `dtypes` has torch's dtypes by
    // their names here. Throws RuntimeError if the table is of another major version of DLPack.
    TorchReader(const py::object& tensor_type, const py::object& parameter_type,
                const py::object& strided, const py::object& exchange, const py::dict& dtypes);

    // No subclass: those may keep their numbers elsewhere.
    bool is_plain(py::handle object) const {
        PyTypeObject* const type = Py_TYPE(object.ptr());
        return type == tensor_ || type == parameter_;
    }

    py::object grad_of(py::handle tensor) const { return grad_.of(tensor); }  // of a plain tensor

    // Whether a plain tensor is a negation that is still to be done.
    bool is_negated(py::handle tensor) const { return is_neg_.of(tensor).ptr() == Py_True; }

    // Of a plain tensor, or false if it is sparse, on another device or has no memory. The result
    // borrows from the tensor and the arena. No Python error remains.
    bool read(py::handle tensor, AxesArena& arena, TorchTensor& found) const;

    bool uses_exchange() const { return table_ != nullptr; }

private:
    bool read_by_exchange(py::handle tensor, AxesArena& arena, TorchTensor& found) const;
    bool read_by_methods(py::handle tensor, AxesArena& arena, TorchTensor& found) const;

    py::object held_types_, strided_, capsule_;
    PyTypeObject *tensor_, *parameter_;
    TensorAttribute grad_, is_neg_;
    const dlpack::ExchangeTable* table_ = nullptr;
    std::vector<std::pair<py::object, TorchDtype>> dtypes_;
};

}  // namespace adafactor
