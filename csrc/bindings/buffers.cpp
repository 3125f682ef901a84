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

py::array numpy_array(py::handle object, const Name& name) {
    if (!py::isinstance<py::array>(object))
        fail_type(name.text() + " is a " + text(py::type::of(object).attr("__name__")) +
                  ", must be a numpy.ndarray");
    const auto* plain = py::detail::npy_api::get().PyArray_Type_;
    if (Py_TYPE(object.ptr()) != plain &&
        py::isinstance(object, py::module_::import("numpy.ma").attr("MaskedArray")))
        fail_type(name.text() + " is a masked array, must be a numpy.ndarray without a mask");
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

}  // namespace

std::string Name::text() const {
    if (tensor == nullptr) return word;
    return std::string(word) + "s[" + py::repr(py::str(*tensor)).cast<std::string>() + "]";
}

std::string Name::of_tensor() const {
    if (tensor == nullptr) return "";
    return " of " + py::repr(py::str(*tensor)).cast<std::string>();
}

std::pair<const char*, const char*> extent(const Array& array) {
    const char* low = array.data;
    const char* high = array.data + (array.dtype == DType::float32 ? 4 : 8);
    for (int d = 0; d < array.ndim; ++d) {
        if (array.shape[d] == 0) return {array.data, array.data};
        (array.strides[d] < 0 ? low : high) += (array.shape[d] - 1) * array.strides[d];
    }
    return {low, high};
}

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

Array array_of(py::handle object, const Name& name, Access access) {
    const py::array array = numpy_array(object, name);
    const py::dtype dtype = array.dtype();
    const int type = dtype.num();
    if (type != kNumpyFloat32 && type != kNumpyFloat64)
        fail_type(name.text() + " has dtype " + text(dtype) + ", must be float32 or float64");
    if (const char order = dtype.byteorder(); order != '=')
        fail_value(name.text() + " has byte order '" + order + "', must be native");

    const Array result{static_cast<char*>(const_cast<void*>(array.data())),
                       type == kNumpyFloat32 ? DType::float32 : DType::float64, int(array.ndim()),
                       array.shape(), array.strides()};
    if (access == Access::write) {
        if (!array.writeable()) fail_value(name.text() + " is read-only, must be writeable");
        const bool dense = array.flags() & (py::array::c_style | py::array::f_style);
        if (!dense && may_overlap_itself(result))
            fail_value(name.text() + " has elements that overlap each other (strides " +
                       shape_text(result.ndim, result.strides) + "), must have none");
    }
    return result;
}

Array state_of(py::handle object, const Name& name) {
    const Array array = array_of(object, name, Access::write);
    const int flags = py::reinterpret_borrow<py::array>(object).flags();
    if (array.dtype != DType::float64 || !(flags & py::array::c_style))
        fail_type(name.text() + " must be a C-contiguous array of float64");
    return array;
}

void require_shape(const Array& array, const Name& name, int ndim, const std::ptrdiff_t* shape) {
    if (array.ndim != ndim || !std::equal(shape, shape + ndim, array.shape))
        fail_value(name.text() + " has shape " + shape_text(array.ndim, array.shape) +
                   ", must be " + shape_text(ndim, shape));
}

void require_disjoint(py::handle a_object, const Array& a, const Name& a_name, py::handle b_object,
                      const Array& b, const Name& b_name) {
    const auto [a_low, a_high] = extent(a);
    const auto [b_low, b_high] = extent(b);
    if (a_low < b_high && b_low < a_high)
        require_no_shared_byte(a_object, a_name, b_object, b_name);
}

void require_no_shared_byte(py::handle a_object, const Name& a_name, py::handle b_object,
                            const Name& b_name) {
    // Interleaved views have crossing extents and no common byte. NumPy solves that exactly; where
    // its work would grow too large it raises, and so do we.
    const py::object shares = py::module_::import("numpy").attr("shares_memory");
    if (shares(a_object, b_object, py::arg("max_work") = 1 << 20).cast<bool>())
        fail_value(a_name.text() + " overlaps " + b_name.text() +
                   ", must not share memory with it");
}

}  // namespace adafactor
