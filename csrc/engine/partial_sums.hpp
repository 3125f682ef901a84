// What measure writes of a factored tensor, and resolve reads: the seam between the two, at which
// sums of other parts of the same tensor can be added. (Those of param^2 are in param_squares.hpp.)
#pragma once

#include <cstddef>

#include "engine/geometry.hpp"
#include "engine/scratch.hpp"

namespace adafactor {

struct PartialSums {
    // Of grad^2 over each line of either axis, (n_matrices, rows) and (n_matrices, cols). measure
    // fills the owned axis, whose lines a block spans; resolve the crossed one, from the groups'
    // sums.
    double *row_sq, *col_sq;
    // Of the crossed axis's lines by groups of blocks, (n_matrices, n_groups, n_cross): grad^2, and
    // grad^2 / (new running mean of the owned line + eps_means).
    double *group_sq, *group_weighted;
    std::size_t n_groups;  // the partition's, or 1 where they have been added up

    PartialSums() = default;
    PartialSums(const Geometry& geometry, std::size_t groups, Scratch& scratch)
        : row_sq(scratch.take<double>(geometry.n_matrices * geometry.rows)),
          col_sq(scratch.take<double>(geometry.n_matrices * geometry.cols)),
          n_groups(groups) {
        const std::size_t n = geometry.n_matrices * n_groups * geometry.partition.n_cross;
        group_sq = scratch.take<double>(n);
        group_weighted = scratch.take<double>(n);
    }
};

}  // namespace adafactor
