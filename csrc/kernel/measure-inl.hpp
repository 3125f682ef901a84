// The sweep that reads: sums of squares of param, and the second moment of grad.
//
// fp32 data are summed in fp32 over at most 64 elements a lane or 64 rows a column, and in fp64
// beyond. The fp32 sum is trusted while no square overflows and none that underflows could matter;
// a panel with a row outside that range is summed again in fp64, whose range no fp32 square leaves.

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

template <class Acc>
ADAFACTOR_INLINE bool all_trusted(const double* sum_sq, std::size_t n_sums, std::size_t n) {
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
ADAFACTOR_INLINE void sum_squares_of_runs(const T* (&run)[R], std::size_t n, double (&sum_sq)[R]) {
    for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    for (std::size_t begin = 0; begin < n; begin += kChunkOf<Acc>) {
        const std::size_t end = begin + kChunkOf<Acc> < n ? begin + kChunkOf<Acc> : n;
        Lanes<Acc> sum[R];
        for (std::size_t r = 0; r < R; ++r) sum[r] = broadcast(Acc(0));
        std::size_t j = begin;
        for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = load<Acc>(run[r] + j);
                sum[r] = sum[r] + x * x;
            }
        }
        if (j < end) {
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = load_first<Acc>(run[r] + j, end - j);
                sum[r] = sum[r] + x * x;
            }
        }
        add_sums_of_lanes(sum, sum_sq);
    }
}

template <class Acc, std::size_t R, class T>
ADAFACTOR_INLINE void sum_squares_of_some_rows(const Block<const T>& block, std::size_t i,
                                               double* sum_sq) {
    const T* run[R];
    rows_of(block, i, run);
    double sums[R];
    sum_squares_of_runs<Acc>(run, block.cols, sums);
    for (std::size_t r = 0; r < R; ++r) sum_sq[r] = sums[r];
}

// Of the sums of squares of rows [begin, end), added up in Acc, those that it cannot be trusted
// with are added up again in fp64. Returns whether Acc was right for all: zeros are right in any
// type.
template <class Acc, class T>
ADAFACTOR_INLINE bool correct_untrusted(const Block<const T>& block, std::size_t begin,
                                        std::size_t end, double* sum_sq) {
    if (all_trusted<Acc>(sum_sq, end - begin, block.cols)) return true;
    bool right = true;
    for (std::size_t i = begin; i < end; ++i) {
        double& sum = sum_sq[i - begin];
        if (all_trusted<Acc>(&sum, 1, block.cols)) continue;
        sum_squares_of_some_rows<double, 1>(block, i, &sum);
        right = right && sum == 0;
    }
    return right;
}

template <class Acc, class T>
ADAFACTOR_INLINE bool sum_squares_of_rows(const Block<const T>& block, std::size_t begin,
                                          std::size_t end, double* sum_sq) {
    std::size_t i = begin;
    for (; i + 4 <= end; i += 4) sum_squares_of_some_rows<Acc, 4>(block, i, sum_sq + (i - begin));
    for (; i < end; ++i) sum_squares_of_some_rows<Acc, 1>(block, i, sum_sq + (i - begin));
    return correct_untrusted<Acc>(block, begin, end, sum_sq);
}

// Adds four rows' sums before it adds them to the others': a shorter chain.
ADAFACTOR_INLINE double sum_by_fours(const double* x, std::size_t n) {
    double total = 0;
    std::size_t k = 0;
    for (; k + 4 <= n; k += 4) total += (x[k] + x[k + 1]) + (x[k + 2] + x[k + 3]);
    for (; k < n; ++k) total += x[k];
    return total;
}

// fp32 where param is narrower than float64, which is summed in fp64.
template <class P>
double sum_squares(const Block<const P>& param) {
    double total = 0, sum_sq[kPanelRows];
    for (std::size_t begin = 0; begin < param.rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < param.rows ? begin + kPanelRows : param.rows;
        sum_squares_of_rows<SumType<P>>(param, begin, end, sum_sq);
        total += sum_by_fours(sum_sq, end - begin);
    }
    return total;
}

