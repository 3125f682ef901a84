// A tensor of an optimizer: its arrays, checked against each other once, and as a step takes them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/measured_grad.hpp"
#include "bindings/written_memory.hpp"
#include "engine/carried.hpp"
#include "engine/finite_result.hpp"
#include "engine/part.hpp"
#include "owned_array.hpp"

namespace adafactor {

// An array as it was when it was given: it must not become anything else.
class HeldArray {
public:
    HeldArray() = default;
    HeldArray(py::object object, const Array& array);

    bool exists() const { return bool(object_); }
    const py::object& object() const { return object_; }
    Format format() const { return array_.format(); }

    // Throws ValueError if it is not what it was, or no longer writeable.
    Array now(const Name& name) const;

    // Whether somebody else than this and a Tensor of Python has it, or a view of it.
    bool is_shared() const { return exists() && Py_REFCNT(object_.ptr()) > 2; }

private:
    // Whether it is as it was, by the fields of NumPy's own struct: what nearly every step finds.
    bool is_as_it_was() const;
    bool lies_as_it_did() const;  // the same, but for the dtype and whether it is writeable

    py::object object_;
    py::object dtype_;
    OwnedArray array_;
};

// Its arrays are NumPy's; those that it has not are null.
struct HeldTensor {
    std::string name;
    bool is_named = false;  // among several: params['w'], not param
    std::vector<std::ptrdiff_t> shape;
    HeldArray param;  // null: given to every step
    HeldArray copy, exp_row, exp_col, v, m, master, low;
    int row_axis = -1, col_axis = -1;
    std::size_t group = 0;
    bool decays = false;
    bool was_stuck = false;  // at any step so far
    std::int64_t t = 0;
    std::uint64_t random_key = 0;  // of its name, "0" without one, for RandomStream
    std::optional<Part> part;  // of a tensor that lies in pieces: then shape is that of this one
    CarriedSquares carried;
    KnownNumbers known;
    std::unique_ptr<MeasuredGrad> measured_grad;  // what waits for a step, or null

    // Holds a model's Tensor of Python, whose attributes are called as the fields here. Throws
    // TypeError or ValueError if its arrays do not go together.
    HeldTensor(const py::object& tensor, std::size_t its_group);

    // Holds a state without a name and a param, which every step is given.
    HeldTensor(std::vector<std::ptrdiff_t> its_shape, const py::object& rows,
               const py::object& cols, const py::object& full);

    HeldTensor(const HeldTensor&) = delete;
    HeldTensor& operator=(const HeldTensor&) = delete;

    // Whether somebody may write to its state without a word: then nothing is known of it.
    bool shares_state() const {
        return exp_row.is_shared() || exp_col.is_shared() || v.is_shared() || m.is_shared() ||
               master.is_shared();
    }

    Name name_of(const char* word) const { return is_named ? Name(word, name) : Name(word); }

    // What steps write to.
    std::vector<WrittenMemory::Piece> pieces() const;

    // The tensor as a step takes it. `param` is that of the Tensor in Python, `grad` of this shape.
    Tensor with(const Array& param, const Array& grad) const;

private:
    void hold_part(const py::object& tensor, int ndim);
    void hold_state(const py::object& rows, const py::object& cols, const py::object& full);
    void hold_copy(py::object object, Format of_param);
    void hold_moment(py::object object, Format of_param);
    void hold_master(py::object object, Format of_param);
};

}  // namespace adafactor
