// The sweep that reads: sums of squares of param, and the second moment of grad.
//
// fp32 data are summed in fp32 over at most 64 elements a lane or 64 rows a column, and in fp64
// beyond. The fp32 sum is trusted while no square overflows and none that underflows could matter;
// a panel with a row outside that range is summed again in fp64, whose range no fp32 square leaves.

// Between these, what underflowing squares lose (each at most 2^-150) is under 1e-11 of a mean, and
// kChunk of the sums still add up without overflow.
constexpr float kTrustedMin = 1e-34f;  // of a mean square
constexpr float kTrustedMax = 1e35f;   // of a sum of squares

template <class Acc>
ADAFACTOR_INLINE bool trusted(Acc sum_sq, std::size_t n) {
    if constexpr (sizeof(Acc) == sizeof(double)) return true;
    return sum_sq >= kTrustedMin * Acc(n) && sum_sq <= kTrustedMax;
}

// Sums the squares of R runs of n elements at once: R independent chains of additions.
template <class Acc, std::size_t R, class T>
ADAFACTOR_INLINE void sum_squares_of_runs(const T* (&run)[R], std::size_t n, double (&sum_sq)[R]) {
    for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    constexpr std::size_t chunk = kChunk / (sizeof(Acc) / sizeof(float));
    for (std::size_t begin = 0; begin < n; begin += chunk) {
        const std::size_t end = begin + chunk < n ? begin + chunk : n;
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
        for (std::size_t r = 0; r < R; ++r) sum_sq[r] += double(sum_lanes(sum[r]));
    }
}

// Sums the squares of R runs in Acc, and of a run that Acc cannot be trusted with in fp64. Returns
// whether Acc was right for all of them; a run of zeros is right in any type.
template <class Acc, std::size_t R, class T>
ADAFACTOR_INLINE bool sum_squares_exactly(const T* (&run)[R], std::size_t n, double (&sum_sq)[R]) {
    sum_squares_of_runs<Acc>(run, n, sum_sq);
    bool right = true;
    for (std::size_t r = 0; r < R; ++r) {
        if (trusted(Acc(sum_sq[r]), n)) continue;
        const T* one[1] = {run[r]};
        double again[1];
        sum_squares_of_runs<double>(one, n, again);
        sum_sq[r] = again[0];
        right = right && sum_sq[r] == 0;
    }
    return right;
}

template <std::size_t R, class P>
ADAFACTOR_INLINE double sum_squares_of_some_rows(const Block<const P>& param, std::size_t i) {
    const P* run[R];
    rows_of(param, i, run);
    double sum_sq[R], total = 0;
    sum_squares_exactly<P>(run, param.cols, sum_sq);
    for (double s : sum_sq) total += s;
    return total;
}

// fp32 where param is float32, fp64 where it is float64.
template <class P>
double sum_squares(const Block<const P>& param) {
    double total = 0;
    std::size_t i = 0;
    for (; i + 4 <= param.rows; i += 4) total += sum_squares_of_some_rows<4>(param, i);
    for (; i < param.rows; ++i) total += sum_squares_of_some_rows<1>(param, i);
    return total;
}

ADAFACTOR_INLINE double blend(const Statistics& s, double old, double mean_sq) {
    return s.beta2 * old + (1 - s.beta2) * (mean_sq + s.eps);
}

// 1 / running mean; a run of zeros adds nothing to either sum, whatever its running mean.
ADAFACTOR_INLINE double weight_of(double sum_sq, double running_mean) {
    return sum_sq == 0 ? 0 : 1 / running_mean;
}

// A weight that Acc holds, and whose products with the squares of a run can be trusted.
template <class Acc>
ADAFACTOR_INLINE bool trusted_weight(double weight, double sum_sq, std::size_t n) {
    if constexpr (sizeof(Acc) == sizeof(double)) return true;
    return sum_sq == 0 || (weight >= 1e-36 && weight <= 1e36 && trusted(Acc(sum_sq * weight), n));
}

