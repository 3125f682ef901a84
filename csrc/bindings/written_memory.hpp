// The memory that the steps of an optimizer write to: no byte of it belongs to two arrays.
#pragma once

#include <cstddef>
#include <vector>

#include "bindings/buffers.hpp"

namespace adafactor {

class WrittenMemory {
public:
    // An array's bytes, from the first to one past the last. Borrows the array and its name.
    struct Piece {
        Piece(py::handle holder, const Array& array, const Name& its_name);

        py::handle object;
        Name name;
        const char *low, *high;
        std::size_t position = 0;  // in the order in which pieces were added
    };

    // Throws ValueError, and adds none, if two share a byte: the later one of `name` overlaps the
    // earlier. n log n where extents do not cross.
    void add(std::vector<Piece> pieces);

    // Throws ValueError if the array shares a byte with any piece.
    void require_disjoint(py::handle object, const Array& array, const Name& name) const;

private:
    // Pieces whose extents cross, directly or through others: those from `first` up to the first of
    // the next cluster. Clusters have no byte in common.
    struct Cluster {
        const char *low, *high;
        std::size_t first;
    };

    std::vector<Piece> pieces_;      // sorted by `low`
    std::vector<Cluster> clusters_;  // likewise
};

}  // namespace adafactor
