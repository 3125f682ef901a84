// The only place where a NumPy array becomes a pointer. Nothing here converts or copies.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "adafactor.hpp"

namespace adafactor {

namespace py = pybind11;

enum class Access { read, write };

// What an error calls an array: "param", or params['w'] where there are several tensors, params[3]
// where these have positions.
struct Name {
    const char* word;
    const std::string* tensor = nullptr;
    bool is_position = false;

    Name(const char* array) : word(array) {}
    Name(const char* array, const std::string& its_tensor, bool has_position = false)
        : word(array), tensor(&its_tensor), is_position(has_position) {}

    std::string text() const;
    std::string of_tensor() const;  // " of 'w'", or nothing

private:
    std::string shown() const;  // 'w', or 3
};

// An array of no axes for a NumPy scalar, which is what NumPy's operators make of such arrays; what
// an object with __array__ or __dlpack__ becomes, of the same memory if it can; anything else as it
// is. For what is only read. It may run code of the object's class: no pointers must be held.
py::object array_from(py::handle object, const Name& name);

// An array of a Format, of any strides, `name` in every error. The Array borrows from
// `object`. Throws TypeError for what is not such an array, ValueError for a byte order other than
// the machine's and, to be written, for a read-only array or one whose elements overlap each other.
Array array_of(py::handle object, const Name& name, Access access);

// The lower halves of a float32 whose upper ones are `high`: uint16, of its shape and strides, to
// be written.
Array low_halves_of(py::handle object, const Name& name, const Array& high);

// array_of for running means of the state: float64 or float32, C-contiguous, to be written.
Array state_of(py::handle object, const Name& name);

void require_shape(const Array& array, const Name& name, int ndim, const std::ptrdiff_t* shape);

// Whether two elements may share a byte: false only if every axis steps over all that the axes with
// smaller strides span.
bool may_overlap_itself(const Array& array);

// First and one past the last byte.
std::pair<const char*, const char*> extent(const Array& array);

// Throws ValueError if any byte belongs to both. `a`, `b` are the arrays that were made from them.
void require_disjoint(py::handle a_object, const Array& a, const Name& a_name, py::handle b_object,
                      const Array& b, const Name& b_name);

// The same for arrays whose extents cross.
void require_no_shared_byte(py::handle a_object, const Name& a_name, py::handle b_object,
                            const Name& b_name);

std::string shape_text(int ndim, const std::ptrdiff_t* shape);

}  // namespace adafactor