// cross_sq[j] += grad[r,j]^2 and cross_weighted[j] += grad[r,j]^2 weight[r], over R rows.
// The two accumulators are padded to whole groups of lanes. These rows are in cache; the ones to be
// measured next, `next_rows` bytes on, are fetched meanwhile, so that memory does not stand idle.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE void accumulate_rows(const G* (&run)[R], const Acc (&weight)[R], std::size_t cols,
                                      std::ptrdiff_t next_rows, Acc* cross_sq,
                                      Acc* cross_weighted) {
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

// Rows i to i + R of a panel; false if their fp32 sums cannot be trusted.
template <class Acc, std::size_t R, class G>
ADAFACTOR_INLINE bool measure_some_rows(const Block<const G>& grad, const Statistics& out,
                                        std::size_t i, Acc* cross_sq, Acc* cross_weighted) {
    const G* runs[R];
    rows_of(grad, i, runs);
    double sum_sq[R];
    if (!sum_squares_exactly<Acc>(runs, grad.cols, sum_sq)) return false;
    Acc weight[R];
    for (std::size_t r = 0; r < R; ++r) {
        out.own_sum_sq[i + r] = sum_sq[r];
        out.own_new[i + r] = blend(out, out.own_old[i + r], sum_sq[r] / double(grad.cols));
        const double w = weight_of(sum_sq[r], out.own_new[i + r]);
        if (!trusted_weight<Acc>(w, sum_sq[r], grad.cols)) return false;
        weight[r] = Acc(w);
    }
    accumulate_rows<Acc>(runs, weight, grad.cols, std::ptrdiff_t(R) * grad.stride, cross_sq,
                         cross_weighted);
    return true;
}

template <class Acc>
ADAFACTOR_INLINE std::size_t padded(std::size_t n) {
    return (n + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
}

template <class Acc, class G>
bool measure_panel_rows(const Block<const G>& grad, const Statistics& out, Acc* scratch) {
    Acc* cross_sq = scratch;
    Acc* cross_weighted = scratch + padded<Acc>(grad.cols);
    for (std::size_t j = 0; j < 2 * padded<Acc>(grad.cols); ++j) scratch[j] = 0;
    std::size_t i = 0;
    for (; i + 4 <= grad.rows; i += 4)
        if (!measure_some_rows<Acc, 4>(grad, out, i, cross_sq, cross_weighted)) return false;
    for (; i < grad.rows; ++i)
        if (!measure_some_rows<Acc, 1>(grad, out, i, cross_sq, cross_weighted)) return false;
    for (std::size_t j = 0; j < grad.cols; ++j) {
        out.cross_sum_sq[j] += double(cross_sq[j]);
        out.cross_weighted[j] += double(cross_weighted[j]);
    }
    return true;
}

// grad: at most kPanelRows whole rows. scratch: 2 * cols doubles, padded.
template <class G>
void measure_rows(const Block<const G>& grad, const Statistics& out, void* scratch) {
    if (sizeof(G) < sizeof(double) && !out.wide &&
        measure_panel_rows<G>(grad, out, static_cast<G*>(scratch)))
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
    bool all_trusted = true;
    for (std::size_t j = 0; j < grad.cols; ++j)
        all_trusted = all_trusted && trusted(Acc(out.own_sum_sq[j]), grad.rows);
    if (!all_trusted) {
        // Columns of zeros are right as they are: only others need a wider type.
        sum_squares_of_columns<double>(grad, out.own_sum_sq, reinterpret_cast<double*>(scratch));
        for (std::size_t j = 0; j < grad.cols; ++j)
            if (out.own_sum_sq[j] != 0 && !trusted(Acc(out.own_sum_sq[j]), grad.rows)) return false;
    }
    Acc* weight = scratch;
    for (std::size_t j = 0; j < padded<Acc>(grad.cols); ++j) weight[j] = 0;
    for (std::size_t j = 0; j < grad.cols; ++j) {
        out.own_new[j] = blend(out, out.own_old[j], out.own_sum_sq[j] / double(grad.rows));
        const double w = weight_of(out.own_sum_sq[j], out.own_new[j]);
        if (!trusted_weight<Acc>(w, out.own_sum_sq[j], grad.rows)) return false;
        weight[j] = Acc(w);
    }
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
