#include "bindings/held_tensor.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace adafactor {
namespace {

std::string name_of_param(const py::object& name) {
    const auto must_be = [&](const char* what) {
        return "params has the name " + py::repr(name).cast<std::string>() + ", must be " + what;
    };
    if (!py::isinstance<py::str>(name)) throw py::type_error(must_be("a str"));
    py::ssize_t size = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(name.ptr(), &size);
    if (text != nullptr) return {text, std::size_t(size)};
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
    PyErr_Clear();
    throw py::value_error(must_be("a str without lone surrogates"));
}

}  // namespace

HeldArray::HeldArray(py::object object, const Array& array)
    : object_(std::move(object)),
      dtype_(py::reinterpret_borrow<py::array>(object_).dtype()),
      array_(array) {}

bool HeldArray::is_as_it_was() const {
    const auto* now = py::detail::array_proxy(object_.ptr());
    return now->descr == dtype_.ptr() && (now->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) &&
           lies_as_it_did();
}

bool HeldArray::lies_as_it_did() const {
    const auto* now = py::detail::array_proxy(object_.ptr());
    return array_.lies_at(now->data, now->nd, now->dimensions, now->strides);
}

Array HeldArray::now(const Name& name) const {
    if (!is_as_it_was()) {
        const auto now = py::reinterpret_borrow<py::array>(object_);
        if (!now.writeable())
            throw py::value_error(name.text() + " is read-only, must be writeable");
        // An equal dtype may be another object.
        if (!lies_as_it_did() || !now.dtype().equal(dtype_))
            throw py::value_error(name.text() +
                                  " has changed its memory, shape, strides or dtype, must be as "
                                  "it was when the optimizer was made");
    }
    return array_.array();
}

HeldTensor::HeldTensor(const py::object& tensor, std::size_t its_group)
    : name(name_of_param(tensor.attr("name"))),
      is_named(true),
      group(its_group),
      random_key(RandomStream::key_of(name)) {
    const py::object object = tensor.attr("param");
    const Array array = array_of(object, name_of("param"), Access::write);
    shape.assign(array.shape, array.shape + array.ndim);
    param = HeldArray(object, array);
    decays = tensor.attr("decays").cast<bool>();
    if (const py::object axes = tensor.attr("axes"); !axes.is_none()) {
        std::tie(row_axis, col_axis) = axes.cast<std::pair<int, int>>();
        if (std::min(row_axis, col_axis) < 0 || row_axis == col_axis)
            throw py::value_error("the factored axes of " + name_of("param").text() +
                                  " must be two of its axes");
    }
    hold_part(tensor, array.ndim);
    hold_copy(tensor.attr("copy"), array.format);
    hold_state(tensor.attr("exp_row"), tensor.attr("exp_col"), tensor.attr("v"));
    hold_moment(tensor.attr("m"), array.format);
    hold_master(tensor.attr("master"), array.format);
    if (py::object halves = tensor.attr("low"); !halves.is_none()) {
        if (array.format != Format::bfloat16)
            throw py::type_error("a param with lower halves must be of bfloat16");
        const Array found = low_halves_of(halves, name_of("low"), array);
        low = HeldArray(std::move(halves), found);
    }
}

void HeldTensor::hold_part(const py::object& tensor, int ndim) {
    const py::object given = py::getattr(tensor, "part", py::none());
    if (given.is_none()) {
        if (std::max(row_axis, col_axis) >= ndim)
            throw py::value_error("the factored axes of " + name_of("param").text() +
                                  " must be two of its axes");
        return;
    }
    part = given.cast<Part>();
    try {
        part->place(shape, row_axis, col_axis);
    } catch (const std::invalid_argument& error) {
        throw py::value_error(name_of("param").text() + " has a wrong part: " + error.what());
    }
}

HeldTensor::HeldTensor(std::vector<std::ptrdiff_t> its_shape, const py::object& rows,
                       const py::object& cols, const py::object& full)
    : shape(std::move(its_shape)), random_key(RandomStream::key_of("0")) {
    const bool is_factored = shape.size() == 2;
    if (is_factored) row_axis = 0, col_axis = 1;
    if (full.is_none() != is_factored || rows.is_none() == is_factored ||
        cols.is_none() == is_factored)
        throw py::value_error(
            "an array of two axes must have exp_row and exp_col, any other v, and no others");
    hold_state(rows, cols, full);
}

