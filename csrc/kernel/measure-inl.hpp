// Statistics of grad, which every block is read twice for: once for the sums of squares that make
// its own axis's running means final, and once more, from cache, for the sums weighted by them.

// Finishes n running means of the owned axis, whose lines have `length` elements, and their weights
// 1 / running mean; a line of zeros adds nothing to either sum, whatever its running mean. Returns
// whether Acc holds the weights, and their products with the squares can be trusted.
template <class Acc>
ADAFACTOR_INLINE bool finish_means(const Statistics& out, std::size_t first, std::size_t n,
                                   std::size_t length, Acc* weight) {
    const RunningMean<Doubles> running_mean(out.moment);
    const Doubles eps_means = broadcast(out.moment.eps_means);
    const Doubles scale = broadcast(out.moment.scale), count = broadcast(double(length));
    const Doubles zero = broadcast(0.0), one = broadcast(1.0);
    Doubles wrong = zero;
    const auto finish = [&](std::size_t, auto load_group,
                            auto store_group) __attribute__((always_inline)) {
        const Doubles sum_sq = load_group(out.own_sum_sq + first, 0);
        const Doubles old = load_group(out.own_old + first, 1);
        const Doubles now = running_mean(old, sum_sq * scale / count);
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
// The two accumulators are padded to whole groups of lanes. These rows are in cache; if `fetches`,
// the ones to be measured next, `next_rows` bytes on, are fetched meanwhile, so that memory does
// not stand idle.
template <class Acc, std::size_t R, class G, bool fetches>
ADAFACTOR_INLINE void accumulate_rows(const Block& grad, std::size_t i, const Acc* weight,
                                      std::ptrdiff_t next_rows, Acc* cross_sq,
                                      Acc* cross_weighted) {
    const std::size_t cols = grad.cols;
    Row<G> run[R];
    rows_of(grad, i, run);
    Lanes<Acc> w[R];
    for (std::size_t r = 0; r < R; ++r) w[r] = broadcast(weight[r]);
    const auto add = [&](std::size_t j, auto read_row) __attribute__((always_inline)) {
        Lanes<Acc> sq = load<Acc>(cross_sq + j), weighted = load<Acc>(cross_weighted + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = read_row(run[r]);
            if constexpr (fetches)
                __builtin_prefetch(run[r].template at<const char>(j) + next_rows);
            const Lanes<Acc> g_sq = g * g;
            sq = sq + g_sq;
            weighted = weighted + g_sq * w[r];
        }
        store(cross_sq + j, sq);
        store(cross_weighted + j, weighted);
    };
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>)
        add(j, [j](const Row<G>& row) __attribute__((always_inline)) { return read<Acc>(row, j); });
    if (j < cols)
        add(j, [j, n = cols - j](const Row<G>& row)
                   __attribute__((always_inline)) { return read_first<Acc>(row, j, n); });
}

// Whether float was right for the sums over a panel's columns, of which some cannot be trusted: it
// is if those are columns of zeros. A column whose squares underflow is none, though its sum is
// zero.
template <class G>
[[gnu::noinline]] bool untrusted_are_zeros(const Block& grad, const float* cross_sq,
                                           const float* cross_weighted) {
    constexpr std::size_t width = kLanes<float>;
    const Lanes<float> large = broadcast(0x1p126f);
    for (std::size_t j = 0; j < grad.cols; j += width) {
        const std::size_t n = grad.cols - j < width ? grad.cols - j : width;
        bool any_zero = false;
        for (std::size_t c = j; c < j + n; ++c) {
            any_zero = any_zero || cross_sq[c] == 0;
            if (cross_sq[c] != 0 && !(is_trusted(double(cross_sq[c]), grad.rows) &&
                                      is_trusted(double(cross_weighted[c]), grad.rows)))
                return false;
        }
        if (!any_zero) continue;
        Lanes<float> seen = broadcast(0.0f);
        for (std::size_t i = 0; i < grad.rows; ++i) {
            const Row<G> row = row_of<G>(grad, i);
            const Lanes<float> x =
                (n == width ? read<float>(row, j) : read_first<float>(row, j, n)) * large;
            seen = seen + x * x;
        }
        alignas(64) float lane[width];
        store(lane, seen);
        for (std::size_t c = 0; c < n; ++c)
            if (cross_sq[j + c] == 0 && lane[c] != 0) return false;
    }
    return true;
}

// Whether Acc is right for the sums over a panel's columns.
template <class G, class Acc>
ADAFACTOR_INLINE bool are_right_across(const Block& grad, const Acc* cross_sq,
                                       const Acc* cross_weighted) {
    if constexpr (sizeof(Acc) == sizeof(double)) {
        return true;
    } else {
        constexpr std::size_t width = kLanes<double>;
        Doubles count = broadcast(0.0);
        std::size_t j = 0;
        for (; j + width <= grad.cols; j += width)
            count = count + untrusted<Acc>(load<double>(cross_sq + j), grad.rows) +
                    untrusted<Acc>(load<double>(cross_weighted + j), grad.rows);
        bool right = sum_lanes(count) == 0;
        for (; j < grad.cols; ++j)
            right = right && is_trusted(double(cross_sq[j]), grad.rows) &&
                    is_trusted(double(cross_weighted[j]), grad.rows);
        return right || untrusted_are_zeros<G>(grad, cross_sq, cross_weighted);
    }
}

// How measure walks rows: so many at once in the second pass over a batch, which fetches the next
// batch if `fetches`. A batch has so many bytes of grad, whose first pass is made, and means
// finished, before their second pass: they stay in the inner caches meanwhile, and as many rows as
// possible are divided at once.
template <Walk walk>
struct MeasureWalk;
template <>
struct MeasureWalk<Walk::side_by_side> {
    static constexpr std::size_t rows = 4, batch_bytes = 16384;
    static constexpr bool fetches = true;
};
template <>
struct MeasureWalk<Walk::one_by_one> {
    static constexpr std::size_t rows = 8, batch_bytes = 32768;
    static constexpr bool fetches = false;
};

template <class Acc>
ADAFACTOR_INLINE std::size_t padded(std::size_t n) {
    return (n + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
}

template <class Acc, class G, class Walk>
bool measure_panel_rows(const Block& grad, const Statistics& out, Acc* scratch) {
    constexpr std::size_t R = Walk::rows;
    Acc* cross_sq = scratch;
    Acc* cross_weighted = scratch + padded<Acc>(grad.cols);
    for (std::size_t j = 0; j < 2 * padded<Acc>(grad.cols); ++j) scratch[j] = 0;
    const std::size_t fitting = Walk::batch_bytes / sizeof(G) / grad.cols / R * R;
    const std::size_t batch = fitting < R ? R : fitting < kPanelRows ? fitting : kPanelRows;
    const std::ptrdiff_t next_batch = std::ptrdiff_t(batch) * grad.stride;
    for (std::size_t begin = 0; begin < grad.rows; begin += batch) {
        const std::size_t end = begin + batch < grad.rows ? begin + batch : grad.rows;
        if (!sum_squares_of_rows<Acc, G>(grad, begin, end, out.own_sum_sq + begin)) return false;
        Acc weight[kPanelRows];
        if (!finish_means(out, begin, end - begin, grad.cols, weight)) return false;
        std::size_t i = begin;
        for (; i + R <= end; i += R)
            accumulate_rows<Acc, R, G, Walk::fetches>(grad, i, weight + (i - begin), next_batch,
                                                      cross_sq, cross_weighted);
        for (; i < end; ++i)
            accumulate_rows<Acc, 1, G, false>(grad, i, weight + (i - begin), next_batch, cross_sq,
                                              cross_weighted);
    }
    if (!are_right_across<G>(grad, cross_sq, cross_weighted)) return false;
    for (std::size_t j = 0; j < grad.cols; ++j) {
        out.cross_sum_sq[j] += double(cross_sq[j]);
        out.cross_weighted[j] += double(cross_weighted[j]);
    }
    return true;
}

void measure_rows(const Block& grad, const Statistics& out, void* scratch) {
    with_grad_type(grad.format, [&](auto type) {
        using G = decltype(type);
        const auto measure_as = [&](auto walk) {
            using Walk = decltype(walk);
            if (sizeof(G) < sizeof(double) && !out.wide &&
                measure_panel_rows<FloatOf<G>, G, Walk>(grad, out,
                                                        static_cast<FloatOf<G>*>(scratch)))
                return;
            measure_panel_rows<double, G, Walk>(grad, out, static_cast<double*>(scratch));
        };
        if (grad.walk == Walk::side_by_side)
            measure_as(MeasureWalk<Walk::side_by_side>());
        else
            measure_as(MeasureWalk<Walk::one_by_one>());
    });
}

// panel_sq[j] += grad[r,j]^2, over R rows; padded to whole groups of lanes.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE void add_squares_of_rows(const Row<G> (&run)[R], std::size_t cols, Acc* panel_sq) {
    std::size_t j = 0;
    for (; j + kLanes<Acc> <= cols; j += kLanes<Acc>) {
        Lanes<Acc> sq = load<Acc>(panel_sq + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = read<Acc>(run[r], j);
            sq = sq + g * g;
        }
        store(panel_sq + j, sq);
    }
    if (j < cols) {
        Lanes<Acc> sq = load<Acc>(panel_sq + j);
        for (std::size_t r = 0; r < R; ++r) {
            const Lanes<Acc> g = read_first<Acc>(run[r], j, cols - j);
            sq = sq + g * g;
        }
        store(panel_sq + j, sq);
    }
}

// Column sums of squares of the whole block in fp64, from panels of Acc.
template <class Acc, class G>
void sum_squares_of_columns(const Block& grad, double* sum_sq, Acc* panel_sq) {
    const std::size_t rows = grad.rows, cols = grad.cols;
    for (std::size_t j = 0; j < cols; ++j) sum_sq[j] = 0;
    for (std::size_t begin = 0; begin < rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < rows ? begin + kPanelRows : rows;
        for (std::size_t j = 0; j < padded<Acc>(cols); ++j) panel_sq[j] = 0;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4) {
            Row<G> run[4];
            rows_of(grad, i, run);
            add_squares_of_rows<Acc>(run, cols, panel_sq);
        }
        for (; i < end; ++i) {
            Row<G> run[1];
            rows_of(grad, i, run);
            add_squares_of_rows<Acc>(run, cols, panel_sq);
        }
        for (std::size_t j = 0; j < cols; ++j) sum_sq[j] += double(panel_sq[j]);
    }
}

