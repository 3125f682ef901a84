// Which part of a tensor this process has, where the others have the rest: numbers only, alike in
// meaning on all processes ("ranks"). A sharded step (sharded_step.hpp) goes by them.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "adafactor.hpp"

namespace adafactor {

// How a tensor is cut, the same on all ranks. It decides what is exchanged.
enum class Layout {
    rows,      // each rank has whole rows, of every matrix
    cols,      // each rank has whole columns, of every matrix
    batch,     // each rank has whole matrices, perhaps all of them or none
    grid,      // each rank has a box, whatever the others have
    flat,      // each rank has a range of the elements in C order
    elements,  // the tensor is not factored: a box, or a range of the elements
};

// Throws std::invalid_argument for another name.
Layout layout_of(const std::string& name);

// A rectangle of some matrices, as this rank has it.
struct Box {
    std::size_t n_rows, n_cols;         // of a whole matrix
    std::size_t row, col;               // where the box begins in it
    std::vector<std::size_t> matrices;  // which of the whole tensor's each of these is
    bool owns_rows, owns_cols;          // has whole rows, or columns, and measures by them

    // Of flat parts, (matrices, rows, cols), and where the box begins in param and in the state.
    std::ptrdiff_t shape[3] = {0, 0, 0};
    std::size_t element = 0, row_line = 0, col_line = 0;
};

// A run of this rank's lines of the state whose sums of squares other ranks have parts of: all
// ranks of the group have the same lines, in the same order.
struct SharedLines {
    bool are_rows;
    int group;  // of ranks, by this rank's own numbers: 0 is all
    std::size_t begin, end;
};

struct Part {
    std::vector<std::ptrdiff_t> shape;  // of the whole tensor
    std::vector<std::ptrdiff_t> start;  // of the box in it, or {the first element} of a range
    Layout layout;
    bool speaks;  // adds its numbers to those of others: one of each set of replicas does
    // Of boxes of grids, and of ranges: which lines are not this rank's alone. Without it all ranks
    // exchange all lines.
    std::optional<std::vector<SharedLines>> shared;

    // What follows is filled by place().
    std::size_t n_matrices = 1, n_rows = 1, n_cols = 1;  // of the whole tensor, if factored
    bool has_a_say = true;   // on the gradient: has elements, or no rank has
    std::vector<Box> boxes;  // of this rank; none without elements, several if flat
    std::size_t n_row_lines = 0, n_col_lines = 0;  // of the state, if factored

    bool is_range() const { return start.size() == 1 && shape.size() != 1; }
    double n_elements() const;
    // The groups of ranks that this part has numbers of, all ranks included.
    std::size_t n_groups() const;

    // Once, for the local param's shape; axes are those of the whole tensor, -1 if not factored.
    // Throws std::invalid_argument if the part is not what its layout says.
    void place(const std::vector<std::ptrdiff_t>& local, int row_axis, int col_axis);

    // How many local elements, in C order, are neighbours in the whole tensor too.
    std::size_t run_of(const Array& local) const;

    // The index in the whole tensor, in C order, of the local element with this one.
    std::ptrdiff_t index_of(std::ptrdiff_t local_index, const Array& local) const;

private:
    void place_box(const std::vector<std::ptrdiff_t>& local, int row_axis, int col_axis);
    void place_range(std::size_t n);
    void require_lines() const;
};

}  // namespace adafactor
