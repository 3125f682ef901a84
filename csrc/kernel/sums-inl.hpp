// Sums of squares of rows, as exact as fp64 would have them and as fast as fp32 is.
//
// What is narrower than float64 is summed in fp32 over at most 64 elements a lane or 64 rows a
// column, and in fp64 beyond. The fp32 sum is trusted while no square overflows and none that
// underflows could matter; a panel with a row outside that range is summed again in fp64, whose
// range no fp32 square leaves.

// Between these, what underflowing squares lose (each at most 2^-150) is under 1e-11 of a mean, and
// kChunk of the sums still add up without overflow.
constexpr double kTrustedMin = 1e-34;  // of a mean square
constexpr double kTrustedMax = 1e35;   // of a sum of squares

// Counts the sums of squares of n elements each that Acc cannot be trusted with.
template <class Acc>
ADAFACTOR_INLINE Doubles untrusted(const Doubles& sum_sq, std::size_t n) {
    if constexpr (sizeof(Acc) == sizeof(double)) return broadcast(0.0);
    return outside(sum_sq, kTrustedMin * double(n), kTrustedMax);
}

// Likewise of one sum of n squares.
ADAFACTOR_INLINE bool is_trusted(double sum_sq, std::size_t n) {
    return sum_sq >= kTrustedMin * double(n) && sum_sq <= kTrustedMax;
}

template <class Acc>
ADAFACTOR_INLINE bool all_trusted(const double* sum_sq, std::size_t n_sums, std::size_t n) {
    if constexpr (sizeof(Acc) == sizeof(double)) return true;
    Doubles count = broadcast(0.0);
    for_groups(n_sums, [&](std::size_t, auto load_group, auto) __attribute__((always_inline)) {
        count = count + untrusted<Acc>(load_group(sum_sq, 1), n);
    });
    return sum_lanes(count) == 0;
}

// Elements whose sum is widened together: 64 a lane.
template <class Acc>
constexpr std::size_t kChunkOf = kChunk / (sizeof(Acc) / sizeof(float));

template <class Acc, std::size_t R>
ADAFACTOR_INLINE void add_sums_of_lanes(Lanes<Acc> (&x)[R], double* sum) {
    double lanes_sum[R];
    if constexpr (R == 4)
        sum_lanes(x, lanes_sum);
    else
        for (std::size_t r = 0; r < R; ++r) lanes_sum[r] = double(sum_lanes(x[r]));
    for (std::size_t r = 0; r < R; ++r) sum[r] += lanes_sum[r];
}

// Sums the squares of R runs of n elements at once: R independent chains of additions.
template <class Acc, std::size_t R, class T>
ADAFACTOR_INLINE void sum_squares_of_runs(const Row<T> (&run)[R], std::size_t n,
                                          double (&sum_sq)[R]) {
    for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    for (std::size_t begin = 0; begin < n; begin += kChunkOf<Acc>) {
        const std::size_t end = begin + kChunkOf<Acc> < n ? begin + kChunkOf<Acc> : n;
        Lanes<Acc> sum[R];
        for (std::size_t r = 0; r < R; ++r) sum[r] = broadcast(Acc(0));
        std::size_t j = begin;
        for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = read<Acc>(run[r], j);
                sum[r] = sum[r] + x * x;
            }
        }
        if (j < end) {
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = read_first<Acc>(run[r], j, end - j);
                sum[r] = sum[r] + x * x;
            }
        }
        add_sums_of_lanes(sum, sum_sq);
    }
}

template <class Acc, std::size_t R, class T>
ADAFACTOR_INLINE void sum_squares_of_some_rows(const Block& block, std::size_t i, double* sum_sq) {
    Row<T> run[R];
    rows_of(block, i, run);
    double sums[R];
    sum_squares_of_runs<Acc>(run, block.cols, sums);
    for (std::size_t r = 0; r < R; ++r) sum_sq[r] = sums[r];
}

// Bytes ahead of one long stream that memory is asked for.
constexpr std::ptrdiff_t kReadAhead = 8192;

// The distance in memory from element j of a row to those bytes: they are counted along the rows,
// one after the other, and what lies between rows is left out.
template <class T>
ADAFACTOR_INLINE std::ptrdiff_t read_ahead(const Block& block, std::size_t j) {
    const auto row = std::ptrdiff_t(block.cols * sizeof(T));
    const std::ptrdiff_t gap = block.stride - row;
    if (gap == 0) return kReadAhead;
    return kReadAhead + (std::ptrdiff_t(j * sizeof(T)) + kReadAhead) / row * gap;
}

// The lanes' sums of squares of elements [begin, end) of a run, at most kChunkOf<Acc>.
template <class Acc, class T>
ADAFACTOR_INLINE Lanes<Acc> sum_squares_of_chunk(const Row<T>& run, std::size_t begin,
                                                 std::size_t end, std::ptrdiff_t ahead) {
    Lanes<Acc> sum = broadcast(Acc(0));
    std::size_t j = begin;
#pragma GCC unroll 4
    for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
        const Lanes<Acc> x = read<Acc>(run, j);
        prefetch_ahead(run, j, ahead);
        sum = sum + x * x;
    }
    if (j < end) {
        const Lanes<Acc> x = read_first<Acc>(run, j, end - j);
        sum = sum + x * x;
    }
    return sum;
}