// Whether a row's sums are right that Acc cannot be trusted with: it is one of zeros.
template <class G>
[[gnu::noinline]] bool is_row_of_zeros(const Block& grad, std::size_t i) {
    double sum_sq;
    sum_squares_of_some_rows<double, 1, G>(grad, i, &sum_sq);
    return sum_sq == 0;
}

// Adds up R rows of a tile: grad^2 and grad^2 weight. Returns how many were added: those before the
// first whose sums Acc cannot be trusted with.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE std::size_t sum_some_rows(const Block& grad, std::size_t i, const Acc* weight,
                                           const Statistics& out) {
    const std::size_t cols = grad.cols;
    Row<G> run[R];
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
        for (std::size_t r = 0; r < R; ++r) add(r, read<Acc>(run[r], j), w);
    }
    if (j < cols) {
        const Lanes<Acc> w = load<Acc>(weight + j);
        for (std::size_t r = 0; r < R; ++r) add(r, read_first<Acc>(run[r], j, cols - j), w);
    }
    for (std::size_t r = 0; r < R; ++r) {
        const auto row_sq = double(sum_lanes(sq[r]));
        const auto row_weighted = double(sum_lanes(weighted[r]));
        if constexpr (sizeof(Acc) < sizeof(double)) {
            const bool trusted = is_trusted(row_sq, cols) && is_trusted(row_weighted, cols);
            if (!trusted && !(row_sq == 0 && is_row_of_zeros<G>(grad, i + r))) return r;
        }
        out.cross_sum_sq[i + r] += row_sq;
        out.cross_weighted[i + r] += row_weighted;
    }
    return R;
}

