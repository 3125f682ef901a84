// How a number lies in memory. No function here: every instruction set's kernels include it.
#pragma once

namespace adafactor {

// `split`: the upper half of a float32, a bfloat16, whose lower half lies elsewhere. `none`: there
// is no such array.
enum class Format { none, float32, float64, bfloat16, float16, split };

}  // namespace adafactor
