// The sweep that writes: u formed from grad as struct Update says, param and m moved by it.
//
// The squares of what was written are summed while it is in cache, by the loops that measure uses:
// the sums have the same bits.

// Bytes ahead of a store that its line is asked for; the processor foresees reads well enough.
constexpr std::ptrdiff_t kWriteAhead = 512;

// What is added to and compared with the root of V, in the direct form.
template <class Acc>
struct Root {
    Lanes<Acc> eps, floor;

    explicit Root(const Update& update)
        : eps(broadcast(Acc(update.eps_root))), floor(broadcast(Acc(update.root_floor))) {}
};

template <class Acc>
ADAFACTOR_INLINE Lanes<Acc> direct_u(const Lanes<Acc>& g, const Lanes<Acc>& row,
                                     const Lanes<Acc>& col, const Root<Acc>& root) {
    return g / at_least(root.floor, row * col + root.eps);
}

// struct Move: without decay and momentum, with decay alone, with momentum.
enum class Moves { plain, decayed, with_momentum };

inline Moves moves_of(const Move& move, const void* m) {
    return m != nullptr ? Moves::with_momentum : move.decay != 0 ? Moves::decayed : Moves::plain;
}

template <Moves moves, class Acc, std::size_t n = kLanes<Acc>>
struct Mover {
    Lanes<Acc, n> decay, beta1, rate;

    explicit Mover(const Move& move)
        : decay(broadcast<Acc, n>(Acc(move.decay))),
          beta1(broadcast<Acc, n>(Acc(move.beta1))),
          rate(broadcast<Acc, n>(Acc(move.rate))) {}

    // The new param, from x = weight u; m becomes the new first moment.
    ADAFACTOR_INLINE Lanes<Acc, n> operator()(const Lanes<Acc, n>& old, const Lanes<Acc, n>& x,
                                              Lanes<Acc, n>& m) const {
        if constexpr (moves == Moves::plain) return old - x;
        if constexpr (moves == Moves::decayed) return old - (x + decay * old);
        m = beta1 * m + x;
        return old - (rate * m + decay * old);
    }
};

// With `sums`, sum_sq[r] becomes the sum of squares of what was written to row r, added up as in
// sum_squares_of_runs: the same bits.
template <bool separable, Moves moves, bool sums, class Acc, std::size_t R, class P, class G>
ADAFACTOR_INLINE void apply_some_rows(const Block<P>& param, const Block<P>& m,
                                      const Block<const G>& grad, const Update& update,
                                      std::size_t i, double* sum_sq) {
    constexpr bool has_momentum = moves == Moves::with_momentum;
    const Acc* row_factor = static_cast<const Acc*>(update.row) + i;
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    P* p[R];
    P* p_m[R];
    const G* g[R];
    rows_of(param, i, p);
    rows_of(grad, i, g);
    if constexpr (has_momentum) rows_of(m, i, p_m);
    Lanes<Acc> row[R];
    for (std::size_t r = 0; r < R; ++r) row[r] = broadcast(row_factor[r]);
    const Root<Acc> root(update);
    const Lanes<Acc> weight = broadcast(Acc(update.move.weight));
    const auto x_of = [&](const Lanes<Acc>& g, std::size_t r, const Lanes<Acc>& col)
                          __attribute__((always_inline)) {
                              if constexpr (separable) return g * (row[r] * col);
                              return weight * direct_u(g, row[r], col, root);
                          };
    const Mover<moves, Acc> moved(update.move);
    constexpr std::size_t chunk = sums ? kChunkOf<Acc> : ~std::size_t(0);
    if constexpr (sums)
        for (std::size_t r = 0; r < R; ++r) sum_sq[r] = 0;
    for (std::size_t j = 0; j < param.cols;) {
        const std::size_t end = param.cols - j < chunk ? param.cols : j + chunk;
        Lanes<Acc> sum[R];
        for (std::size_t r = 0; r < R; ++r) sum[r] = broadcast(Acc(0));
        for (; j + kLanes<Acc> <= end; j += kLanes<Acc>) {
            const Lanes<Acc> col = load<Acc>(col_factor + j);
            // All rows are read before any is written: a store holds up loads from places whose
            // lower address bits are the same, and those of another array's next row often are.
            Lanes<Acc> now[R], first_moment[R];
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = x_of(load<Acc>(g[r] + j), r, col);
                if constexpr (has_momentum) first_moment[r] = load<Acc>(p_m[r] + j);
                now[r] = moved(load<Acc>(p[r] + j), x, first_moment[r]);
                if constexpr (sums) sum[r] = sum[r] + now[r] * now[r];
            }
            for (std::size_t r = 0; r < R; ++r) {
                __builtin_prefetch(reinterpret_cast<const char*>(p[r] + j) + kWriteAhead, 1);
                if constexpr (has_momentum) store(p_m[r] + j, first_moment[r]);
                store(p[r] + j, now[r]);
            }
        }
        if (const std::size_t n = end - j; n > 0) {
            const Lanes<Acc> col = load_first<Acc>(col_factor + j, n);
            for (std::size_t r = 0; r < R; ++r) {
                const Lanes<Acc> x = x_of(load_first<Acc>(g[r] + j, n), r, col);
                Lanes<Acc> first_moment;
                if constexpr (has_momentum) first_moment = load_first<Acc>(p_m[r] + j, n);
                store_first(p[r] + j, moved(load_first<Acc>(p[r] + j, n), x, first_moment), n);
                if constexpr (has_momentum) store_first(p_m[r] + j, first_moment, n);
                const Lanes<Acc> now = load_first<Acc>(p[r] + j, n);
                if constexpr (sums) sum[r] = sum[r] + now * now;
            }
            j = end;
        }
        if constexpr (sums) add_sums_of_lanes(sum, sum_sq);
    }
}

