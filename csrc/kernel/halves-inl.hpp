// Between halves in memory and floats in tiles, and the sums of halves.

// Writes past the caches where `streams` and the address allows it: for what is not read again soon.
template <bool streams>
ADAFACTOR_INLINE void store_halves(Half* to, const Halves& x) {
#if defined(__SSE2__)
    if constexpr (streams) {
#if defined(__AVX512F__)
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(x));
#elif defined(__AVX2__)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(x));
#else
        _mm_stream_si64(reinterpret_cast<long long*>(to), reinterpret_cast<long long>(x));
#endif
        return;
    }
#endif
    *reinterpret_cast<HalvesAnywhere*>(to) = x;
}

// Philox2x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), of eight
// counters at a time: {number of the block, stream}. A block is four elements' random words.
using Counters = VectorOf<std::uint64_t, kVectorBytes>::Aligned;

ADAFACTOR_INLINE Counters low_products(const Counters& x, const Counters& y) {
#if defined(__AVX512F__)
    return reinterpret_cast<Counters>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y)));
#elif defined(__AVX2__)
    return reinterpret_cast<Counters>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y)));
#elif defined(__SSE2__)
    return reinterpret_cast<Counters>(
        _mm_mul_epu32(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(y)));
#else
    return (x & 0xffffffffu) * (y & 0xffffffffu);
#endif
}

constexpr std::uint64_t kBlockNumbers[8] = {0, 1, 2, 3, 4, 5, 6, 7};

// The random words of elements first to first + 31, which is a multiple of 32: below 2^16, those of
// the first sixteen and of the others.
ADAFACTOR_INLINE void draw(const Rounding& rounding, std::uint64_t first,
                           Words (&random)[2][kParts]) {
    const std::uint64_t block = first / 4;
    ADAFACTOR_PARTS {
        Counters left;
        __builtin_memcpy(&left, kBlockNumbers + part * (8 / kParts), sizeof(left));
        left += block & 0xffffffffu;
        Counters right = Counters{} + (rounding.stream + (block >> 32));
        const Counters multiplier = Counters{} + 0xd256d193u;
        std::uint32_t key = rounding.key;
        for (int round = 0; round < 10; ++round) {
            // Of each lane the low 32 bits count.
            const Counters product = low_products(left, multiplier);
            left = (product >> 32) ^ right ^ std::uint64_t(key);
            right = product;
            key += 0x9e3779b9u;
        }
        const auto words = reinterpret_cast<Words>((left & 0xffffffffu) | right << 32);
        random[0][part] = words & 0xffffu;
        random[1][part] = words >> 16;
    }
}

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

template <class Format, bool stochastic, bool streams>
ADAFACTOR_INLINE void narrow_run(const float* from, Half* to, std::size_t cols,
                                 const Rounding& rounding, std::uint64_t first) {
    constexpr std::size_t width = kLanes<float>;
    const auto rounded = [](const Floats& x, const Words& random) __attribute__((always_inline)) {
        if constexpr (stochastic) return Format::stochastic(x, random);
        return Format::nearest(x);
    };
    for (std::size_t begin = 0; begin < cols; begin += 2 * width) {
        Words random[2][kParts] = {};
        if constexpr (stochastic) draw(rounding, first + begin, random);
        for (std::size_t k = 0; k < 2 && begin + k * width < cols; ++k) {
            const std::size_t j = begin + k * width, n = cols - j;
            if (n >= width) {
                const Lanes<float> x = load<float>(from + j);
                ADAFACTOR_PARTS store_halves<streams>(to + j + part * kWidth,
                                                      rounded(x.part[part], random[k][part]));
            } else {
                const Lanes<float> x = load_first<float>(from + j, n);
                Half half[width];
                ADAFACTOR_PARTS store_halves<false>(half + part * kWidth,
                                                    rounded(x.part[part], random[k][part]));
                __builtin_memcpy(to + j, half, n * sizeof(Half));
            }
        }
    }
}

template <class Format, bool stochastic>
ADAFACTOR_INLINE void narrow_as(const Block<const float>& from, const Block<Half>& to,
                                const Rounding& rounding) {
    for (std::size_t i = 0; i < from.rows; ++i) {
        Half* const t = row_of(to, i);
        const std::uint64_t first = rounding.first + i * rounding.row_step;
        if (rounding.streams && reinterpret_cast<std::uintptr_t>(t) % sizeof(Halves) == 0)
            narrow_run<Format, stochastic, true>(row_of(from, i), t, from.cols, rounding, first);
        else
            narrow_run<Format, stochastic, false>(row_of(from, i), t, from.cols, rounding, first);
    }
#if defined(__SSE2__)
    if (rounding.streams) _mm_sfence();
#endif
}

template <class Format>
void narrow(const Block<const float>& from, const Block<Half>& to, const Rounding& rounding) {
    if (rounding.stochastic)
        narrow_as<Format, true>(from, to, rounding);
    else
        narrow_as<Format, false>(from, to, rounding);
}

// A float is the nearest bfloat16, ties away from zero, and its own low bits, which as a signed
// number lead from there to it.
void join(const Block<const Half>& high, const Block<const Half>& low, const Block<float>& to) {
    constexpr std::size_t width = kLanes<float>;
    for (std::size_t i = 0; i < to.rows; ++i) {
        const Half *const h = row_of(high, i), *const l = row_of(low, i);
        float* const t = row_of(to, i);
        const auto joined = [](const Half* h, const Half* l) __attribute__((always_inline)) {
            Lanes<float> x;
            ADAFACTOR_PARTS {
                const Words upper =
                    __builtin_convertvector(load_halves(h + part * kWidth), Words) << 16;
                const Words lower = __builtin_convertvector(load_halves(l + part * kWidth), Words);
                x.part[part] = floats_of(upper + lower - ((lower & 0x8000u) << 1));
            }
            return x;
        };
        std::size_t j = 0;
        for (; j + width <= to.cols; j += width) store(t + j, joined(h + j, l + j));
        if (const std::size_t n = to.cols - j; n > 0) {
            Half upper[width] = {}, lower[width] = {};
            __builtin_memcpy(upper, h + j, n * sizeof(Half));
            __builtin_memcpy(lower, l + j, n * sizeof(Half));
            store_first(t + j, joined(upper, lower), n);
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
                                     const Ints nan = one != one;
                                     const Words word = words_of(one), upper = word + 0x8000u;
                                     store_halves<false>(
                                         h + part * kWidth,
                                         narrowed(where(nan, half_sign(one) | 0x7fc0u,
                                                        upper >> 16)));
                                     store_halves<false>(l + part * kWidth,
                                                         narrowed(where(nan, Words{}, word)));
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
    return sum_squares<Format>({reinterpret_cast<const Format*>(param.data), param.stride,
                                param.rows, param.cols});
}

template <class Format>
void measure_rows_of_halves(const Block<const Half>& grad, const Statistics& out, void* scratch) {
    measure_rows<Format>({reinterpret_cast<const Format*>(grad.data), grad.stride, grad.rows,
                          grad.cols}, out, scratch);
}