// Rows whose two sums fit the registers.
constexpr std::size_t kSummedRows = kParts == 1 ? 4 : 2;

// Adds up the rows of a tile from the i-th on, by finished means; returns the first that was not
// added.
template <class Acc, class G>
ADAFACTOR_INLINE std::size_t sum_rows_from(const Block& grad, std::size_t i, Acc* weight,
                                           const Statistics& out) {
    for (std::size_t j = grad.cols; j < padded<Acc>(grad.cols); ++j) weight[j] = 0;
    while (i < grad.rows) {
        const bool several = i + kSummedRows <= grad.rows;
        const std::size_t n = several ? sum_some_rows<Acc, kSummedRows, G>(grad, i, weight, out)
                                      : sum_some_rows<Acc, 1, G>(grad, i, weight, out);
        i += n;
        if (n < (several ? kSummedRows : 1)) break;
    }
    return i;
}

template <class Acc, class G>
bool measure_tile_cols(const Block& grad, const Statistics& out, Acc* scratch) {
    sum_squares_of_columns<Acc, G>(grad, out.own_sum_sq, scratch);
    if (!all_trusted<Acc>(out.own_sum_sq, grad.cols, grad.rows)) {
        // Columns of zeros are right as they are: only others need a wider type.
        sum_squares_of_columns<double, G>(grad, out.own_sum_sq, reinterpret_cast<double*>(scratch));
        for (std::size_t j = 0; j < grad.cols; ++j)
            if (out.own_sum_sq[j] != 0 && !all_trusted<Acc>(out.own_sum_sq + j, 1, grad.rows))
                return false;
    }
    Acc* weight = scratch;
    if (!finish_means(out, 0, grad.cols, grad.rows, weight)) return false;
    const std::size_t added = sum_rows_from<Acc, G>(grad, 0, weight, out);
    if constexpr (sizeof(Acc) < sizeof(double)) {
        if (added == grad.rows) return true;
        auto* const wide = reinterpret_cast<double*>(scratch);
        finish_means(out, 0, grad.cols, grad.rows, wide);
        sum_rows_from<double, G>(grad, added, wide, out);
    }
    return true;
}

void measure_cols(const Block& grad, const Statistics& out, void* scratch) {
    with_grad_type(grad.format, [&](auto type) {
        using G = decltype(type);
        if (sizeof(G) < sizeof(double) && !out.wide &&
            measure_tile_cols<FloatOf<G>, G>(grad, out, static_cast<FloatOf<G>*>(scratch)))
            return;
        measure_tile_cols<double, G>(grad, out, static_cast<double*>(scratch));
    });
}