// Finishes n running means of the owned axis, whose lines have `length` elements, and their weights
// 1 / running mean; a line of zeros adds nothing to either sum, whatever its running mean. Returns
// whether Acc holds the weights, and their products with the squares can be trusted.
template <class Acc>
ADAFACTOR_INLINE bool finish_means(const Statistics& out, std::size_t first, std::size_t n,
                                   std::size_t length, Acc* weight) {
    const Doubles beta2 = broadcast(out.moment.beta2), rest = broadcast(1 - out.moment.beta2);
    const Doubles eps = broadcast(out.moment.eps), eps_means = broadcast(out.moment.eps_means);
    const Doubles scale = broadcast(out.moment.scale), count = broadcast(double(length));
    const Doubles zero = broadcast(0.0), one = broadcast(1.0);
    Doubles wrong = zero;
    const auto finish = [&](std::size_t, auto load_group,
                            auto store_group) __attribute__((always_inline)) {
        const Doubles sum_sq = load_group(out.own_sum_sq + first, 0);
        const Doubles old = load_group(out.own_old + first, 1);
        const Doubles now = beta2 * old + rest * (sum_sq * scale / count + eps);
        const Doubles w = where_zero(sum_sq, zero, one / (now + eps_means));
        store_group(out.own_new + first, now);
        store_group(weight, w);
        if constexpr (sizeof(Acc) < sizeof(double))
            wrong =
                wrong + where_zero(sum_sq, zero,
                                   outside(w, 1e-36, 1e36) + untrusted<Acc>(sum_sq * w, length));
    };
    for_groups(n, finish);
    return sum_lanes(wrong) == 0;
}

// cross_sq[j] += grad[r,j]^2 and cross_weighted[j] += grad[r,j]^2 weight[r], over R rows.
// The two accumulators are padded to whole groups of lanes. These rows are in cache; the ones to be
// measured next, `next_rows` bytes on, are fetched meanwhile, so that memory does not stand idle.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE void accumulate_rows(const Block<const G>& grad, std::size_t i, const Acc* weight,
                                      std::ptrdiff_t next_rows, Acc* cross_sq,
                                      Acc* cross_weighted) {
    const std::size_t cols = grad.cols;
    const G* run[R];
    rows_of(grad, i, run);
    Lanes<Acc> w[R];
    for (std::size_t r = 0; r < R; ++r) w[r] = broadcast(weight[r]);
    auto group = [&](std::size_t j, auto load_group) {
        Lanes<Acc> sq = load<Acc>(cross_sq + j), weighted = load<Acc>(cross_weighted + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = load_group(run[r] + j);
            __builtin_prefetch(reinterpret_cast<const char*>(run[r] + j) + next_rows);
            const Lanes<Acc> g_sq = g * g;
            sq = sq + g_sq;
            weighted = weighted + g_sq * w[r];
        }
        store(cross_sq + j, sq);
        store(cross_weighted + j, weighted);
    };
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>)
        group(j, [](const G* g) __attribute__((always_inline)) { return load<Acc>(g); });
    if (j < cols)
        group(j, [n = cols - j](const G* g)
                     __attribute__((always_inline)) { return load_first<Acc>(g, n); });
}

// Bytes of grad whose first pass is made, and means finished, before their second pass: they stay
// in the innermost cache meanwhile, and as many rows as possible are divided at once.
constexpr std::size_t kBatchBytes = 16384;

template <class Acc>
ADAFACTOR_INLINE std::size_t padded(std::size_t n) {
    return (n + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
}

template <class Acc, class G>
bool measure_panel_rows(const Block<const G>& grad, const Statistics& out, Acc* scratch) {
    Acc* cross_sq = scratch;
    Acc* cross_weighted = scratch + padded<Acc>(grad.cols);
    for (std::size_t j = 0; j < 2 * padded<Acc>(grad.cols); ++j) scratch[j] = 0;
    const std::size_t fitting = kBatchBytes / sizeof(G) / grad.cols / 4 * 4;
    const std::size_t batch = fitting < 4 ? 4 : fitting < kPanelRows ? fitting : kPanelRows;
    const std::ptrdiff_t next_batch = std::ptrdiff_t(batch) * grad.stride;
    for (std::size_t begin = 0; begin < grad.rows; begin += batch) {
        const std::size_t end = begin + batch < grad.rows ? begin + batch : grad.rows;
        if (!sum_squares_of_rows<Acc>(grad, begin, end, out.own_sum_sq + begin)) return false;
        Acc weight[kPanelRows];
        if (!finish_means(out, begin, end - begin, grad.cols, weight)) return false;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4)
            accumulate_rows<Acc, 4>(grad, i, weight + (i - begin), next_batch, cross_sq,
                                    cross_weighted);
        for (; i < end; ++i)
            accumulate_rows<Acc, 1>(grad, i, weight + (i - begin), next_batch, cross_sq,
                                    cross_weighted);
    }
    for (std::size_t j = 0; j < grad.cols; ++j) {
        out.cross_sum_sq[j] += double(cross_sq[j]);
        out.cross_weighted[j] += double(cross_weighted[j]);
    }
    return true;
}

// grad: at most kPanelRows whole rows. scratch: 2 * cols doubles, padded.
template <class G>
void measure_rows(const Block<const G>& grad, const Statistics& out, void* scratch) {
    using Sum = SumType<G>;
    if (sizeof(G) < sizeof(double) && !out.wide &&
        measure_panel_rows<Sum>(grad, out, static_cast<Sum*>(scratch)))
        return;
    measure_panel_rows<double>(grad, out, static_cast<double*>(scratch));
}

