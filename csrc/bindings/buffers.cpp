#include "bindings/buffers.hpp"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace adafactor {
namespace {

constexpr int kNumpyFloat32 = 11, kNumpyFloat64 = 12;  // NPY_FLOAT, NPY_DOUBLE: part of NumPy's ABI
constexpr int kMaxAxes = 64;

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }

[[noreturn]] void fail_type(const std::string& message) { throw py::type_error(message); }
[[noreturn]] void fail_value(const std::string& message) { throw py::value_error(message); }

py::array numpy_array(py::handle object, const char* name) {
    if (!py::isinstance<py::array>(object))
        fail_type(std::string(name) + " is a " + text(py::type::of(object).attr("__name__")) +
                  ", must be a numpy.ndarray");
    const auto* plain = py::detail::npy_api::get().PyArray_Type_;
    if (Py_TYPE(object.ptr()) != plain &&
        py::isinstance(object, py::module_::import("numpy.ma").attr("MaskedArray")))
        fail_type(std::string(name) + " is a masked array, must be a numpy.ndarray without a mask");
    return py::reinterpret_borrow<py::array>(object);
}

// Sufficient: every axis steps over all that the axes with smaller strides span.
bool may_overlap_itself(const Array& array) {
    std::pair<std::ptrdiff_t, std::ptrdiff_t> axis[kMaxAxes];  // stride, length
    int n = 0;
    for (int d = 0; d < array.ndim; ++d) {
        if (array.shape[d] == 0) return false;
        if (array.shape[d] > 1) axis[n++] = {std::abs(array.strides[d]), array.shape[d]};
    }
    std::sort(axis, axis + n);
    std::ptrdiff_t span = array.dtype == DType::float32 ? 4 : 8;
    for (int d = 0; d < n; ++d) {
        if (axis[d].first < span) return true;
        span += axis[d].first * (axis[d].second - 1);
    }
    return false;
}

// First and one past the last byte.
std::pair<const char*, const char*> extent(const Array& array) {
    const char* low = array.data;
    const char* high = array.data + (array.dtype == DType::float32 ? 4 : 8);
    for (int d = 0; d < array.ndim; ++d) {
        if (array.shape[d] == 0) return {array.data, array.data};
        (array.strides[d] < 0 ? low : high) += (array.shape[d] - 1) * array.strides[d];
    }
    return {low, high};
}

}  // namespace

std::string shape_text(int ndim, const std::ptrdiff_t* shape) {
    py::tuple axes(ndim);
    for (int d = 0; d < ndim; ++d) axes[std::size_t(d)] = py::int_(shape[d]);
    return text(axes);
}

py::object array_from(py::handle object) {
    if (!py::isinstance<py::array>(object)) {
        const py::module_ numpy = py::module_::import("numpy");
        if (py::isinstance(object, numpy.attr("floating"))) return numpy.attr("asarray")(object);
    }
    return py::reinterpret_borrow<py::object>(object);
}

Array array_of(py::handle object, const char* name, Access access) {
    const py::array array = numpy_array(object, name);
    const py::dtype dtype = array.dtype();
    const int type = dtype.num();
    if (type != kNumpyFloat32 && type != kNumpyFloat64)
        fail_type(std::string(name) + " has dtype " + text(dtype) + ", must be float32 or float64");
    if (const char order = dtype.byteorder(); order != '=')
        fail_value(std::string(name) + " has byte order '" + order + "', must be native");

    const Array result{static_cast<char*>(const_cast<void*>(array.data())),
                       type == kNumpyFloat32 ? DType::float32 : DType::float64, int(array.ndim()),
                       array.shape(), array.strides()};
    if (access == Access::write) {
        if (!array.writeable()) fail_value(std::string(name) + " is read-only, must be writeable");
        const bool dense = array.flags() & (py::array::c_style | py::array::f_style);
        if (!dense && may_overlap_itself(result))
            fail_value(std::string(name) + " has elements that overlap each other (strides " +
                       shape_text(result.ndim, result.strides) + "), must have none");
    }
    return result;
}

Array state_of(py::handle object, const char* name) {
    const Array array = array_of(object, name, Access::write);
    const int flags = py::reinterpret_borrow<py::array>(object).flags();
    if (array.dtype != DType::float64 || !(flags & py::array::c_style))
        fail_type(std::string(name) + " must be a C-contiguous array of float64");
    return array;
}

void require_shape(const Array& array, const char* name, int ndim, const std::ptrdiff_t* shape) {
    if (array.ndim != ndim || !std::equal(shape, shape + ndim, array.shape))
        fail_value(std::string(name) + " has shape " + shape_text(array.ndim, array.shape) +
                   ", must be " + shape_text(ndim, shape));
}

void require_disjoint(py::handle a_object, const Array& a, const char* a_name, py::handle b_object,
                      const Array& b, const char* b_name) {
    const auto [a_low, a_high] = extent(a);
    const auto [b_low, b_high] = extent(b);
    if (a_high <= b_low || b_high <= a_low) return;
    // Interleaved views have crossing extents and no common byte. NumPy solves that exactly; where
    // its work would grow too large it raises, and so do we.
    const py::object shares = py::module_::import("numpy").attr("shares_memory");
    if (shares(a_object, b_object, py::arg("max_work") = 1 << 20).cast<bool>())
        fail_value(std::string(a_name) + " overlaps " + b_name + ", must not share memory with it");
}

}  // namespace adafactor
