// The sweep that writes, of arrays of any formats: those that matter have a kernel of their own,
// all others one that branches for each vector.

constexpr Format kAnyFormat = Format(-1);

constexpr std::size_t size_in(Format format) { return format == Format::float32 ? 4 : 2; }

// Sixteen elements. `known` is the format, or any.
template <Format known>
ADAFACTOR_INLINE Lanes<float> read(const char* row, Format format, std::ptrdiff_t low,
                                   std::size_t j) {
    switch (known == kAnyFormat ? format : known) {
        case Format::bfloat16:
            return load<float>(reinterpret_cast<const Bfloat16*>(row) + j);
        case Format::float16:
            return load<float>(reinterpret_cast<const Float16*>(row) + j);
        case Format::split: {
            const char* const upper = row + j * sizeof(Half);
            Lanes<float> x;
            ADAFACTOR_PARTS {
                const std::size_t at = part * kWidth * sizeof(Half);
                x.part[part] = joined(load_halves(upper + at), load_halves(upper + low + at));
            }
            return x;
        }
        default:
            return load<float>(reinterpret_cast<const float*>(row) + j);
    }
}

template <class HalfFormat>
ADAFACTOR_INLINE void write_halves(Half* to, const Lanes<float>& x, const Words* random) {
    ADAFACTOR_PARTS {
        store_halves(to + part * kWidth, random == nullptr
                                             ? HalfFormat::nearest(x.part[part])
                                             : HalfFormat::stochastic(x.part[part], random[part]));
    }
}

// `random`: of each part, or null to round to nearest.
template <Format known>
ADAFACTOR_INLINE void write(char* row, Format format, std::ptrdiff_t low, std::size_t j,
                            const Lanes<float>& x, const Words* random) {
    Half* const half = reinterpret_cast<Half*>(row) + j;
    switch (known == kAnyFormat ? format : known) {
        case Format::float32:
            return store(reinterpret_cast<float*>(row) + j, x);
        case Format::bfloat16:
            return write_halves<Bfloat16>(half, x, random);
        case Format::float16:
            return write_halves<Float16>(half, x, random);
        case Format::split: {
            auto* const lower = reinterpret_cast<Half*>(reinterpret_cast<char*>(half) + low);
            ADAFACTOR_PARTS {
                store_halves(half + part * kWidth, upper_half_of(x.part[part]));
                store_halves(lower + part * kWidth, lower_half_of(x.part[part]));
            }
            return;
        }
        default:
            return;
    }
}

// The last n elements of a row, fewer than a vector, in memory of their own, and back.
struct Tail {
    alignas(64) char lanes[2][kLanes<float> * sizeof(float)] = {};
    char* at;
    std::ptrdiff_t low;
    Format format;
    std::size_t n_bytes;

    ADAFACTOR_INLINE Tail(char* row, Format format, std::ptrdiff_t low, std::size_t j,
                          std::size_t n)
        : at(row + j * size_in(format)), low(low), format(format), n_bytes(n * size_in(format)) {
        if (format == Format::none) return;
        __builtin_memcpy(lanes[0], at, n_bytes);
        if (format == Format::split) __builtin_memcpy(lanes[1], at + low, n_bytes);
    }

    ADAFACTOR_INLINE void put_back() const {
        if (format == Format::none) return;
        __builtin_memcpy(at, lanes[0], n_bytes);
        if (format == Format::split) __builtin_memcpy(at + low, lanes[1], n_bytes);
    }
};

// How u is formed and param moved, as struct Update says: learned when it runs ...
struct AnyHow {
    bool separable;
    Moves moves;
    Lanes<float> weight;
    Root<float> root;
    Mover<Moves::plain, float> plain;
    Mover<Moves::decayed, float> decayed;
    Mover<Moves::with_momentum, float> with_momentum;

    AnyHow(const Update& update, const void* m)
        : separable(update.separable),
          moves(moves_of(update.move, m)),
          weight(broadcast(float(update.move.weight))),
          root(update),
          plain(update.move),
          decayed(update.move),
          with_momentum(update.move) {}

    ADAFACTOR_INLINE Lanes<float> x(const Lanes<float>& g, const Lanes<float>& row,
                                    const Lanes<float>& col) const {
        return separable ? g * (row * col) : weight * direct_u(g, row, col, root);
    }
    ADAFACTOR_INLINE Lanes<float> moved(const Lanes<float>& old, const Lanes<float>& x,
                                        Lanes<float>& m) const {
        switch (moves) {
            case Moves::plain:
                return plain(old, x, m);
            case Moves::decayed:
                return decayed(old, x, m);
            default:
                return with_momentum(old, x, m);
        }
    }
};