// panel_sq[j] += grad[r,j]^2, over R rows; padded to whole groups of lanes.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE void add_squares_of_rows(const G* (&run)[R], std::size_t cols, Acc* panel_sq) {
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>) {
        Lanes<Acc> sq = load<Acc>(panel_sq + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = load<Acc>(run[r] + j);
            sq = sq + g * g;
        }
        store(panel_sq + j, sq);
    }
    if (j < cols) {
        Lanes<Acc> sq = load<Acc>(panel_sq + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = load_first<Acc>(run[r] + j, cols - j);
            sq = sq + g * g;
        }
        store(panel_sq + j, sq);
    }
}

// Column sums of squares of the whole block in fp64, from panels of Acc.
template <class Acc, class G>
ADAFACTOR_INLINE void sum_squares_of_columns(const Block<const G>& grad, double* sum_sq,
                                             Acc* panel_sq) {
    const std::size_t rows = grad.rows, cols = grad.cols;
    for (std::size_t j = 0; j < cols; ++j) sum_sq[j] = 0;
    for (std::size_t begin = 0; begin < rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < rows ? begin + kPanelRows : rows;
        for (std::size_t j = 0; j < padded<Acc>(cols); ++j) panel_sq[j] = 0;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4) {
            const G* run[4];
            rows_of(grad, i, run);
            add_squares_of_rows<Acc>(run, cols, panel_sq);
        }
        for (; i < end; ++i) {
            const G* run[1] = {row_of(grad, i)};
            add_squares_of_rows<Acc>(run, cols, panel_sq);
        }
        for (std::size_t j = 0; j < cols; ++j) sum_sq[j] += double(panel_sq[j]);
    }
}

// Adds up R rows of a tile: grad^2 and grad^2 weight.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE void sum_some_rows(const Block<const G>& grad, std::size_t i, const Acc* weight,
                                    const Statistics& out) {
    const std::size_t cols = grad.cols;
    const G* run[R];
    rows_of(grad, i, run);
    Lanes<Acc> sq[R], weighted[R];
    for (std::size_t r = 0; r < R; ++r) sq[r] = weighted[r] = broadcast(Acc(0));
    const auto add = [&](std::size_t r, const Lanes<Acc>& g, const Lanes<Acc>& w)
                         __attribute__((always_inline)) {
                             const Lanes<Acc> g_sq = g * g;
                             sq[r] = sq[r] + g_sq;
                             weighted[r] = weighted[r] + g_sq * w;
                         };
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>) {
        const Lanes<Acc> w = load<Acc>(weight + j);
        for (std::size_t r = 0; r < R; ++r) add(r, load<Acc>(run[r] + j), w);
    }
    if (j < cols) {
        const Lanes<Acc> w = load<Acc>(weight + j);
        for (std::size_t r = 0; r < R; ++r) add(r, load_first<Acc>(run[r] + j, cols - j), w);
    }
    for (std::size_t r = 0; r < R; ++r) {
        out.cross_sum_sq[i + r] += double(sum_lanes(sq[r]));
        out.cross_weighted[i + r] += double(sum_lanes(weighted[r]));
    }
}

// Rows whose two sums fit the registers.
constexpr std::size_t kSummedRows = kParts == 1 ? 4 : 2;

template <class Acc, class G>
bool measure_tile_cols(const Block<const G>& grad, const Statistics& out, Acc* scratch) {
    sum_squares_of_columns<Acc>(grad, out.own_sum_sq, scratch);
    if (!all_trusted<Acc>(out.own_sum_sq, grad.cols, grad.rows)) {
        // Columns of zeros are right as they are: only others need a wider type.
        sum_squares_of_columns<double>(grad, out.own_sum_sq, reinterpret_cast<double*>(scratch));
        for (std::size_t j = 0; j < grad.cols; ++j)
            if (out.own_sum_sq[j] != 0 && !all_trusted<Acc>(out.own_sum_sq + j, 1, grad.rows))
                return false;
    }
    Acc* weight = scratch;
    if (!finish_means(out, 0, grad.cols, grad.rows, weight)) return false;
    for (std::size_t j = grad.cols; j < padded<Acc>(grad.cols); ++j) weight[j] = 0;
    std::size_t i = 0;
    for (; i + kSummedRows <= grad.rows; i += kSummedRows)
        sum_some_rows<Acc, kSummedRows>(grad, i, weight, out);
    for (; i < grad.rows; ++i) sum_some_rows<Acc, 1>(grad, i, weight, out);
    return true;
}

// grad: whole columns, at most kChunk of them. scratch: cols doubles, padded.
template <class G>
void measure_cols(const Block<const G>& grad, const Statistics& out, void* scratch) {
    if (sizeof(G) < sizeof(double) && !out.wide &&
        measure_tile_cols<G>(grad, out, static_cast<G*>(scratch)))
        return;
    measure_tile_cols<double>(grad, out, static_cast<double*>(scratch));
}