void HeldTensor::hold_state(const py::object& rows, const py::object& cols,
                            const py::object& full) {
    const auto held = [&](const py::object& object, const char* word,
                          const std::vector<std::ptrdiff_t>& must_be) {
        const Array array = state_of(object, name_of(word));
        require_shape(array, name_of(word), int(must_be.size()), must_be.data());
        return HeldArray(object, array);
    };
    if (!full.is_none()) {
        v = held(full, "v", shape);
        return;
    }
    std::vector<std::ptrdiff_t> batch;
    if (part && part->layout == Layout::flat) {
        const auto n_cols = std::ptrdiff_t(part->n_cols);
        exp_row = held(rows, "exp_row", {std::ptrdiff_t(part->n_row_lines)});
        exp_col = held(cols, "exp_col",
                       {n_cols == 0 ? 0 : std::ptrdiff_t(part->n_col_lines) / n_cols, n_cols});
        if (exp_row.format() != exp_col.format())
            throw py::type_error(name_of("exp_row").text() + " and " + name_of("exp_col").text() +
                                 " must be of one dtype");
        return;
    }
    for (int d = 0; d < int(shape.size()); ++d)
        if (d != row_axis && d != col_axis) batch.push_back(shape[std::size_t(d)]);
    const auto with_axis = [&](int axis) {
        std::vector<std::ptrdiff_t> axes = batch;
        axes.push_back(shape.at(std::size_t(axis)));
        return axes;
    };
    exp_row = held(rows, "exp_row", with_axis(row_axis));
    exp_col = held(cols, "exp_col", with_axis(col_axis));
    if (exp_row.format() != exp_col.format())
        throw py::type_error(name_of("exp_row").text() + " and " + name_of("exp_col").text() +
                             " must be of one dtype");
}

void HeldTensor::hold_copy(py::object object, Format of_param) {
    if (object.is_none()) return;
    const Name called = name_of("copy");
    const Array halves = array_of(object, called, Access::write);
    require_shape(halves, called, int(shape.size()), shape.data());
    if (of_param != Format::float32 || !is_half(halves.format))
        throw py::type_error(called.text() +
                             " must be of float16 or bfloat16, and params[...] of float32");
    copy = HeldArray(std::move(object), halves);
}

void HeldTensor::hold_moment(py::object object, Format of_param) {
    if (object.is_none()) return;
    const Name called = name_of("m");
    const Array moment = array_of(object, called, Access::write);
    require_shape(moment, called, int(shape.size()), shape.data());
    const bool fits = of_param == Format::float64
                          ? moment.format == Format::float64
                          : moment.format == Format::float32 || moment.format == Format::bfloat16;
    if (!fits)
        throw py::type_error(called.text() +
                             " must be of float64 with a param of float64, or else of float32 or "
                             "bfloat16");
    m = HeldArray(std::move(object), moment);
}

void HeldTensor::hold_master(py::object object, Format of_param) {
    if (object.is_none()) return;
    const Name called = name_of("master");
    const Array floats = array_of(object, called, Access::write);
    require_shape(floats, called, int(shape.size()), shape.data());
    if (!is_half(of_param) || floats.format != Format::float32)
        throw py::type_error(called.text() +
                             " must be of float32, and param of float16 or bfloat16");
    master = HeldArray(std::move(object), floats);
}

std::vector<WrittenMemory::Piece> HeldTensor::pieces() const {
    std::vector<WrittenMemory::Piece> pieces;
    const std::pair<const char*, const HeldArray*> arrays[] = {
        {"param", &param}, {"copy", &copy}, {"exp_row", &exp_row}, {"exp_col", &exp_col},
        {"v", &v},         {"m", &m},       {"master", &master},   {"low", &low}};
    for (const auto& [word, held] : arrays)
        if (held->exists())
            pieces.emplace_back(held->object(), held->now(name_of(word)), name_of(word));
    return pieces;
}

Tensor HeldTensor::with(const Array& param_now, const Array& grad) const {
    Tensor tensor{};
    const auto state = [&](const HeldArray& held, const char* word) -> void* {
        const Array array = held.now(name_of(word));
        tensor.state_format = array.format;
        return array.data;
    };
    tensor.param = param_now;
    tensor.grad = grad;
    tensor.row_axis = row_axis;
    tensor.col_axis = col_axis;
    if (part) {
        tensor.part = &*part;
        if (part->boxes.size() == 1 && !part->is_range()) tensor.box = &part->boxes[0];
    }
    if (v.exists()) {
        tensor.v = state(v, "v");
    } else {
        tensor.exp_row = state(exp_row, "exp_row");
        tensor.exp_col = state(exp_col, "exp_col");
    }
    if (m.exists()) tensor.m = m.now(name_of("m"));
    if (copy.exists()) tensor.copy = copy.now(name_of("copy"));
    if (master.exists()) {
        tensor.param = master.now(name_of("master"));
        tensor.copy = param_now;
    }
    if (low.exists()) {
        tensor.param.format = Format::split;
        tensor.param.low = low.now(name_of("low")).data - param_now.data;
    }
    return tensor;
}

}  // namespace adafactor