// ... or known to be separable and without momentum.
template <Moves moves>
struct UsualHow {
    Mover<moves, float> move;

    UsualHow(const Update& update, const void*) : move(update.move) {}

    ADAFACTOR_INLINE Lanes<float> x(const Lanes<float>& g, const Lanes<float>& row,
                                    const Lanes<float>& col) const {
        return g * (row * col);
    }
    ADAFACTOR_INLINE Lanes<float> moved(const Lanes<float>& old, const Lanes<float>& x,
                                        Lanes<float>& m) const {
        return move(old, x, m);
    }
};

template <Format P, Format M, Format G, Format C>
struct Formats {
    static constexpr Format p = P, m = M, g = G, c = C;
};
using AnyFormats = Formats<kAnyFormat, kAnyFormat, kAnyFormat, kAnyFormat>;

// One row's places; a Tail's, or those of the arrays.
struct Places {
    char *p, *m, *g, *c;
    std::ptrdiff_t p_low;
};

// What sixteen elements of a row become.
struct Moved {
    Lanes<float> param, m;
};

template <class F>
ADAFACTOR_INLINE bool has_momentum(const StoredArrays& arrays) {
    return F::m != Format::none && arrays.m.format != Format::none;
}

template <class F, class How>
ADAFACTOR_INLINE Moved moved(const StoredArrays& arrays, const Places& at, std::size_t j,
                             const Lanes<float>& row, const Lanes<float>& col, const How& how) {
    const Lanes<float> x = how.x(read<F::g>(at.g, arrays.grad.format, 0, j), row, col);
    Moved now;
    if (has_momentum<F>(arrays)) now.m = read<F::m>(at.m, arrays.m.format, 0, j);
    now.param = how.moved(read<F::p>(at.p, arrays.param.format, at.p_low, j), x, now.m);
    return now;
}

template <class F>
ADAFACTOR_INLINE void put(const StoredArrays& arrays, const Places& at, std::size_t j,
                          const Moved& now, const Words* random) {
    if (has_momentum<F>(arrays)) write<F::m>(at.m, arrays.m.format, 0, j, now.m, nullptr);
    write<F::p>(at.p, arrays.param.format, at.p_low, j, now.param, random);
    write<F::c>(at.c, arrays.copy.format, 0, j, now.param, random);
}

template <class F, class How>
ADAFACTOR_INLINE void apply_to_tail(const StoredArrays& arrays, const Places& at, std::size_t j,
                                    std::size_t n, const Lanes<float>& row, const Lanes<float>& col,
                                    const How& how, const Words* random) {
    Tail p(at.p, arrays.param.format, at.p_low, j, n), m(at.m, arrays.m.format, 0, j, n);
    Tail g(at.g, arrays.grad.format, 0, j, n), c(at.c, arrays.copy.format, 0, j, n);
    const Places tails{p.lanes[0], m.lanes[0], g.lanes[0], c.lanes[0], sizeof(p.lanes[0])};
    put<F>(arrays, tails, 0, moved<F>(arrays, tails, 0, row, col, how), random);
    p.put_back();
    m.put_back();
    c.put_back();
}

template <class F, class How, bool stochastic, std::size_t R>
ADAFACTOR_INLINE void apply_stored_rows(const StoredArrays& arrays, std::size_t i,
                                        const Update& update, const How& how,
                                        const Rounding& rounding) {
    constexpr std::size_t width = kLanes<float>, group = stochastic ? kDrawn : width;
    const auto* const col_factor = static_cast<const float*>(update.col);
    const std::size_t cols = arrays.cols;
    Places at[R];
    Lanes<float> row[R];
    const auto place = [i](const Stored& array, std::size_t r) {
        return array.data + std::ptrdiff_t(i + r) * array.stride;
    };
    for (std::size_t r = 0; r < R; ++r) {
        at[r] = {place(arrays.param, r), place(arrays.m, r), place(arrays.grad, r),
                 place(arrays.copy, r), arrays.param.low};
        row[r] = broadcast(static_cast<const float*>(update.row)[i + r]);
    }
    Words drawn[R][kParts], random[kParts];
    const auto draw_from = [&](std::size_t j) __attribute__((always_inline)) {
        if constexpr (stochastic) {
            std::uint64_t first[R];
            for (std::size_t r = 0; r < R; ++r)
                first[r] = rounding.first + (i + r) * rounding.row_step + j;
            draw(rounding, first, drawn);
        }
    };
    const auto random_of = [&](std::size_t r, std::size_t k) __attribute__((always_inline)) {
        if (!stochastic) return static_cast<const Words*>(nullptr);
        ADAFACTOR_PARTS random[part] = sixteen_bits(drawn[r][part], k);
        return static_cast<const Words*>(random);
    };
    std::size_t j = 0;
    for (; j + group <= cols; j += group) {
        draw_from(j);
#pragma GCC unroll 4
        for (std::size_t k = 0; k < group / width; ++k) {
            const std::size_t here = j + k * width;
            const Lanes<float> col = load<float>(col_factor + here);
            Moved now[R];  // all before any is written, as in apply_some_rows
#pragma GCC unroll 4
            for (std::size_t r = 0; r < R; ++r)
                now[r] = moved<F>(arrays, at[r], here, row[r], col, how);
#pragma GCC unroll 4
            for (std::size_t r = 0; r < R; ++r) {
                __builtin_prefetch(at[r].p + here * size_in(F::p) + kWriteAhead, 1);
                put<F>(arrays, at[r], here, now[r], random_of(r, k));
            }
        }
    }
    if (j < cols) draw_from(j);
    for (std::size_t k = 0; j < cols; j += width, ++k) {
        const std::size_t n = cols - j < width ? cols - j : width;
        const Lanes<float> col = load_first<float>(col_factor + j, n);
        for (std::size_t r = 0; r < R; ++r)
            apply_to_tail<F>(arrays, at[r], j, n, row[r], col, how, random_of(r, k));
    }
}

