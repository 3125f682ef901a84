#include "bindings/following.hpp"

#include <algorithm>
#include <utility>

#include "bindings/without_gil.hpp"

namespace adafactor {
namespace {

// Of arrays of one shape and item size; along axis `d` and those behind it.
void swap_elements(char* a, char* b, const py::array& a_array, const py::array& b_array,
                   py::ssize_t d) {
    const py::ssize_t size = a_array.itemsize();
    if (d == a_array.ndim()) {
        std::swap_ranges(a, a + size, b);
        return;
    }
    const py::ssize_t n = a_array.shape(d), a_step = a_array.strides(d),
                      b_step = b_array.strides(d);
    if (d + 1 == a_array.ndim() && a_step == size && b_step == size) {
        std::swap_ranges(a, a + n * size, b);
        return;
    }
    for (py::ssize_t k = 0; k < n; ++k)
        swap_elements(a + k * a_step, b + k * b_step, a_array, b_array, d + 1);
}

void swap_elements(const py::array& a, const py::array& b) {
    const auto start = [](const py::array& array) {
        return static_cast<char*>(const_cast<void*>(array.data()));
    };
    swap_elements(start(a), start(b), a, b, 0);
}

void forget(HeldTensor& held) {
    held.carried.forget();
    held.known.forget();
    if (held.measured_grad != nullptr) held.measured_grad->forget();
}

}  // namespace

Following::~Following() {
    for (Old& old : old_) {
        if (was_stepped(old.position)) continue;
        swap_elements(old.its, old.other);
        forget(old.held);
    }
}

bool Following::let_follow(HeldTensor& held, std::size_t position, const py::function& follow) {
    const py::object found = stops_where_unwound([&] { return py::object(follow(position)); });
    if (found.is_none()) return false;
    const HeldArray& its = held.master.exists() ? held.master : held.low;
    const char* const word = held.master.exists() ? "master" : "low";
    its.now(held.name_of(word));  // may be written to
    const auto own = py::reinterpret_borrow<py::array>(its.object());
    if (!py::isinstance<py::array>(found)) throw py::type_error("follow must return an array");
    const auto other = py::reinterpret_borrow<py::array>(found);
    if (other.itemsize() != own.itemsize() || other.ndim() != own.ndim() || !other.writeable() ||
        !std::equal(own.shape(), own.shape() + own.ndim(), other.shape()))
        throw py::value_error("follow must return an array like the one that follows");
    old_.push_back({position, held, own, other});
    swap_elements(own, other);
    forget(held);
    return true;
}

bool Following::was_stepped(std::size_t position) const {
    const auto at = std::lower_bound(positions_.begin(), positions_.end(), position);
    const auto k = std::size_t(at - positions_.begin());
    return at != positions_.end() && *at == position && k < reports_.size() && reports_[k].stepped;
}

}  // namespace adafactor
