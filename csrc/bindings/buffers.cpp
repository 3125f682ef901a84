#include "bindings/buffers.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <optional>
#include <utility>

#include "bindings/dlpack.hpp"
#include "bindings/without_gil.hpp"

namespace adafactor {
namespace {

// NPY_FLOAT, NPY_DOUBLE, NPY_HALF, NPY_USERDEF, NPY_USHORT: part of NumPy's ABI.
constexpr int kNumpyFloat32 = 11, kNumpyFloat64 = 12, kNumpyFloat16 = 23, kNumpyFirstOther = 256;
constexpr int kNumpyUint16 = 4;
constexpr int kMaxAxes = 64;

std::string text(py::handle object) { return py::str(object).cast<std::string>(); }

[[noreturn]] void fail_type(const std::string& message) { throw py::type_error(message); }
[[noreturn]] void fail_value(const std::string& message) { throw py::value_error(message); }

const char* how_to_get_one(py::handle object) {
    return py::hasattr(object, "detach")
               ? " of its memory, as torch's p.detach().numpy()"
               : ": numpy.array(p), which the model then has to use, for steps write into it and "
                 "jax's arrays are read-only";
}

// Whether NumPy makes an array of it by its own protocol or by DLPack.
bool becomes_array(py::handle object) {
    return !PyType_Check(object.ptr()) &&
           !py::isinstance(object, py::module_::import("numpy").attr("generic")) &&
           (py::hasattr(object, "__array__") || py::hasattr(object, "__dlpack__"));
}

// What bfloat16_of_dlpack makes of it; null where that fails, too.
py::object bfloat16_or_null(py::handle object) {
    try {
        return bfloat16_of_dlpack(object);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
        return {};
    } catch (const py::cast_error&) {
        return {};  // of a device that is none
    }
}

py::array numpy_array(py::handle object, const Name& name) {
    if (!py::isinstance<py::array>(object))
        fail_type(name.text() + " is a " + text(py::type::of(object).attr("__name__")) +
                  ", must be a numpy.ndarray" +
                  (becomes_array(object) ? how_to_get_one(object) : ""));
    const auto* plain = py::detail::npy_api::get().PyArray_Type_;
    if (Py_TYPE(object.ptr()) != plain &&
        py::isinstance(object, py::module_::import("numpy.ma").attr("MaskedArray")))
        fail_type(name.text() + " is a masked array, must be a numpy.ndarray without a mask");
    return py::reinterpret_borrow<py::array>(object);
}

// ml_dtypes registers bfloat16 with NumPy when it is imported, under whatever number is free then.
// Known by its name, it need not be imported here.
bool is_bfloat16(const py::dtype& dtype) {
    static std::atomic<int> number{-1};
    const int type = dtype.num();
    if (type < kNumpyFirstOther) return false;
    if (type == number) return true;
    if (dtype.itemsize() != 2 || text(dtype.attr("name")) != "bfloat16") return false;
    number = type;
    return true;
}

bool find_format(const py::dtype& dtype, Format& found) {
    switch (dtype.num()) {
        case kNumpyFloat32:
            found = Format::float32;
            return true;
        case kNumpyFloat64:
            found = Format::float64;
            return true;
        case kNumpyFloat16:
            found = Format::float16;
            return true;
    }
    found = Format::bfloat16;
    return is_bfloat16(dtype);
}

void require_native(const py::dtype& dtype, const Name& name) {
    if (const char order = dtype.byteorder(); order != '=')
        fail_value(name.text() + " has byte order '" + order + "', must be native");
}

void require_writeable(const py::array& object, const Array& array, const Name& name) {
    if (!object.writeable()) fail_value(name.text() + " is read-only, must be writeable");
    const bool dense = object.flags() & (py::array::c_style | py::array::f_style);
    if (!dense && may_overlap_itself(array))
        fail_value(name.text() + " has elements that overlap each other (strides " +
                   shape_text(array.ndim, array.strides) + "), must have none");
}

}  // namespace

namespace {

// Whether each axis steps over all that the axes behind it span, as in C order.
bool is_nested(const Array& array) {
    auto span = std::ptrdiff_t(item_size(array.format));
    for (int d = array.ndim - 1; d >= 0; --d) {
        if (array.shape[d] <= 1) continue;
        const std::ptrdiff_t stride = std::abs(array.strides[d]);
        if (stride < span) return false;
        span += stride * (array.shape[d] - 1);
    }
    return true;
}

}  // namespace

bool may_overlap_itself(const Array& array) {
    if (is_nested(array)) return false;
    std::pair<std::ptrdiff_t, std::ptrdiff_t> axis[kMaxAxes];  // stride, length
    int n = 0;
    for (int d = 0; d < array.ndim; ++d) {
        if (array.shape[d] == 0) return false;
        if (array.shape[d] > 1) axis[n++] = {std::abs(array.strides[d]), array.shape[d]};
    }
    std::sort(axis, axis + n);
    auto span = std::ptrdiff_t(item_size(array.format));
    for (int d = 0; d < n; ++d) {
        if (axis[d].first < span) return true;
        span += axis[d].first * (axis[d].second - 1);
    }
    return false;
}

std::string Name::text() const {
    if (tensor == nullptr) return word;
    std::string plural = word;
    plural.back() == 'y' ? plural.replace(plural.size() - 1, 1, "ies") : plural.append("s");
    return plural + "[" + shown() + "]";
}

std::string Name::of_tensor() const {
    if (tensor == nullptr) return "";
    return " of " + shown();
}

std::string Name::shown() const {
    return is_position ? *tensor : py::repr(py::str(*tensor)).cast<std::string>();
}

std::pair<const char*, const char*> extent(const Array& array) {
    const char* low = array.data;
    const char* high = array.data + item_size(array.format);
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

namespace {

// What reads an object by one of the two protocols; NumPy 1.22 has DLPack under a private name.
py::object reader_of(py::handle object, const py::module_& numpy) {
    if (py::hasattr(object, "__array__")) return numpy.attr("asanyarray");
    return numpy.attr(py::hasattr(numpy, "from_dlpack") ? "from_dlpack" : "_from_dlpack");
}

py::object array_made_from(py::handle object, const Name& name) {
    const py::module_ numpy = py::module_::import("numpy");
    if (py::isinstance(object, numpy.attr("floating")) ||
        text(py::type::of(object).attr("__name__")) == "bfloat16")
        return numpy.attr("asarray")(object);
    if (!becomes_array(object)) return py::reinterpret_borrow<py::object>(object);
    std::optional<py::error_already_set> error;  // no Python runs while it is being caught
    try {
        return reader_of(object, numpy)(object);
    } catch (py::error_already_set& caught) {
        if (!caught.matches(PyExc_Exception) || caught.matches(PyExc_MemoryError)) throw;
        error = caught;
    }
    if (py::object halves = bfloat16_or_null(object)) return halves;
    const std::string message =
        name.text() + " is a " + text(py::type::of(object).attr("__name__")) +
        " that NumPy cannot read (" + text(error->value()) +
        "), must be a numpy.ndarray or become one, as torch's by grad.detach().cpu()";
    py::raise_from(*error, PyExc_TypeError, message.c_str());
    throw py::error_already_set();
}

}  // namespace

py::object array_from(py::handle object, const Name& name) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::object>(object);
    return stops_where_unwound([&] { return array_made_from(object, name); });
}

Array array_of(py::handle object, const Name& name, Access access) {
    const py::array array = numpy_array(object, name);
    const py::dtype dtype = array.dtype();
    Format found;
    if (!find_format(dtype, found))
        fail_type(name.text() + " has dtype " + text(dtype) +
                  ", must be float16, bfloat16, float32 or float64");
    require_native(dtype, name);
    const Array result{static_cast<char*>(const_cast<void*>(array.data())), found,
                       int(array.ndim()), array.shape(), array.strides()};
    if (access == Access::write) require_writeable(array, result, name);
    return result;
}

Array low_halves_of(py::handle object, const Name& name, const Array& high) {
    const py::array array = numpy_array(object, name);
    const Array result{static_cast<char*>(const_cast<void*>(array.data())), Format::bfloat16,
                       int(array.ndim()), array.shape(), array.strides()};
    if (array.dtype().num() != kNumpyUint16 || result.ndim != high.ndim ||
        !std::equal(high.shape, high.shape + high.ndim, result.shape) ||
        (size_of(high) > 0 && !std::equal(high.strides, high.strides + high.ndim, result.strides)))
        fail_type(name.text() + " must be an array of uint16 with the shape and strides of param");
    require_native(array.dtype(), name);
    require_writeable(array, result, name);
    return result;
}

Array state_of(py::handle object, const Name& name) {
    const Array array = array_of(object, name, Access::write);
    const int flags = py::reinterpret_borrow<py::array>(object).flags();
    const bool fits = array.format == Format::float64 || array.format == Format::float32;
    if (!fits || !(flags & py::array::c_style))
        fail_type(name.text() + " must be a C-contiguous array of float64 or float32");
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