template <class F, class How, bool stochastic>
void apply_stored_as(const StoredArrays& arrays, const Update& update, const Rounding& rounding) {
    const How how(update, arrays.m.data);
    std::size_t i = 0;
    if constexpr (!std::is_same_v<F, AnyFormats>)
        for (; i + 4 <= arrays.rows; i += 4)
            apply_stored_rows<F, How, stochastic, 4>(arrays, i, update, how, rounding);
    for (; i < arrays.rows; ++i)
        apply_stored_rows<F, How, stochastic, 1>(arrays, i, update, how, rounding);
}

template <class F, bool stochastic>
ADAFACTOR_INLINE void apply_as_usual(const StoredArrays& arrays, const Update& update,
                                     const Rounding& rounding) {
    if (update.move.decay == 0)
        apply_stored_as<F, UsualHow<Moves::plain>, stochastic>(arrays, update, rounding);
    else
        apply_stored_as<F, UsualHow<Moves::decayed>, stochastic>(arrays, update, rounding);
}

// Whether the arrays have these formats; if so, applies to them.
template <Format P, Format G, Format C = Format::none>
ADAFACTOR_INLINE bool apply_if(const StoredArrays& arrays, const Update& update,
                               const Rounding& rounding) {
    using F = Formats<P, Format::none, G, C>;
    constexpr bool rounds = P == Format::bfloat16 || P == Format::float16;
    if (arrays.param.format != P || arrays.grad.format != G || arrays.copy.format != C)
        return false;
    if (!rounding.stochastic || P == Format::split)
        apply_as_usual<F, false>(arrays, update, rounding);
    else if constexpr (rounds)
        apply_as_usual<F, true>(arrays, update, rounding);
    else
        return false;
    return true;
}

// Steps of matrices as most are, by kernels of their own; false for others.
bool apply_usual([[maybe_unused]] const StoredArrays& arrays, [[maybe_unused]] const Update& update,
                 [[maybe_unused]] const Rounding& rounding) {
#if defined(__AVX2__) || !defined(__SSE2__)
    using enum Format;
    if (!update.separable || arrays.m.format != none) return false;
    return apply_if<bfloat16, bfloat16>(arrays, update, rounding) ||
           apply_if<float16, float16>(arrays, update, rounding) ||
           apply_if<float32, bfloat16>(arrays, update, rounding) ||
           apply_if<float32, float16>(arrays, update, rounding) ||
           apply_if<float32, bfloat16, bfloat16>(arrays, update, rounding) ||
           apply_if<float32, float16, float16>(arrays, update, rounding) ||
           apply_if<split, bfloat16>(arrays, update, rounding) ||
           apply_if<bfloat16, float32>(arrays, update, rounding);
#else
    return false;  // of a processor that nobody has by now, a minute of everybody's compilation
#endif
}

void apply_stored(const StoredArrays& arrays, const Update& update, const Rounding& rounding) {
    if (apply_usual(arrays, update, rounding)) return;
    if (rounding.stochastic)
        apply_stored_as<AnyFormats, AnyHow, true>(arrays, update, rounding);
    else
        apply_stored_as<AnyFormats, AnyHow, false>(arrays, update, rounding);
}
