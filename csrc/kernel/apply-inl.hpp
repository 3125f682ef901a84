// The sweep that writes: param -= step u, with u formed from grad as struct Update says.
//
// The squares of what was written are summed while it is in cache, by the loops that measure uses:
// the sums have the same bits.

// Bytes ahead of a store that its line is asked for; the processor foresees reads well enough.
constexpr std::ptrdiff_t kWriteAhead = 512;

template <bool separable, class Acc>
ADAFACTOR_INLINE Lanes<Acc> form_u(const Lanes<Acc>& g, const Lanes<Acc>& row,
                                   const Lanes<Acc>& col, const Lanes<Acc>& eps) {
    if constexpr (separable) return g * (row * col);
    return g / (row * col + eps);
}

// With `sums`, sum_sq[r] becomes the sum of squares of what was written to row r, added up as in
// sum_squares_of_runs: the same bits.
template <bool separable, bool sums, class Acc, std::size_t R, class P, class G>
ADAFACTOR_INLINE void apply_some_rows(const Block<P>& param, const Block<const G>& grad,
                                      const Update& update, std::size_t i, double* sum_sq) {
    const Acc* row_factor = static_cast<const Acc*>(update.row) + i;
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    P* p[R];
    const G* g[R];
    rows_of(param, i, p);
    rows_of(grad, i, g);
    Lanes<Acc> row[R];
    for (std::size_t r = 0; r < R; ++r) row[r] = broadcast(row_factor[r]);
    const Lanes<Acc> eps = broadcast(Acc(update.eps)), step = broadcast(Acc(update.step));
    auto moved = [&](const Lanes<Acc>& old, const Lanes<Acc>& u) __attribute__((always_inline)) {
        if constexpr (separable) return old - u;
        return old - step * u;
    };
    constexpr std::size_t chunk = sums ? kChunkOf<Acc> : ~std::size_t(0);
    if constexpr (sums)
        for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    for (std::size_t j = 0; j < param.cols;) {
        const std::size_t end = param.cols - j < chunk ? param.cols : j + chunk;
        Lanes<Acc> sum[R];
        for (std::size_t r = 0; r < R; ++r) sum[r] = broadcast(Acc(0));
        for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
            const Lanes<Acc> col = load<Acc>(col_factor + j);
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> u = form_u<separable>(load<Acc>(g[r] + j), row[r], col, eps);
                __builtin_prefetch(reinterpret_cast<const char*>(p[r] + j) + kWriteAhead, 1);
                const Lanes<Acc> now = moved(load<Acc>(p[r] + j), u);
                store(p[r] + j, now);
                if constexpr (sums) sum[r] = sum[r] + now * now;
            }
        }
        if (const std::size_t n = end - j; n > 0) {
            const Lanes<Acc> col = load_first<Acc>(col_factor + j, n);
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> u =
                    form_u<separable>(load_first<Acc>(g[r] + j, n), row[r], col, eps);
                store_first(p[r] + j, moved(load_first<Acc>(p[r] + j, n), u), n);
                const Lanes<Acc> now = load_first<Acc>(p[r] + j, n);
                if constexpr (sums) sum[r] = sum[r] + now * now;
            }
            j = end;
        }
        if constexpr (sums) add_sums_of_lanes(sum, sum_sq);
    }
}

template <bool separable, bool sums, class Acc, class P, class G>
ADAFACTOR_INLINE double apply_in(const Block<P>& param, const Block<const G>& grad,
                                 const Update& update) {
    double total = 0, sum_sq[kPanelRows];
    for (std::size_t begin = 0; begin < param.rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < param.rows ? begin + kPanelRows : param.rows;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4)
            apply_some_rows<separable, sums, Acc, 4>(param, grad, update, i, sum_sq + (i - begin));
        for (; i < end; ++i)
            apply_some_rows<separable, sums, Acc, 1>(param, grad, update, i, sum_sq + (i - begin));
        if constexpr (sums) {
            correct_untrusted<P>(read_only(param), begin, end, sum_sq);
            total += sum_by_fours(sum_sq, end - begin);
        }
    }
    return total;
}

template <bool separable, class Acc, class P, class G>
ADAFACTOR_INLINE double apply_and_sum(const Block<P>& param, const Block<const G>& grad,
                                      const Update& update) {
    constexpr bool sums_as_measure = std::is_same_v<Acc, P>;
    if (update.sums_param && sums_as_measure)
        return apply_in<separable, sums_as_measure, Acc>(param, grad, update);
    apply_in<separable, false, Acc>(param, grad, update);
    return update.sums_param ? sum_squares(read_only(param)) : 0;
}

// Arithmetic in double as soon as one of the two is, or where float's range would not do.
template <class P, class G>
double apply(const Block<P>& param, const Block<const G>& grad, const Update& update) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        if (!update.wide)
            return update.separable ? apply_and_sum<true, float>(param, grad, update)
                                    : apply_and_sum<false, float>(param, grad, update);
    }
    return update.separable ? apply_and_sum<true, double>(param, grad, update)
                            : apply_and_sum<false, double>(param, grad, update);
}

// The direct form's RMS(u) needs a sweep of its own: sum_ij u[i,j]^2.
template <class Acc, class G>
ADAFACTOR_INLINE double sum_u_squares_in(const Block<const G>& grad, const Update& update) {
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    const Lanes<Acc> eps = broadcast(Acc(update.eps));
    double total = 0;
    for (std::size_t i = 0; i < grad.rows; ++i) {
        const G* g = row_of(grad, i);
        const Lanes<Acc> row = broadcast(static_cast<const Acc*>(update.row)[i]);
        for (std::size_t begin = 0; begin < grad.cols; begin += kChunk) {
            const std::size_t end = begin + kChunk < grad.cols ? begin + kChunk : grad.cols;
            Lanes<Acc> sum = broadcast(Acc(0));
            std::size_t j = begin;
            for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
                const Lanes<Acc> u =
                    form_u<false>(load<Acc>(g + j), row, load<Acc>(col_factor + j), eps);
                sum = sum + u * u;
            }
            if (j < end) {
                // Lanes past the end hold grad 0 over eps, or 0 / 0 where eps is 0.
                const Lanes<Acc> u = form_u<false>(load_first<Acc>(g + j, end - j), row,
                                                   load_first<Acc>(col_factor + j, end - j), eps);
                alignas(64) Acc lane[kLanes<Acc>];
                store(lane, u);
                for (std::size_t k = end - j; k < kLanes<Acc>; ++k) lane[k] = 0;
                const Lanes<Acc> kept = load<Acc>(lane);
                sum = sum + kept * kept;
            }
            total += double(sum_lanes(sum));
        }
    }
    return total;
}

template <class G>
double sum_u_squares(const Block<const G>& grad, const Update& update) {
    if constexpr (sizeof(G) == sizeof(float)) {
        if (!update.wide) return sum_u_squares_in<float>(grad, update);
    }
    return sum_u_squares_in<double>(grad, update);
}
