#include "bindings/torch_measured.hpp"

#include <utility>

#include "bindings/without_gil.hpp"

namespace adafactor {
namespace {

long long version_of(py::handle tensor) {
    static PyObject* const name =
        PyUnicode_InternFromString("_version");  // outlives the interpreter
    const auto version = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor.ptr(), name));
    if (!version) throw py::error_already_set();
    const long long number = PyLong_AsLongLong(version.ptr());
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    return number;
}

// What a weak reference refers to, or null.
py::object referent(const py::object& reference) {
    PyObject* found = nullptr;
#if PY_VERSION_HEX >= 0x030d0000
    if (PyWeakref_GetRef(reference.ptr(), &found) < 0) throw py::error_already_set();
#else
    found = PyWeakref_GetObject(reference.ptr());
    if (found == Py_None) found = nullptr;
    Py_XINCREF(found);
#endif
    return py::reinterpret_steal<py::object>(found);
}

// The tensors that measure reads, and that a step has found: not the count of steps, whose value
// enters by beta2.
template <class Visit>  // (tensor) -> whether to go on
bool visit(const GatheredTensor& one, const Visit& visit_one) {
    if (!visit_one(one.grad) || !visit_one(one.param)) return false;
    for (int i = 0; i < 4; ++i)
        if (one.held[i] && !visit_one(one.held[i])) return false;
    return true;
}

}  // namespace

TorchMeasured::Seen::Seen(const py::object& tensor)
    : reference(py::reinterpret_steal<py::object>(PyWeakref_NewRef(tensor.ptr(), nullptr))),
      version(version_of(tensor)) {
    if (!reference) throw py::error_already_set();
}

bool TorchMeasured::Seen::is(py::handle tensor) const {
    return referent(reference).is(tensor) && version_of(tensor) == version;
}

bool TorchMeasured::measure(const GatheredTensor& one, const Tensor& tensor, int threads) {
    if (size_of(tensor.param) < kLeastMeasured) return false;
    // Before the sweep: what is written meanwhile then counts as written after it.
    Waiting waiting;
    visit(one, [&](const py::object& read) {
        waiting.seen.emplace_back(read);
        return true;
    });
    {
        const WithoutGil no_python_below;
        waiting.measured = std::make_unique<Measured>(tensor, threads);
    }
    waiting_.insert_or_assign(one.param.ptr(), std::move(waiting));
    return true;
}

Measured* TorchMeasured::find(const GatheredTensor& one, const Tensor& tensor) {
    const auto found = waiting_.find(one.param.ptr());
    if (found == waiting_.end()) return nullptr;
    const auto& [seen, measured] = found->second;
    std::size_t n = 0;
    const bool are_same = visit(one, [&, &seen = seen](const py::object& read) {
        return n < seen.size() && seen[n++].is(read);
    });
    // Samples are read only of memory that is known to be there.
    if (!are_same || n < seen.size() || !measured->serves(tensor) || measured->grad_has_changed() ||
        measured->param_has_changed())
        return nullptr;
    ++n_taken_;
    return measured.get();
}

void TorchMeasured::drop_gone() {
    for (auto one = waiting_.begin(); one != waiting_.end();) {
        const bool is_there = bool(referent(one->second.seen.front().reference));
        one = is_there ? std::next(one) : waiting_.erase(one);
    }
}

std::size_t TorchMeasured::n_bytes() const {
    std::size_t all = 0;
    for (const auto& one : waiting_) all += one.second.measured->n_bytes();
    return all;
}

}  // namespace adafactor
