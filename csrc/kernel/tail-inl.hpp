// The last elements of a run, fewer than a group of lanes: nothing behind them is read or written.

using Half = std::uint16_t;  // the bits of a bfloat16 or a float16

template <class T, std::size_t bytes>
using VectorOfBytes = typename VectorOf<T, bytes>::Aligned;

// Where the set has masks for such elements:
//
// load_some(from, n, x): x gets from[0] to from[n - 1], its other lanes 0.
// store_some(to, n, x): to[0] to to[n - 1] get the first lanes of x.

#if defined(__AVX512VL__) && defined(__AVX512BW__)

template <class T>
constexpr bool kHasMasks = true;
#define ADAFACTOR_MASKED(T, bytes, Intrinsic, Mask, load, store)                                \
    ADAFACTOR_INLINE void load_some(const T* from, std::size_t n, VectorOfBytes<T, bytes>& x) { \
        x = reinterpret_cast<VectorOfBytes<T, bytes>>(load(Mask((1u << n) - 1), from));         \
    }                                                                                           \
    ADAFACTOR_INLINE void store_some(T* to, std::size_t n, const VectorOfBytes<T, bytes>& x) {  \
        store(to, Mask((1u << n) - 1), reinterpret_cast<Intrinsic>(x));                         \
    }
ADAFACTOR_MASKED(float, 64, __m512, __mmask16, _mm512_maskz_loadu_ps, _mm512_mask_storeu_ps)
ADAFACTOR_MASKED(float, 32, __m256, __mmask8, _mm256_maskz_loadu_ps, _mm256_mask_storeu_ps)
ADAFACTOR_MASKED(double, 64, __m512d, __mmask8, _mm512_maskz_loadu_pd, _mm512_mask_storeu_pd)
ADAFACTOR_MASKED(Half, 32, __m256i, __mmask16, _mm256_maskz_loadu_epi16, _mm256_mask_storeu_epi16)
#undef ADAFACTOR_MASKED

#elif defined(__AVX2__)

template <class T>
constexpr bool kHasMasks = sizeof(T) >= sizeof(float);
#define ADAFACTOR_MASKED(T, bytes, Intrinsic, Mask, load, store, ...)                           \
    ADAFACTOR_INLINE Mask first_lanes(const T*, std::size_t n, VectorOfBytes<T, bytes>) {       \
        using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;             \
        constexpr VectorOfBytes<Int, bytes> lane{__VA_ARGS__};                                  \
        return reinterpret_cast<Mask>(lane < Int(n));                                           \
    }                                                                                           \
    ADAFACTOR_INLINE void load_some(const T* from, std::size_t n, VectorOfBytes<T, bytes>& x) { \
        x = reinterpret_cast<VectorOfBytes<T, bytes>>(load(from, first_lanes(from, n, x)));     \
    }                                                                                           \
    ADAFACTOR_INLINE void store_some(T* to, std::size_t n, const VectorOfBytes<T, bytes>& x) {  \
        store(to, first_lanes(to, n, x), reinterpret_cast<Intrinsic>(x));                       \
    }
ADAFACTOR_MASKED(float, 32, __m256, __m256i, _mm256_maskload_ps, _mm256_maskstore_ps, 0, 1, 2, 3, 4,
                 5, 6, 7)
ADAFACTOR_MASKED(float, 16, __m128, __m128i, _mm_maskload_ps, _mm_maskstore_ps, 0, 1, 2, 3)
ADAFACTOR_MASKED(double, 32, __m256d, __m256i, _mm256_maskload_pd, _mm256_maskstore_pd, 0, 1, 2, 3)
#undef ADAFACTOR_MASKED

#else

template <class T>
constexpr bool kHasMasks = false;

#endif

// Copies n <= `most` elements by powers of two: each is a move or two, where memcpy is a call.
template <std::size_t most, class T>
ADAFACTOR_INLINE void copy_some(T* to, const T* from, std::size_t n) {
    if (n >= most) {
        __builtin_memcpy(to, from, most * sizeof(T));
        return;
    }
    if constexpr (most > 1) {
        constexpr std::size_t half = most / 2;
        if (n & half) {
            __builtin_memcpy(to, from, half * sizeof(T));
            to += half;
            from += half;
        }
        copy_some<half>(to, from, n & (half - 1));
    }
}

// How many of the first n elements fall into a part of `width` lanes.
ADAFACTOR_INLINE std::size_t within_part(std::size_t n, std::size_t part, std::size_t width) {
    const std::size_t before = part * width;
    return n <= before ? 0 : n - before < width ? n - before : width;
}

// The first n lanes of all parts together; the others are 0.
template <class T, class Vector>
ADAFACTOR_INLINE void load_parts(const T* from, std::size_t n, Vector (&parts)[kParts]) {
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    if constexpr (kHasMasks<T>) {
        ADAFACTOR_PARTS load_some(from + part * width, within_part(n, part, width), parts[part]);
    } else {
        alignas(64) T lanes[kParts * width] = {};
        copy_some<kParts * width>(lanes, from, n);
        __builtin_memcpy(parts, lanes, sizeof(parts));
    }
}

template <class T, class Vector>
ADAFACTOR_INLINE void store_parts(T* to, std::size_t n, const Vector (&parts)[kParts]) {
    constexpr std::size_t width = sizeof(Vector) / sizeof(T);
    if constexpr (kHasMasks<T>) {
        ADAFACTOR_PARTS store_some(to + part * width, within_part(n, part, width), parts[part]);
    } else {
        alignas(64) T lanes[kParts * width];
        __builtin_memcpy(lanes, parts, sizeof(parts));
        copy_some<kParts * width>(to, lanes, n);
    }
}

template <class Acc, std::size_t n_lanes = kLanes<Acc>, class T>
ADAFACTOR_INLINE Lanes<Acc, n_lanes> load_first(const T* from, std::size_t n) {
    Lanes<T, n_lanes> x;
    load_parts(from, n, x.part);
    return converted<Acc>(x);
}

template <class T, class Acc, std::size_t n_lanes>
ADAFACTOR_INLINE void store_first(T* to, const Lanes<Acc, n_lanes>& x, std::size_t n) {
    store_parts(to, n, converted<T>(x).part);
}
