#include "bindings/torch_gather.hpp"

#include <algorithm>
#include <cmath>

#include "bindings/buffers.hpp"

namespace adafactor {
namespace {

struct Interned {
    py::object grad = name("grad"), resolve_neg = name("resolve_neg");

    static const Interned& all() {
        static const Interned* const interned = new Interned;  // outlives the interpreter
        return *interned;
    }

private:
    static py::object name(const char* text) {
        return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
    }
};

py::object steal(PyObject* object) {
    if (object == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

// A borrowed value of a dict, or null.
py::handle item_of(py::handle dict, py::handle key) {
    PyObject* const value = PyDict_GetItemWithError(dict.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

bool has_shape(const Array& array, const Array& other) {
    return array.ndim == other.ndim &&
           std::equal(array.shape, array.shape + array.ndim, other.shape);
}

// Whether an array of means has the axes of `param` but `gone`, those but `last` first; and an axis
// of length 1 where `gone` was, before or behind, if it is kept.
bool is_mean_over(const Array& means, const Array& param, int gone, int last, bool keeps_axis,
                  bool kept_first) {
    if (means.ndim != param.ndim - (keeps_axis ? 0 : 1)) return false;
    int d = 0;
    for (int axis = 0; axis < param.ndim; ++axis)
        if (axis != gone && axis != last && means.shape[d++] != param.shape[axis]) return false;
    if (keeps_axis && kept_first && means.shape[d++] != 1) return false;
    if (means.shape[d++] != param.shape[last]) return false;
    return !keeps_axis || kept_first || means.shape[d] == 1;
}

void note_written(GatheredTensor& one, const Array& array) {
    one.written[one.n_written++] = extent(array);
}

}  // namespace

std::string GatheredGroup::name_of(std::size_t index) const {
    if (has_names() && index < py::len(names))
        return py::str(names[py::int_(index)]).cast<std::string>();
    return std::to_string(first_position + std::int64_t(index));
}

py::object StateCursor::find(py::handle param) {
    if (key_.is(param)) {
        const py::object value = value_;
        advance();
        return value;
    }
    return py::reinterpret_borrow<py::object>(item_of(state_, param));
}

void StateCursor::advance() {
    PyObject *key = nullptr, *value = nullptr;
    if (!PyDict_Next(state_.ptr(), &cursor_, &key, &value)) key = value = nullptr;
    key_ = py::reinterpret_borrow<py::object>(key);
    value_ = py::reinterpret_borrow<py::object>(value);
}

void Gathered::reset() {
    clear();
    unready = py::list();
    foreign = py::list();
    arena.reset();
}

void Gathered::clear() {
    tensors.clear();
    steps.clear();
}

void Gatherer::gather(const std::vector<GatheredGroup>& groups, std::size_t first_group,
                      std::size_t first_index, Gathered& found) const {
    found.reset();
    StateCursor states(state_);
    for (std::size_t g = first_group; g < groups.size(); ++g) {
        const GatheredGroup& group = groups[g];
        // The size is read anew: what an attribute runs may change the list.
        for (std::size_t k = g == first_group ? first_index : 0; k < group.params.size(); ++k) {
            const auto param = py::reinterpret_borrow<py::object>(
                PyList_GET_ITEM(group.params.ptr(), Py_ssize_t(k)));
            const py::object state = states.find(param);
            py::object grad =
                !group.grads.is_none() ? py::object(group.grads[py::int_(k)])
                : reader_.is_plain(param)
                    ? reader_.grad_of(param)
                    : steal(PyObject_GetAttr(param.ptr(), Interned::all().grad.ptr()));
            if (grad.is_none()) continue;
            GatheredTensor& one = found.tensors.emplace_back();
            one.group = &group;
            one.index = k;
            one.param = param;
            one.grad = std::move(grad);
            Tensor& step = found.steps.emplace_back();
            py::list* const left_to = !find_arrays(one, step, found.arena)         ? &found.foreign
                                      : !find_state(one, state, step, found.arena) ? &found.unready
                                                                                   : nullptr;
            if (left_to == nullptr) continue;
            left_to->append(py::make_tuple(g, one.param));
            found.tensors.pop_back();
            found.steps.pop_back();
        }
    }
}

bool Gatherer::find_arrays(GatheredTensor& one, Tensor& step, AxesArena& arena) const {
    TorchTensor param, grad;
    if (!reader_.is_plain(one.param) || !reader_.is_plain(one.grad) ||
        !reader_.read(one.param, arena, param) || !param.is_floating() ||
        may_overlap_itself(param.array) || reader_.is_negated(one.param))
        return false;
    if (reader_.is_negated(one.grad))
        one.grad =
            steal(PyObject_CallMethodNoArgs(one.grad.ptr(), Interned::all().resolve_neg.ptr()));
    if (!reader_.read(one.grad, arena, grad) || !grad.is_floating()) return false;
    if (!has_shape(param.array, grad.array)) {
        const std::string name = one.group->name_of(one.index);
        require_shape(grad.array, Name("grad", name, !one.group->has_names()), param.array.ndim,
                      param.array.shape);
    }
    step.param = param.array;
    step.grad = grad.array;
    note_written(one, param.array);
    return true;
}

bool Gatherer::find_state(GatheredTensor& one, py::handle state, Tensor& step,
                          AxesArena& arena) const {
    if (!state || !PyDict_Check(state.ptr())) return false;
    one.state = py::reinterpret_borrow<py::object>(state);
    if (!names_.rms_param.is_none() && !item_of(state, names_.rms_param)) return false;
    return find_count(state, one, arena) && find_second_moment(one, step, arena) &&
           find_moment(one, step, arena) && find_master(one, step, arena);
}

bool Gatherer::read(const GatheredTensor& one, py::handle key, py::object& held, AxesArena& arena,
                    TorchTensor& found) const {
    const py::handle tensor = item_of(one.state, key);
    if (!tensor || !reader_.is_plain(tensor)) return false;
    held = py::reinterpret_borrow<py::object>(tensor);
    return reader_.read(tensor, arena, found);
}

bool Gatherer::find_count(py::handle state, GatheredTensor& one, AxesArena& arena) const {
    constexpr double kMost = 0x1p53;  // every count up to it is a float64
    if (!names_.counts_with_tensors) {
        const py::handle count = item_of(state, names_.step);
        if (!count || !PyLong_CheckExact(count.ptr())) return false;
        const long long steps = PyLong_AsLongLong(count.ptr());
        if (steps == -1 && PyErr_Occurred()) PyErr_Clear();
        if (steps < 0 || double(steps) >= kMost) return false;
        one.t = steps + 1;
        return true;
    }
    TorchTensor found;
    if (!read(one, names_.step, one.held[4], arena, found) || size_of(found.array) != 1)
        return false;
    double steps;
    if (found.dtype == TorchDtype::float32)
        steps = *reinterpret_cast<const float*>(found.array.data);
    else if (found.dtype == TorchDtype::float64)
        steps = *reinterpret_cast<const double*>(found.array.data);
    else
        return false;
    if (!(steps >= 0 && steps < kMost && steps == std::floor(steps))) return false;
    one.t = std::int64_t(steps) + 1;
    one.step = found.array.data;
    one.step_dtype = found.dtype;
    note_written(one, found.array);
    return true;
}

bool Gatherer::find_second_moment(GatheredTensor& one, Tensor& step, AxesArena& arena) const {
    const Array& param = step.param;
    std::tie(step.row_axis, step.col_axis) = one.group->group->axes.of(param);
    step.state_format = one.group->group->state_format;
    const auto means = [&](py::handle key, py::object& held, TorchTensor& found) {
        return read(one, key, held, arena, found) && found.array.format == step.state_format &&
               is_contiguous(found);
    };
    TorchTensor row, col;
    if (step.row_axis < 0) {
        if (!means(names_.full, one.held[0], row) || !has_shape(row.array, param)) return false;
        step.v = row.array.data;
        note_written(one, row.array);
        return true;
    }
    if (!means(names_.row, one.held[0], row) || !means(names_.col, one.held[1], col) ||
        !is_mean_over(row.array, param, step.col_axis, step.row_axis, names_.keeps_axes, false) ||
        !is_mean_over(col.array, param, step.row_axis, step.col_axis, names_.keeps_axes, true))
        return false;
    step.exp_row = row.array.data;
    step.exp_col = col.array.data;
    note_written(one, row.array);
    note_written(one, col.array);
    return true;
}

bool Gatherer::find_moment(GatheredTensor& one, Tensor& step, AxesArena& arena) const {
    if (!one.group->group->has_moment) return true;
    const Array& param = step.param;
    TorchTensor moment;
    if (!read(one, names_.moment, one.held[2], arena, moment) || !has_shape(moment.array, param) ||
        may_overlap_itself(moment.array))
        return false;
    const bool fits = param.format == Format::float64 ? moment.dtype == TorchDtype::float64
                                                      : moment.dtype == TorchDtype::float32 ||
                                                            moment.dtype == TorchDtype::bfloat16;
    if (!fits) return false;
    step.m = moment.array;
    note_written(one, moment.array);
    return true;
}

bool Gatherer::find_master(GatheredTensor& one, Tensor& step, AxesArena& arena) const {
    const Masters masters = one.group->group->masters;
    const Array param = step.param;
    TorchTensor found;
    if (masters == Masters::float32 && is_half(param.format)) {
        if (!read(one, names_.master, one.held[3], arena, found) ||
            found.dtype != TorchDtype::float32 || !has_shape(found.array, param) ||
            may_overlap_itself(found.array))
            return false;
        step.copy = param;
        step.param = found.array;
        note_written(one, found.array);
    } else if (masters == Masters::split && param.format == Format::bfloat16) {
        if (!read(one, names_.low, one.held[3], arena, found) ||
            found.dtype != TorchDtype::uint16 || !has_shape(found.array, param) ||
            !std::equal(param.strides, param.strides + param.ndim, found.array.strides))
            return false;
        step.param.format = Format::split;
        step.param.low = found.array.data - param.data;
        found.array.format = Format::bfloat16;  // of as many bytes
        note_written(one, found.array);
    }
    return true;
}

std::int64_t Gatherer::most_steps(const std::vector<GatheredGroup>& groups) const {
    std::int64_t most = 0;
    AxesArena arena;
    StateCursor states(state_);
    for (const GatheredGroup& group : groups) {
        for (const py::handle param : group.params) {
            const py::object state = states.find(param);
            GatheredTensor one;
            if (!state || !PyDict_Check(state.ptr()) || !PyDict_Size(state.ptr())) continue;
            one.state = py::reinterpret_borrow<py::object>(state);
            arena.reset();
            if (find_count(state, one, arena)) most = std::max(most, one.t - 1);
        }
    }
    return most;
}

}  // namespace adafactor
