// In which order the kernels come to the rows of a matrix. No function here: every instruction
// set's kernels include it.
#pragma once

namespace adafactor {

// Four rows side by side are four short streams from memory, and the rows that come next are
// fetched while these are in cache. One row after the other is one long stream. Which is faster is
// a property of the machine, and of whether the rows are in its caches. Each row's numbers are
// added up by themselves, in their order, so no bit of a result depends on it.
enum class Walk { side_by_side, one_by_one };

}  // namespace adafactor