// Sums the squares of rows [begin, end) one row after the other. The sums of four chunks' lanes, of
// a long row or of four short ones, are folded together: by itself each would hold up the reads.
template <class Acc, class T>
ADAFACTOR_INLINE void sum_squares_one_by_one(const Block& block, std::size_t begin, std::size_t end,
                                             double* sum_sq) {
    constexpr std::size_t chunk = kChunkOf<Acc>;
    const std::size_t cols = block.cols;
    std::size_t i = begin;
    Lanes<Acc> four[4];
    double sums[4];
    if (cols <= chunk) {
        const std::ptrdiff_t ahead = read_ahead<T>(block, 0);
        for (; i + 4 <= end; i += 4) {
            for (std::size_t r = 0; r < 4; ++r)
                four[r] = sum_squares_of_chunk<Acc>(row_of<T>(block, i + r), 0, cols, ahead);
            sum_lanes(four, sums);
            for (std::size_t r = 0; r < 4; ++r) sum_sq[i + r - begin] = sums[r];
        }
    }
    for (; i < end; ++i) {
        const Row<T> run = row_of<T>(block, i);
        double sum = 0;
        std::size_t j = 0;
        for (; j + 4 * chunk <= cols; j += 4 * chunk) {
            for (std::size_t k = 0; k < 4; ++k)
                four[k] = sum_squares_of_chunk<Acc>(run, j + k * chunk, j + (k + 1) * chunk,
                                                    read_ahead<T>(block, j + k * chunk));
            sum_lanes(four, sums);
            for (std::size_t k = 0; k < 4; ++k) sum += sums[k];
        }
        for (; j < cols; j += chunk) {
            const std::size_t to = cols - j < chunk ? cols : j + chunk;
            sum +=
                double(sum_lanes(sum_squares_of_chunk<Acc>(run, j, to, read_ahead<T>(block, j))));
        }
        sum_sq[i - begin] = sum;
    }
}

// Adds up again in fp64 those sums of squares of rows [begin, end) that float, in which they were
// added up, cannot be trusted with. Returns whether float was right for all: zeros are right in any
// type.
template <class T>
[[gnu::noinline]] bool correct_untrusted(const Block& block, std::size_t begin, std::size_t end,
                                         double* sum_sq) {
    bool right = true;
    for (std::size_t i = begin; i < end; ++i) {
        double& sum = sum_sq[i - begin];
        if (all_trusted<float>(&sum, 1, block.cols)) continue;
        sum_squares_of_some_rows<double, 1, T>(block, i, &sum);
        right = right && sum == 0;
    }
    return right;
}

// Whether Acc is right for the sums of rows [begin, end), after correction.
template <class Acc, class T>
ADAFACTOR_INLINE bool are_right(const Block& block, std::size_t begin, std::size_t end,
                                double* sum_sq) {
    return all_trusted<Acc>(sum_sq, end - begin, block.cols) ||
           correct_untrusted<T>(block, begin, end, sum_sq);
}

template <class Acc, class T>
bool sum_squares_of_rows(const Block& block, std::size_t begin, std::size_t end, double* sum_sq) {
    if (block.walk == Walk::one_by_one) {
        sum_squares_one_by_one<Acc, T>(block, begin, end, sum_sq);
    } else {
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4)
            sum_squares_of_some_rows<Acc, 4, T>(block, i, sum_sq + (i - begin));
        for (; i < end; ++i) sum_squares_of_some_rows<Acc, 1, T>(block, i, sum_sq + (i - begin));
    }
    return are_right<Acc, T>(block, begin, end, sum_sq);
}

ADAFACTOR_INLINE void add_rows(const double* sum_sq, std::size_t n, LaneWords& total) {
    for_groups(n, [&](std::size_t, auto load_group, auto)
                      __attribute__((always_inline)) { total.add(load_group(sum_sq, 0)); });
}

// As sum_squares, in fp64 whatever the format.
double sum_squares_in_double(const Block& block) {
    return with_any_type(block.format, [&](auto type) {
        using T = decltype(type);
        double total = 0, sum_sq[4];
        std::size_t i = 0;
        for (; i + 4 <= block.rows; i += 4) {
            sum_squares_of_some_rows<double, 4, T>(block, i, sum_sq);
            total += (sum_sq[0] + sum_sq[1]) + (sum_sq[2] + sum_sq[3]);
        }
        for (; i < block.rows; ++i) {
            sum_squares_of_some_rows<double, 1, T>(block, i, sum_sq);
            total += sum_sq[0];
        }
        return total;
    });
}

SumWords sum_squares(const Block& block) {
    return with_any_type(block.format, [&](auto type) {
        using T = decltype(type);
        LaneWords total;
        double sum_sq[kPanelRows];
        for (std::size_t begin = 0; begin < block.rows; begin += kPanelRows) {
            const std::size_t rest = block.rows - begin;
            const std::size_t n = rest < kPanelRows ? rest : kPanelRows;
            sum_squares_of_rows<FloatOf<T>, T>(block, begin, begin + n, sum_sq);
            add_rows(sum_sq, n, total);
        }
        return total.sum();
    });
}