template <bool separable, Moves moves, bool sums, class Acc, class P, class G>
ADAFACTOR_INLINE double apply_in(const Block<P>& param, const Block<P>& m,
                                 const Block<const G>& grad, const Update& update) {
    double total = 0, sum_sq[kPanelRows];
    for (std::size_t begin = 0; begin < param.rows; begin += kPanelRows) {
        const std::size_t end = begin + kPanelRows < param.rows ? begin + kPanelRows : param.rows;
        std::size_t i = begin;
        for (; i + 4 <= end; i += 4)
            apply_some_rows<separable, moves, sums, Acc, 4>(param, m, grad, update, i,
                                                            sum_sq + (i - begin));
        for (; i < end; ++i)
            apply_some_rows<separable, moves, sums, Acc, 1>(param, m, grad, update, i,
                                                            sum_sq + (i - begin));
        if constexpr (sums) {
            correct_untrusted<P>(read_only(param), begin, end, sum_sq);
            total += sum_by_fours(sum_sq, end - begin);
        }
    }
    return total;
}

template <bool separable, class Acc, class P, class G>
ADAFACTOR_INLINE double apply_and_sum(const Block<P>& param, const Block<P>& m,
                                      const Block<const G>& grad, const Update& update) {
    constexpr bool sums_as_measure = std::is_same_v<Acc, P>;
    const Moves moves = moves_of(update.move, m.data);
    if (update.sums_param && sums_as_measure && moves == Moves::plain)
        return apply_in<separable, Moves::plain, sums_as_measure, Acc>(param, m, grad, update);
    if (moves == Moves::plain)
        apply_in<separable, Moves::plain, false, Acc>(param, m, grad, update);
    else if (moves == Moves::decayed)
        apply_in<separable, Moves::decayed, false, Acc>(param, m, grad, update);
    else
        apply_in<separable, Moves::with_momentum, false, Acc>(param, m, grad, update);
    return update.sums_param ? sum_squares(read_only(param)) : 0;
}

// Arithmetic in double as soon as one of the two is, or where float's range would not do.
template <class P, class G>
double apply(const Block<P>& param, const Block<P>& m, const Block<const G>& grad,
             const Update& update) {
    if constexpr (sizeof(P) == sizeof(float) && sizeof(G) == sizeof(float)) {
        if (!update.wide)
            return update.separable ? apply_and_sum<true, float>(param, m, grad, update)
                                    : apply_and_sum<false, float>(param, m, grad, update);
    }
    return update.separable ? apply_and_sum<true, double>(param, m, grad, update)
                            : apply_and_sum<false, double>(param, m, grad, update);
}

// The direct form's RMS(u) needs a sweep of its own: sum_ij u[i,j]^2.
template <class Acc, class G>
ADAFACTOR_INLINE double sum_u_squares_in(const Block<const G>& grad, const Update& update) {
    const Acc* col_factor = static_cast<const Acc*>(update.col);
    const Root<Acc> root(update);
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
                    direct_u(load<Acc>(g + j), row, load<Acc>(col_factor + j), root);
                sum = sum + u * u;
            }
            if (j < end) {
                // Lanes past the end hold 0 over what is added to the root, or 0 / 0.
                const Lanes<Acc> u = direct_u(load_first<Acc>(g + j, end - j), row,
                                              load_first<Acc>(col_factor + j, end - j), root);
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
