// Between halves in memory and floats in tiles, and the sums of halves.

template <class Format>
void widen(const Block<const Half>& from, const Block<float>& to) {
    for (std::size_t i = 0; i < from.rows; ++i) {
        const auto* const f = reinterpret_cast<const Format*>(row_of(from, i));
        float* const t = row_of(to, i);
        std::size_t j = 0;
        for (; j + kLanes<float> <= from.cols; j += kLanes<float>) store(t + j, load<float>(f + j));
        if (const std::size_t n = from.cols - j; n > 0)
            store_first(t + j, load_first<float>(f + j, n), n);
    }
}

template <class Format, bool stochastic>
ADAFACTOR_INLINE void narrow_run(const float* from, Half* to, std::size_t cols,
                                 const Rounding& rounding, std::uint64_t first) {
    constexpr std::size_t width = kLanes<float>;
    const auto rounded = [](const Floats& x, const Words& random) __attribute__((always_inline)) {
        if constexpr (stochastic) return Format::stochastic(x, random);
        return Format::nearest(x);
    };
    for (std::size_t begin = 0; begin < cols; begin += kDrawn) {
        Words words[1][kParts] = {}, random[kParts] = {};
        if constexpr (stochastic) draw<1>(rounding, {first + begin}, words);
        for (std::size_t k = 0; k < kDrawn / width && begin + k * width < cols; ++k) {
            const std::size_t j = begin + k * width, n = cols - j;
            if constexpr (stochastic) {
                ADAFACTOR_PARTS random[part] = sixteen_bits(words[0][part], k);
            }
            if (n >= width) {
                const Lanes<float> x = load<float>(from + j);
                ADAFACTOR_PARTS store_halves(to + j + part * kWidth,
                                             rounded(x.part[part], random[part]));
            } else {
                const Lanes<float> x = load_first<float>(from + j, n);
                Half half[width];
                ADAFACTOR_PARTS store_halves(half + part * kWidth,
                                             rounded(x.part[part], random[part]));
                __builtin_memcpy(to + j, half, n * sizeof(Half));
            }
        }
    }
}

template <class Format, bool stochastic>
ADAFACTOR_INLINE void narrow_as(const Block<const float>& from, const Block<Half>& to,
                                const Rounding& rounding) {
    for (std::size_t i = 0; i < from.rows; ++i) {
        const std::uint64_t first = rounding.first + i * rounding.row_step;
        narrow_run<Format, stochastic>(row_of(from, i), row_of(to, i), from.cols, rounding, first);
    }
}

template <class Format>
void narrow(const Block<const float>& from, const Block<Half>& to, const Rounding& rounding) {
    if (rounding.stochastic)
        narrow_as<Format, true>(from, to, rounding);
    else
        narrow_as<Format, false>(from, to, rounding);
}

void join(const Block<const Half>& high, const Block<const Half>& low, const Block<float>& to) {
    constexpr std::size_t width = kLanes<float>;
    for (std::size_t i = 0; i < to.rows; ++i) {
        const Half *const h = row_of(high, i), *const l = row_of(low, i);
        float* const t = row_of(to, i);
        const auto both = [](const Half* h, const Half* l) __attribute__((always_inline)) {
            Lanes<float> x;
            ADAFACTOR_PARTS {
                x.part[part] =
                    joined(load_halves(h + part * kWidth), load_halves(l + part * kWidth));
            }
            return x;
        };
        std::size_t j = 0;
        for (; j + width <= to.cols; j += width) store(t + j, both(h + j, l + j));
        if (const std::size_t n = to.cols - j; n > 0) {
            Half upper[width] = {}, lower[width] = {};
            __builtin_memcpy(upper, h + j, n * sizeof(Half));
            __builtin_memcpy(lower, l + j, n * sizeof(Half));
            store_first(t + j, both(upper, lower), n);
        }
    }
}

void split(const Block<const float>& from, const Block<Half>& high, const Block<Half>& low) {
    constexpr std::size_t width = kLanes<float>;
    for (std::size_t i = 0; i < from.rows; ++i) {
        const float* const f = row_of(from, i);
        Half *const h = row_of(high, i), *const l = row_of(low, i);
        const auto put = [](const Lanes<float>& x, Half* h, Half* l)
                             __attribute__((always_inline)) {
                                 ADAFACTOR_PARTS {
                                     const Floats& one = x.part[part];
                                     store_halves(h + part * kWidth, upper_half_of(one));
                                     store_halves(l + part * kWidth, lower_half_of(one));
                                 }
                             };
        std::size_t j = 0;
        for (; j + width <= from.cols; j += width) put(load<float>(f + j), h + j, l + j);
        if (const std::size_t n = from.cols - j; n > 0) {
            Half upper[width], lower[width];
            put(load_first<float>(f + j, n), upper, lower);
            __builtin_memcpy(h + j, upper, n * sizeof(Half));
            __builtin_memcpy(l + j, lower, n * sizeof(Half));
        }
    }
}

template <class Format>
double sum_squares_of_halves(const Block<const Half>& param) {
    return sum_squares<Format>(
        {reinterpret_cast<const Format*>(param.data), param.stride, param.rows, param.cols});
}

template <class Format>
void measure_rows_of_halves(const Block<const Half>& grad, const Statistics& out, void* scratch) {
    measure_rows<Format>(
        {reinterpret_cast<const Format*>(grad.data), grad.stride, grad.rows, grad.cols}, out,
        scratch);
}
